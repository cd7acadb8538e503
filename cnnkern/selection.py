"""What computes a convolution on CUDA when algo is "auto": CUDA C++ or Triton, and why.

CUDA C++ issues mma.sync, which every tensor core since sm_80 has. sm_90 and sm_100 reach their peak
with wgmma and tcgen05 alone, which read their operands from shared memory; those Triton emits. So
large products of 16-bit types, in the layout that is loaded in vectors, go to Triton there. sm_120
has mma.sync only. The rule follows from the instructions; no GPU has been timed for it.

The forward op decides, and its gradients stay with it. Pools are bound by memory, and CUDA C++.

float32 is multiplied exactly, unless PyTorch's settings ask for tf32 by name (`asks_for_tf32`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from cnnkern import _C
from cnnkern.ops import DEFAULT, TRITON, TRITON_ALGOS, Overloads, is_nhwc

HAS_TRITON = importlib.util.find_spec("triton") is not None
WARPGROUP_ARCHS = (90, 100, 103)
AUTO_ALGOS = ("auto", "auto_tf32")
CHANNELS = 64  # of a group: a step of the widest tile
TILE, TILES = 128, 128  # results a side, and tiles: about one for each SM


def conv2d_algo(algo: str, input: Tensor) -> str:
    """Let "auto" put float32 on tensor cores where PyTorch's settings ask for it."""
    is_float32 = input.is_cuda and input.dtype == torch.float32
    return "auto_tf32" if algo == "auto" and is_float32 and asks_for_tf32() else algo


@torch.compiler.assume_constant_result  # torch.compile reads the setting when it traces
def asks_for_tf32() -> bool:
    """Tell whether PyTorch is set to compute float32 convolutions in tf32.

    `torch.backends.fp32_precision` or `torch.backends.cudnn.fp32_precision` has to be "tf32", and
    `torch.backends.cudnn.conv.fp32_precision` nothing else. The last alone does not count, nor
    `allow_tf32`: they say tf32 from the start, and nobody has asked for that.
    """
    cudnn = torch.backends.cudnn
    return cudnn.fp32_precision == cudnn.conv.fp32_precision == "tf32"


def conv2d_ops(
    algo: str, input: Tensor, weight: Tensor, stride: Sequence[int], groups: int,
    transposed: bool = False,
) -> Overloads:  # fmt: skip
    """Choose the overload that computes a convolution, or a transposed one."""
    if algo in TRITON_ALGOS:
        return TRITON
    if algo not in AUTO_ALGOS or not input.is_cuda or not HAS_TRITON:
        return DEFAULT
    dtype = input.dtype
    if torch.is_autocast_enabled("cuda") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cuda")
    # Most calls are spared the rest; what is no problem at all, the op refuses.
    if dtype.itemsize != 2 or input.dim() != 4 or weight.dim() != 4 or groups < 1:
        return DEFAULT
    N, C, H, W = input.shape
    steps = max(1, stride[0] * stride[1])
    pixels = N * H * W * steps if transposed else N * H * W // steps
    channels = weight.size(1) * groups if transposed else weight.size(0)
    reason = why_not_triton(
        dtype, is_nhwc(input), groups, pixels, channels, C,
        compute_capability(input.device),
    )  # fmt: skip
    return DEFAULT if reason else TRITON


def why_not_triton(
    dtype: torch.dtype, channels_last: bool, groups: int, pixels: int, written: int, summed: int,
    arch: int,
) -> str:  # fmt: skip
    """Say why "auto" leaves a convolution to CUDA C++; nothing if it does not."""
    if arch not in WARPGROUP_ARCHS:
        archs = ", ".join(f"sm_{a}" for a in WARPGROUP_ARCHS)
        return f"is taken where it emits wgmma or tcgen05, on {archs}, not on sm_{arch}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"is taken for float16 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    if not channels_last:
        return "is taken for channels_last input"
    narrowest = min(written, summed) // groups
    if narrowest < CHANNELS or written // groups % 8 or summed // groups % 8:
        return (
            f"is taken for groups of at least {CHANNELS} channels, a multiple of 8, "
            f"not for {summed // groups} and {written // groups}"
        )
    tiles = groups * -(-pixels // TILE) * -(-(written // groups) // TILE)
    if tiles < TILES:
        return f"is taken for at least {TILES} tiles of {TILE} x {TILE} results, not for {tiles}"
    return ""


def cuda_conv2d(
    pass_: str, dtype: str, input: Sequence[int], weight: Sequence[int], *, groups: int = 1,
    channels_last: bool = False, weight_channels_last: bool = False, arch: int = 80,
    algo: str = "auto", **geometry,
) -> tuple[str, dict[str, str]]:  # fmt: skip
    """Explain what "auto" runs on a GPU, which need not be there.

    Args:
        pass_: fprop, dgrad or wgrad.
        algo: "auto" or "auto_tf32".
        geometry: stride, padding, dilation and padding_mode, as the raw op takes them.

    Returns:
        The algorithm, and for each of CUDA C++'s why it does not apply, for Triton why it is not
        taken; "" where it applies, or is.
    """
    chosen, reasons = _C.cuda_conv2d_selection(
        pass_, dtype, input, weight, groups=groups, channels_last=channels_last,
        weight_channels_last=weight_channels_last, arch=arch, algo=algo, **geometry,
    )  # fmt: skip
    N, K, P, Q = _C.conv2d_output_size(
        "conv2d", input, weight,
        *(geometry.get(name, value) for name, value in
          (("stride", [1, 1]), ("padding", [0] * 4), ("dilation", [1, 1]))),
        groups, geometry.get("padding_mode", "zeros"),
    )  # fmt: skip
    reasons["triton"] = why_not_triton(
        getattr(torch, dtype), channels_last, groups, N * P * Q, K, input[1], arch
    )
    return chosen if reasons["triton"] else "triton", reasons


def compute_capability(device: torch.device) -> int:
    """Return 80 for compute capability 8.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
