"""Every instruction family against NumPy or PyTorch, with full checks, in three thread orders."""

import numpy as np
import pytest
import torch

CHECK = 2
rng = np.random.default_rng(0)


def run(module, kernel, threads, args, order=2, blocks=1):
    module.options(order=order, seed=3, check=CHECK)
    module.launch(kernel, blocks, threads, args)


def rounded(x, dtype):
    """Round float64 once, as instructions do; torch goes through float32 and rounds twice."""
    if dtype == torch.float16:
        return torch.from_numpy(x.numpy().astype(np.float16))
    bits = x.float().view(torch.int32)
    # Rounding to odd first, so that the second rounding is right: one bit tells what was cut off.
    bits = torch.where(x.float().abs() > x.abs(), bits - 1, bits) | (x.float() != x).int()
    return bits.view(torch.float32).to(dtype)


def wrap32(values):
    return (np.asarray(values, dtype=object) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def test_everything_is_supported(instructions, hopper):
    assert instructions.unsupported == [] and hopper.unsupported == []


# ---------------------------------------------------------------- matrix instructions
def half_inputs(k, dtype):
    a, b = torch.randn(16, k).to(dtype), torch.randn(k, 8).to(dtype)
    return a, b, b.t().contiguous()


@pytest.mark.parametrize("k", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma_half(instructions, k, dtype, order):
    a, b, bt = half_inputs(k, dtype)
    c, d = torch.randn(16, 8), torch.zeros(16, 8)
    run(
        instructions,
        f"mma_{'f16' if dtype == torch.float16 else 'bf16'}_k{k}",
        32,
        [a, bt, c, d],
        order,
    )
    torch.testing.assert_close(d, (a.double() @ b.double() + c).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [8, 16])
def test_mma_f16_accumulator(instructions, k):
    a, b, bt = half_inputs(k, torch.float16)
    c, d = torch.randn(16, 8).half(), torch.zeros(16, 8).half()
    run(instructions, f"mma_f16_acc_k{k}", 32, [a, bt, c, d])
    assert torch.equal(d, rounded(a.double() @ b.double() + c.double(), torch.float16))


@pytest.mark.parametrize("k", [4, 8])
def test_mma_tf32(instructions, k):
    def truncate(x):
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)

    a, b = truncate(torch.randn(16, k)), truncate(torch.randn(k, 8))
    c, d = torch.randn(16, 8), torch.zeros(16, 8)
    run(instructions, f"mma_tf32_k{k}", 32, [a, b.t().contiguous(), c, d])
    torch.testing.assert_close(d, (a.double() @ b.double() + c).float(), rtol=1e-6, atol=1e-6)


def test_mma_f64(instructions):
    a, b, c = (torch.randn(s, dtype=torch.float64) for s in ((8, 4), (4, 8), (8, 8)))
    d = torch.zeros_like(c)
    run(instructions, "mma_f64_k4", 32, [a, b.t().contiguous(), c, d])
    torch.testing.assert_close(d, a @ b + c, rtol=1e-15, atol=1e-15)


def test_mma_s8(instructions):
    a, b = (
        torch.randint(-128, 128, (16, 32), dtype=torch.int8),
        torch.randint(-128, 128, (32, 8), dtype=torch.int8),
    )
    c, d = (
        torch.randint(-9999, 9999, (16, 8), dtype=torch.int32),
        torch.zeros(16, 8, dtype=torch.int32),
    )
    run(instructions, "mma_s8_k32", 32, [a, b.t().contiguous(), c, d])
    assert torch.equal(d, a.int() @ b.int() + c)


def test_wmma(instructions):
    a, b, c = torch.randn(16, 16).half(), torch.randn(16, 16).half(), torch.zeros(16, 16)
    run(instructions, "wmma_f16", 32, [a, b, c])
    torch.testing.assert_close(c, 2 * (a.float() @ b.float().t() + 1), rtol=1e-5, atol=1e-5)
    a, b = torch.randn(16, 8), torch.randn(8, 16)
    run(instructions, "wmma_tf32", 32, [a, b, c])
    torch.testing.assert_close(c, a @ b, rtol=1e-2, atol=1e-2)


def ldmatrix_registers(tiles, count, transpose):
    """Lane l's register m holds elements (l/4, 2*(l%4)) and the next one of matrix m."""
    out = np.zeros((32, 4), np.uint32)
    for m in range(count):
        matrix = tiles[m].T if transpose else tiles[m]
        for lane in range(32):
            low, high = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            out[lane, m] = int(low) | int(high) << 16
    return out


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transpose", [False, True])
def test_ldmatrix(instructions, count, transpose, order):
    tiles = rng.integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    out = np.full((32, 4), 1, np.uint32)
    run(instructions, f"ldmatrix_x{count}{'_trans' if transpose else ''}", 32, [tiles, out], order)
    assert np.array_equal(out, ldmatrix_registers(tiles, count, transpose))


def test_stmatrix(hopper):
    tiles = rng.integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    out = np.zeros((4, 8, 8), np.uint16)
    run(hopper, "stmatrix_x4", 32, [ldmatrix_registers(tiles, 4, False), out])
    assert np.array_equal(out, tiles)
    out[:] = 0
    run(hopper, "stmatrix_x2_trans", 32, [ldmatrix_registers(tiles, 2, True), out])
    assert np.array_equal(out[:2], tiles[:2])


# ---------------------------------------------------------------- copies, barriers, warps
def test_cp_async_sizes(instructions, order):
    x, y = torch.randn(32, 4), torch.zeros(32, 4)
    run(instructions, "cp_async_sizes", 32, [x, y], order)
    assert torch.equal(y, x.roll(-1, 0))


def test_cp_async_source_size(instructions):
    x, y = torch.randn(32, 4), torch.ones(32, 4)
    run(instructions, "cp_async_source_size", 32, [x, y])
    kept = torch.arange(4)[None, :] < (torch.arange(32) % 5)[:, None]
    assert torch.equal(y, torch.where(kept, x, 0))


def test_cp_async_source_size_zero_does_not_read(instructions):
    x, y = (
        torch.randn(5, 4),
        torch.ones(32, 4),
    )  # rows 5... exist only for threads that copy nothing
    with pytest.raises(RuntimeError, match="out-of-bounds"):
        run(instructions, "cp_async_source_size", 32, [x, y])
    run(instructions, "cp_async_source_size", 5, [x, y])


def test_cp_async_ignore_source(instructions):
    x, y = torch.randn(32, 4), torch.ones(32, 4)
    run(instructions, "cp_async_ignore", 32, [x, y])
    assert torch.equal(y, torch.where((torch.arange(32) % 2 == 0)[:, None], x, 0))


def test_pipeline(instructions, order):
    x, y = torch.randn(128, 4), torch.zeros(128, 4)
    run(instructions, "pipeline_two_stages", 64, [x, y], order)
    assert torch.equal(y, torch.cat([x[:64].flip(0), x[64:].flip(0)]))


def test_named_barriers(instructions, order):
    x, y = torch.arange(128, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    run(instructions, "named_barriers", 128, [x, y], order)
    produced = x[:64] * 3
    assert torch.equal(y[:64], produced.flip(0)) and torch.equal(y[64:128], produced + 1)
    assert (y[128:] == 43 * 100 + 11).all()


def test_mbarrier(hopper, order):
    x, y = torch.arange(32, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    run(hopper, "mbarrier_handover", 64, [x, y], order)
    assert torch.equal(y, torch.cat([x.flip(0), x.flip(0) + 1]))


def test_warp_operations(instructions, order):
    v = rng.integers(0, 100, 32).astype(np.int32)
    v[3] = 7
    out = np.zeros((32, 16), np.int32)
    run(instructions, "warp_operations", 32, [v, out], order)
    lane = np.arange(32)
    assert np.array_equal(out[:, 0], v[lane // 8 * 8 + 5])
    assert np.array_equal(out[:, 1], np.where(lane % 16 >= 3, v[np.maximum(lane - 3, 0)], v))
    assert np.array_equal(out[:, 2], np.where(lane % 4 + 2 < 4, v[(lane + 2) % 32], v))
    assert np.array_equal(out[:, 3], v[lane ^ 5])
    ballot = sum(int(x & 1) << i for i, x in enumerate(v))
    assert (out[:, 4].view(np.uint32) == ballot).all()
    assert (out[:, 5] == 1 + 2).all()
    assert (
        (out[:, 6] == v.sum()).all()
        and (out[:, 7] == v.min() - 50).all()
        and (out[:, 8] == v.max()).all()
    )
    assert (out[:, 9] == np.bitwise_and.reduce(v | 64) + np.bitwise_xor.reduce(v)).all()
    same = [sum(1 << j for j in range(32) if v[j] % 4 == v[i] % 4) for i in range(32)]
    assert np.array_equal(out[:, 10].view(np.uint32), same)
    agree = (v == v[0]).all()
    assert (out[:, 11] == 0).all() and not agree  # nobody agrees: mask 0 and predicate 0
    assert np.array_equal(out[:, 12], np.where(lane < 16, v[lane ^ 1], v[lane ^ 2]))
    assert (
        out[:, 13].view(np.uint32)
        == np.bitwise_or.reduce(np.uint32(1) << (v & 31).astype(np.uint32))
    ).all()


def test_cooperative_groups(instructions, order):
    v = rng.integers(-100, 100, 64).astype(np.int32)
    out = np.zeros((64, 4), np.int32)
    run(instructions, "group_operations", 64, [v, out], order)
    groups = v.reshape(8, 8)
    lane = np.arange(64)
    assert np.array_equal(out[:, 0], groups.sum(1).repeat(8)) and np.array_equal(
        out[:, 1], groups.max(1).repeat(8)
    )
    following = np.where(lane % 8 < 7, v[(lane + 1) % 64], v)
    assert np.array_equal(out[:, 2], following + lane // 8 * 1000)
    assert np.array_equal(out[:, 3], (groups & 1).sum(1).repeat(8))


def test_atomics(instructions, order):
    f, h, b = torch.zeros(1), torch.zeros(2).half(), torch.zeros(2).bfloat16()
    i = torch.zeros(12, dtype=torch.int32)
    d, u = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    run(instructions, "atomics", 64, [f, h, b, i, d, u], order, blocks=2)
    n = 128
    assert f.item() == n * (n - 1) / 2 and h.tolist() == [n, 2 * n] and b.tolist() == [n, n / 2]
    assert i[0] == n - 1 and i[1] == 1 - n and i[2] == 2**31 - 1 and i[3] == 7 and i[4] == n % 10
    assert (
        i[5] >= 1 and i[8:].tolist() == [n // 4] * 4 and d.item() == n / 2 and u.item() == n << 33
    )


def test_cache_hints(instructions):
    x, y = torch.randn(32, 4), torch.zeros(128, 4)
    run(instructions, "cache_hints", 32, [x, y])
    assert torch.equal(y, x.repeat(4, 1))


# ---------------------------------------------------------------- scalar arithmetic
def test_integers(instructions):
    n = 128
    a, b = (rng.integers(-(2**31), 2**31, n).astype(np.int32) for _ in range(2))
    a[:4], b[:4] = [0, 1, -1, -(2**31)], [0, -1, 1, 2**31 - 1]
    out, wide = np.zeros((n, 16), np.int32), np.zeros((n, 2), np.int64)
    run(instructions, "integers", n, [a, b, out, wide])

    def prmt(x, y, selector):
        pool, result = x.to_bytes(4, "little") + y.to_bytes(4, "little"), 0
        for k in range(4):
            c = selector >> 4 * k & 15
            byte = pool[c & 7]
            result |= ((255 if byte & 128 else 0) if c & 8 else byte) << 8 * k
        return result

    def bfe(x, pos, length, signed):
        if not length:
            return 0
        sign = x >> min(pos + length - 1, 31) & 1
        bits = [
            (x >> pos + k & 1) if k < length and pos + k < 32 else (sign if signed else 0)
            for k in range(32)
        ]
        return sum(bit << k for k, bit in enumerate(bits))

    def bfi(x, y, pos, length):
        for k in range(length):
            if pos + k < 32:
                y = y & ~(1 << pos + k) | (x >> k & 1) << pos + k
        return y

    def truncate(p, q):
        return int(abs(p) // q) * (1 if p >= 0 else -1)

    def signed_bytes(v):
        return np.array([v], np.int32).view(np.int8).astype(int)

    for t in range(n):
        p, q = int(a[t]), int(b[t])
        x, y, z = p & 0xFFFFFFFF, q & 0xFFFFFFFF, t * 77
        expected = [
            prmt(x, y, 0x6250),
            prmt(x, y, 0x8C9D),
            bfe(x, t % 40, t % 13, False),
            bfe(x, t % 40, t % 13, True),
            bfi(x, y, t % 40, t % 13),
            x ^ y ^ z,
            x & y | x & z | y & z,
            int((signed_bytes(p) * signed_bytes(q)).sum()) + 5,
            (32 - x.bit_length()) + 100 * bin(y).count("1") + 10000 * (x & -x).bit_length(),
            int(format(x, "032b")[::-1], 2),
            ((y << 32 | x) << t % 32) >> 32,
            p * q >> 32,
            truncate(p, 7) + p - 13 * truncate(p, 13),
            x // 10 + y % 7,
        ]
        assert np.array_equal(out[t, :14], wrap32(expected)), t
        assert wide[t, 0] == p * q + 123456789012345 and wide[t, 1] == truncate(p * q, 77)


def test_conversions(instructions):
    x = torch.randn(64, 2) * torch.logspace(-3, 3, 64)[:, None]
    out = torch.zeros(64, 8, dtype=torch.int32)
    run(instructions, "conversions", 64, [x, out])

    def pairs(column, dtype):  # the first operand is the high half
        return out[:, column].contiguous().view(dtype).view(64, 2).flip(1)

    assert torch.equal(pairs(0, torch.bfloat16), x.bfloat16()) and torch.equal(
        pairs(1, torch.float16), x.half()
    )
    assert torch.equal(pairs(3, torch.bfloat16), x.clamp(min=0).bfloat16())
    bits = x[:, 0].contiguous().view(torch.int32)
    assert torch.equal(out[:, 2], (bits + 0x1000) & ~0x1FFF)
    assert torch.equal(out[:, 4], (x[:, 0] * 10).round().int()) and torch.equal(
        out[:, 5], (x[:, 0] * 10).floor().int()
    )
    saturated = (x[:, 1].double() * 1e10).clamp(0, 2**32 - 1).long()
    assert ((out[:, 6].long() & 0xFFFFFFFF) - saturated).abs().max() <= 2**10
    assert torch.equal(out[:, 7] == 2**31 - 1, x[:, 1] < 0)


def test_bf16_arithmetic(instructions):
    a, b, c = (torch.randn(64, 2).bfloat16() for _ in range(3))
    out = torch.zeros(64, 4, 2).bfloat16()
    run(instructions, "bf16_arithmetic", 64, [a, b, c, out])
    fused = rounded(a.double() * b.double() + c.double(), torch.bfloat16)
    assert torch.equal(out[:, 0], fused) and torch.equal(out[:, 1], fused.clamp(min=0))
    assert torch.equal(out[:, 2], torch.maximum(a, b)) and torch.equal(out[:, 3], -a)


def test_f16_arithmetic(instructions):
    a, b, c = (torch.randn(64, 2).half() for _ in range(3))
    out = torch.zeros(64, 5, 2).half()
    run(instructions, "f16_arithmetic", 64, [a, b, c, out])
    assert torch.equal(out[:, 0], rounded(a.double() * b.double() + c.double(), torch.float16))
    assert torch.equal(out[:, 1], a + b) and torch.equal(out[:, 2], a * b)
    assert torch.equal(out[:, 3], torch.maximum(a, b)) and torch.equal(out[:, 4], (a > b).half())


def test_control_flow(instructions, capfd):
    n = 250
    x, y = torch.randn(n), torch.zeros(n)
    run(instructions, "control_flow", 128, [x, y, n], blocks=2)
    for i in range(n):
        local = [0.0] * 8
        for k in range(8):
            local[(k + i) & 7] = x[i].item() * k
        s = sum(local[k] * (k + 1) for k in range(8))
        s = s * (i % 5) + [1, 2, 3, 4][i % 5 & 3]
        s = [s + 1, s * 2, s - 3, s * s, abs(s), -s][i % 6]
        assert y[i].item() == pytest.approx(s, rel=1e-5, abs=1e-4)
    assert "thread 3 of control_flow: 1.50" in capfd.readouterr().out
