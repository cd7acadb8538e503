// Layout of the fused block's gradient with images as lanes: what an item keeps in the L2 cache.
#pragma once
#include "act_pool2d.h"
#include "conv2d_chwn.h"

namespace cnnkern {

// What an item may take, in vectors of 64 bytes: a 1 MiB L2.
constexpr int64_t kBlockGradVectors = (1 << 20) / 64;

struct BlockGradPlan {
  ChwnPlan dgrad;  // of whole planes
  TapConv x;       // the copy of the input that the weight gradient reads
  int64_t channels;
  // dZ, the gradient of the convolution's output, in vectors: rows and planes, and where (0, 0)
  // lies. For the input gradient there are zeros around it.
  int64_t pitch, plane, origin;
};

inline BlockGradPlan plan_block_grad(const ConvParams& p, SumOrder order, bool need_input,
                                     int64_t max_tile, int64_t lanes) {
  BlockGradPlan g{plan_chwn(dgrad_taps(p, 0, 0), order, max_tile, lanes),
                  fprop_taps(p),
                  p.K,
                  p.Q,
                  p.P * p.Q,
                  0};
  g.x.pitch = g.x.Q + g.x.halo_cols;
  g.x.plane = (g.x.P + g.x.halo_rows) * g.x.pitch;
  TapConv& t = g.dgrad.tc;
  t.block_tiles = t.tiles, t.tile_blocks = 1;
  t.block_rows = t.P, t.row_blocks = 1;
  plan_chwn_copy(g.dgrad, lanes);
  t.block_channels = t.C;
  if (need_input) {
    g.pitch = t.pitch, g.plane = t.plane;
    g.origin = -t.slots[0].h * t.pitch - t.slots[0].w;
  }
  return g;
}

// Vectors of a work item: dZ; the input; its gradient; pooled gradients, outputs and codes.
struct BlockGradSpace {
  int64_t dz, x, dx, pooled;
  int64_t total() const { return dz + x + dx + 3 * pooled; }
};
inline BlockGradSpace block_grad_space(const BlockGradPlan& g, const PoolParams& pool,
                                       bool need_input, int64_t lanes) {
  const TapConv& t = g.dgrad.tc;
  return {g.channels * g.plane, g.x.C * g.x.plane, need_input ? t.M * t.acc_stride / lanes : 0,
          g.channels * pool.P * pool.Q};
}

// True if the gradient can be computed that way, with what an item needs in a 1 MiB L2. Max pools
// overwrite what the derivatives of gelu and silu are taken at.
inline bool supports_block_grad(const ConvParams& p, const ActPool& ap, bool need_input) {
  if (!supports_conv2d_chwn(p).empty() || p.groups != 1) return false;
  const int64_t rows = p.H + p.pad_top + p.pad_bottom, columns = p.W + p.pad_left + p.pad_right;
  if (std::min(p.H, p.W) < 1 || std::max(rows, columns) > kBlockGradVectors) return false;
  if (ap.kind == PoolKind::kMax && ap.saves_conv()) return false;
  if (need_input &&
      (p.mode != PaddingMode::kZeros || std::max(p.pad_top, p.pad_bottom) > (p.R - 1) * p.dil_h ||
       std::max(p.pad_left, p.pad_right) > (p.S - 1) * p.dil_w))
    return false;
  const BlockGradPlan g = plan_block_grad(p, SumOrder::kDirect, need_input, 1, 16);
  return block_grad_space(g, ap.pool, need_input, 16).total() <= kBlockGradVectors;
}

// What an item needs for the points of Winograd's tiles, in vectors; the last ones hold offsets.
inline int64_t winograd_grad_space(const ConvParams& p) {
  const int64_t tiles = p.P / 2 * (p.Q / 2);
  return 6 * (p.P / 2 * p.C * p.W + tiles * (p.C + p.K)) + p.C;
}

// Of what suits_image_winograd(): true if the points fit beside the input, its gradient and dZ.
inline bool grads_by_winograd(const ConvParams& p) {
  const bool pads = p.pad_top || p.pad_bottom || p.pad_left || p.pad_right;
  const int64_t planes = 2 * p.C * p.H * p.W + p.K * p.P * p.Q;
  return !pads && winograd_grad_space(p) + planes <= kBlockGradVectors;
}

// What the kernel writes; null what nobody asks for.
struct BlockGrads {
  View input;
  void *weight, *bias;
};

}  // namespace cnnkern
