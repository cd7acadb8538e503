"""Convolutions with one channel a group: sums of products, without a matrix product to pad.

Forward and gradient of the input are one kernel, as in conv2d_gather: each result gathers its
taps with fused multiply-adds. NHWC tiles run along the channels in 16-byte accesses; NCHW tiles run
along the pixels, whose index arithmetic 4 channels share. Overlapping windows meet in L1.
"""

from __future__ import annotations

import triton.language as tl

from cnnkern.triton_kernels.activation import activate
from cnnkern.triton_kernels.conv2d_gather import padded_index, phase_taps
from cnnkern.triton_kernels.launch import jit


@jit
def conv2d_depthwise_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, has_bias, bias_stride,
    batch, x_height, x_width, y_height, y_width, x_channels, y_channels, groups,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, w_group, w_y, w_x, w_r, w_s,
    taps_h, taps_w, mode, pad_h, pad_w, dil_h, dil_w, walk_h, walk_w, move_h, move_w,
    phases_h, phases_w, stride_h, stride_w, gcd_h, gcd_w, inverse_h, inverse_w, step_h, step_w,
    bundle_size, pixel_blocks, channel_blocks,
    ACC: tl.constexpr, BIG: tl.constexpr, PAD: tl.constexpr, ACT: tl.constexpr,
    MAJOR: tl.constexpr, VEC: tl.constexpr, EQUAL: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y, [CHANNELS, PIXELS], for one phase; arguments as in conv2d_gather.

    EQUAL says that there are as many channels in y as in x: as many as groups.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    # Neighbours in time are neighbours in the image.
    pixel_block, outer = pid % pixel_blocks, pid // pixel_blocks
    channel_block, phase = outer % channel_blocks, outer // channel_blocks
    phase_h, phase_w = phase // phases_w, phase % phases_w
    if MAJOR == "channels":
        x_n, x_h, x_w, x_c = x_n * VEC, x_h * VEC, x_w * VEC, 1
        y_n, y_h, y_w, y_c = y_n * VEC, y_h * VEC, y_w * VEC, 1

    first_r, count_h, top = phase_taps(
        phase_h.to(INDEX), pad_h, stride_h, dil_h, gcd_h, inverse_h, step_h, taps_h
    )
    first_s, count_w, left = phase_taps(
        phase_w.to(INDEX), pad_w, stride_w, dil_w, gcd_w, inverse_w, step_w, taps_w
    )
    height = (y_height - phase_h + stride_h - 1) // stride_h
    width = (y_width - phase_w + stride_w - 1) // stride_w
    m = pixel_block.to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    image, row, col = m // (height * width), m // width % height, m % width
    in_m = m < tl.cast(batch, INDEX) * height * width
    h0, w0 = row * walk_h + top, col * walk_w + left

    y = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    if EQUAL:
        in_y, channel = y < groups * VEC, y
        w_row = y.to(INDEX) * w_group
    else:
        in_y, channel = y < groups * y_channels, y // y_channels * x_channels
        w_row = (y // y_channels).to(INDEX) * w_group + (y % y_channels).to(INDEX) * w_y

    acc = tl.zeros((CHANNELS, PIXELS), ACC)
    for r in range(count_h):
        h = h0 + r * move_h
        if PAD:
            h = padded_index(h, x_height, mode)
        in_h = in_m & (h >= 0) & (h < x_height)
        for s in range(count_w):
            w = w0 + s * move_w
            if PAD:
                w = padded_index(w, x_width, mode)
            inside = in_h & (w >= 0) & (w < x_width)
            offset = image.to(INDEX) * x_n + h.to(INDEX) * x_h + w.to(INDEX) * x_w
            w_offset = w_row + (first_r + r * step_h).to(INDEX) * w_r
            w_offset += (first_s + s * step_w).to(INDEX) * w_s
            # More than one channel of x is the gradient of a depthwise multiplier.
            for c in range(1 if EQUAL else x_channels):
                weight = tl.load(w_ptr + w_offset + c * w_x, mask=in_y, other=0.0)
                x = tl.load(
                    x_ptr + offset[None, :] + ((channel + c).to(INDEX) * x_c)[:, None],
                    mask=inside[None, :] & in_y[:, None], other=0.0,
                )  # fmt: skip
                acc += weight.to(ACC)[:, None] * x.to(ACC)

    bias = tl.load(bias_ptr + y.to(INDEX) * bias_stride, mask=in_y & (has_bias != 0), other=0.0)
    acc += bias.to(ACC)[:, None]
    if ACT == "gelu" or ACT == "silu":
        # As if the input of these, which backward asks for, had been saved on the way.
        acc = acc.to(y_ptr.dtype.element_ty).to(ACC)
    acc = activate(acc, ACT)
    row, col = row * stride_h + phase_h, col * stride_w + phase_w
    offset = image.to(INDEX) * y_n + row.to(INDEX) * y_h + col.to(INDEX) * y_w
    tl.store(
        y_ptr + offset[None, :] + (y.to(INDEX) * y_c)[:, None],
        acc.to(y_ptr.dtype.element_ty), mask=in_m[None, :] & in_y[:, None],
    )  # fmt: skip
