// Blocking of convolutions whose lanes are images: a block of as many images as a vector has lanes
// is turned into planes of vectors, [channel][row][column][image], the layout CHWN. There every
// output is a vector, whatever the size of a plane, and only the products that count are computed.
#pragma once
#include "conv2d_select.h"
#include "tap_conv.h"

namespace cnnkern {

// Whose order of summation a convolution keeps, so that an image gets the same bits alone, where
// that algorithm computes it, as in a batch: direct's channel by channel with the bias last, or
// igemm's tap by tap, from the first row on, with the bias first.
enum class SumOrder { kDirect, kIgemm };

inline SumOrder sum_order(const ConvParams& p, bool nhwc, ConvPass pass) {
  return prefers_conv2d_igemm(p, nhwc, pass) ? SumOrder::kIgemm : SumOrder::kDirect;
}

// True if Winograd's F(2x2, 5x5) pays with images as lanes: so few channels leave its transforms
// too much of the work. Outputs are whole tiles. Measured on a 2-core Zen 4.
inline bool suits_image_winograd(const ConvParams& p, DType dtype) {
  const bool plain = p.R == 5 && p.S == 5 && p.stride_h == 1 && p.stride_w == 1 && p.dil_h == 1 &&
                     p.dil_w == 1 && p.groups == 1;
  return plain && dtype == DType::kFloat32 && p.C >= 4 && p.K >= 4 && p.P % 2 == 0 && p.Q % 2 == 0;
}

struct ChwnPlan {
  TapConv tc;      // its N counts blocks of images
  int64_t images;  // of the batch
  SumOrder order;
};

// Floats of a copy and of accumulators that stay in a 1 MiB L2 together; tuned on a 2-core Zen 4.
constexpr int64_t kChwnCopy = 96 << 10, kChwnAccumulators = 96 << 10;

// Lays out the copy and the accumulators of a block of block_rows x Q outputs.
inline void plan_chwn_copy(ChwnPlan& plan, int64_t lanes) {
  constexpr int64_t kReduction = 512;
  TapConv& t = plan.tc;
  t.plane = (t.block_rows + t.halo_rows) * t.pitch;
  t.acc_stride = t.block_rows * t.Q * lanes;
  const int64_t taps = t.taps.size();
  const int64_t channels = std::min(kReduction / taps, kChwnCopy / (t.plane * lanes));
  t.block_channels = plan.order == SumOrder::kIgemm ? t.C : std::clamp<int64_t>(channels, 1, t.C);
}

// Cuts the problem into items (block of images, group, rows, channel tiles) whose copy and
// accumulators stay in the L2. The stride must be 1.
inline ChwnPlan plan_chwn(const TapConv& tc, SumOrder order, int64_t max_tile, int64_t lanes) {
  constexpr int64_t kItems = 8;
  ChwnPlan plan{tc, tc.N, order};
  TapConv& t = plan.tc;
  if (order == SumOrder::kIgemm)
    std::sort(t.taps.begin(), t.taps.end(),
              [](const Tap& a, const Tap& b) { return std::pair(a.h, a.w) < std::pair(b.h, b.w); });
  t.N = ceil_div(tc.N, lanes);
  t.tiles = ceil_div(t.M, max_tile);
  const int64_t row = t.Q * lanes;
  t.block_tiles = std::clamp<int64_t>(kChwnAccumulators / (row * max_tile), 1, t.tiles);
  t.block_tiles = ceil_div(t.tiles, ceil_div(t.tiles, t.block_tiles));
  t.tile_blocks = ceil_div(t.tiles, t.block_tiles);
  const int64_t channels = std::min(t.M, t.block_tiles * max_tile);
  t.col_blocks = 1, t.block_cols = t.Q, t.pitch = t.Q + t.halo_cols;
  int64_t rows = std::clamp<int64_t>(kChwnAccumulators / (channels * row), 1, t.P);
  if (order == SumOrder::kIgemm)  // whose copy has all channels
    rows = std::clamp<int64_t>(kChwnCopy / (t.C * t.pitch * lanes) - t.halo_rows, 1, rows);
  t.row_blocks = ceil_div(t.P, rows);
  while (t.N * t.groups * t.tile_blocks * t.row_blocks < kItems &&
         t.P / t.row_blocks > 4 * (t.halo_rows + 1))
    t.row_blocks *= 2;
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  plan_chwn_copy(plan, lanes);
  return plan;
}

}  // namespace cnnkern
