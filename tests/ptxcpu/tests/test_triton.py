"""Triton kernels on CPU tensors through the real compiler, against PyTorch."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from ptxcpu import LaunchError, triton_driver  # noqa: E402


@pytest.fixture(autouse=True, params=[(0, 2), (2, 2)], ids=["ascending", "random"])
def activated(request):
    triton_driver.activate()
    triton_driver.options.update(order=request.param[0], check=request.param[1], seed=11)


@triton.jit
def conv2d(
    x,
    w,
    b,
    y,
    N,
    C,
    H,
    W,
    F,
    OH,
    OW,
    KH: tl.constexpr,
    KW: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    n, r = m // (OH * OW), m % (OH * OW)
    K = C * KH * KW
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        c, q = k // (KH * KW), k % (KH * KW)
        iy = (r // OW)[:, None] * S - P + (q // KW)[None, :]
        ix = (r % OW)[:, None] * S - P + (q % KW)[None, :]
        inside = (
            (m[:, None] < N * OH * OW)
            & (k[None, :] < K)
            & (iy >= 0)
            & (iy < H)
            & (ix >= 0)
            & (ix < W)
        )
        xv = tl.load(x + ((n[:, None] * C + c[None, :]) * H + iy) * W + ix, mask=inside, other=0.0)
        wv = tl.load(
            w + o[None, :] * K + k[:, None], mask=(o[None, :] < F) & (k[:, None] < K), other=0.0
        )
        acc = tl.dot(xv, wv, acc, input_precision="ieee")
    acc += tl.load(b + o, mask=o < F, other=0.0)[None, :].to(tl.float32)
    out = ((n[:, None] * F + o[None, :]) * OH + (r // OW)[:, None]) * OW + (r % OW)[:, None]
    tl.store(
        y + out, acc.to(y.dtype.element_ty), mask=(m[:, None] < N * OH * OW) & (o[None, :] < F)
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize("shape", [(2, 1, 28, 6, 5, 1, 2), (2, 16, 16, 32, 3, 2, 1)])
def test_conv2d(dtype, tolerance, shape):
    N, C, H, F, K, S, P = shape
    OH = (H + 2 * P - K) // S + 1
    x, w, b = (
        torch.randn(N, C, H, H).to(dtype),
        (torch.randn(F, C, K, K) / (C * K * K) ** 0.5).to(dtype),
        torch.randn(F).to(dtype),
    )
    y = torch.empty(N, F, OH, OH, dtype=dtype)
    conv2d[(triton.cdiv(N * OH * OH, 64), triton.cdiv(F, 16))](
        x, w, b, y, N, C, H, H, F, OH, OH, K, K, S, P, 64, 16, 32
    )
    expected = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), stride=S, padding=P)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@triton.jit
def gemm(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        kk = k + tl.arange(0, BK)
        acc = tl.dot(
            tl.load(a + m[:, None] * K + kk[None, :]),
            tl.load(b + kk[:, None] * N + n[None, :]),
            acc,
        )
    tl.store(c + m[:, None] * N + n[None, :], acc)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pipelined_gemm(dtype):
    a, b, c = torch.randn(64, 128).to(dtype), torch.randn(128, 64).to(dtype), torch.empty(64, 64)
    gemm[(2, 2)](a, b, c, 64, 64, 128, 32, 32, 32, num_stages=3)
    exact = dtype != torch.float32  # float32 goes through tf32
    torch.testing.assert_close(
        c, a.float() @ b.float(), rtol=1e-4 if exact else 5e-2, atol=1e-4 if exact else 5e-2
    )


@triton.jit
def softmax(x, y, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    v = tl.load(x + row * n + i, mask=i < n, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * n + i, e / tl.sum(e, 0), mask=i < n)


def test_softmax():
    x, y = torch.randn(5, 200), torch.empty(5, 200)
    softmax[(5,)](x, y, 200, 256)
    torch.testing.assert_close(y, x.softmax(1))


@triton.autotune(configs=[triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128})], key=["n"])
@triton.jit
def maxpool(x, y, index, n, H, W, OH, OW, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r = i % (OH * OW)
    base = (i // (OH * OW) * H + r // OW * 2) * W + r % OW * 2
    best, where = tl.load(x + base, mask=i < n), tl.zeros((BLOCK,), tl.int32)
    for q in tl.static_range(1, 4):
        v = tl.load(x + base + (q // 2) * W + q % 2, mask=i < n)
        where = tl.where(v > best, q, where)
        best = tl.maximum(v, best)
    tl.store(y + i, best, mask=i < n)
    tl.store(index + i, where, mask=i < n)


def test_autotuned_maxpool():
    x, y, index = (
        torch.randn(2, 3, 8, 8),
        torch.empty(2, 3, 4, 4),
        torch.empty(2, 3, 4, 4, dtype=torch.int32),
    )
    maxpool[lambda meta: (triton.cdiv(96, meta["BLOCK"]),)](x, y, index, 96, 8, 8, 4, 4)
    assert torch.equal(y, torch.nn.functional.max_pool2d(x, 2))
    assert (
        maxpool.best_config is not None
        and triton.testing.do_bench(lambda: None, warmup=1, rep=1) > 0
    )


def test_out_of_bounds():
    with pytest.raises(LaunchError, match="out-of-bounds global read"):
        softmax[(6,)](torch.randn(5, 200), torch.empty(6, 200), 200, 256)
