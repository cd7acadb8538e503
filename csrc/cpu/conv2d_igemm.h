// How an implicit GEMM of a TapConv is cut and what its inner loop walks over, whatever the
// instruction set.
#pragma once

#include "tap_conv.h"

namespace cnnkern {

// Consecutive elements of the reduction: `count` of them, `at` elements behind a pixel's first.
struct GemmRun {
  int64_t at, count;
};

// C channels in blocks of `lanes`, which begin `block` elements apart.
inline std::vector<GemmRun> channel_runs(int64_t C, int64_t lanes, int64_t block) {
  std::vector<GemmRun> runs;
  for (int64_t c = 0; c < C; c += lanes)
    runs.push_back({c / lanes * block, std::min(lanes, C - c)});
  return runs;
}

struct GemmPlan {
  TapConv* tc;
  std::vector<GemmRun> runs;  // of all taps and channels, in the order of tc->taps
  bool in_place;              // reads the input as it lies, not a copy of it
  int64_t pixel, row;         // elements from an output's inputs to those of the next column, row
};

// True if no tap of any output reads padding.
inline bool reads_no_padding(const TapConv& t) {
  for (const Tap& tap : t.taps)
    if (tap.h < 0 || tap.w < 0 || (t.P - 1) * t.step_h + tap.h >= t.H ||
        (t.Q - 1) * t.step_w + tap.w >= t.W)
      return false;
  return true;
}

// Cuts the problem into items (image, group, rows, columns, pairs of output vectors) whose input
// stays in a 1 MiB L2 beside the weights of a pair. `rows`: pixels of a tile.
inline void plan_gemm_blocks(TapConv& t, int64_t rows, int64_t lanes) {
  constexpr int64_t kCopy = 64 << 10, kMinItems = 8;
  t.tiles = ceil_div(t.M, 2 * lanes);
  const int64_t slots = std::max<int64_t>(1, t.slots.size());
  const int64_t pixels = std::max<int64_t>(kCopy / (t.C * slots), rows);
  t.col_blocks = ceil_div(t.Q, std::max<int64_t>(rows, pixels / (1 + t.halo_rows)));
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.pitch = t.block_cols + t.halo_cols;
  t.block_rows = std::clamp<int64_t>(pixels / t.pitch - t.halo_rows, 1, t.P);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.plane = (t.block_rows + t.halo_rows) * t.pitch;
  // A small batch: more items by fewer output channels each.
  t.block_tiles = t.tiles;
  while (t.N * t.groups * t.row_blocks * t.col_blocks * ceil_div(t.tiles, t.block_tiles) <
             kMinItems &&
         t.block_tiles > 1)
    t.block_tiles = ceil_div(t.block_tiles, 2);
  t.tile_blocks = ceil_div(t.tiles, t.block_tiles);
}

// `size`: bytes of an element of the copy; `can_stay`: the input's elements have that very type.
inline GemmPlan plan_igemm(TapConv& t, const View& in, bool can_stay, int64_t size, int64_t rows,
                           int64_t lanes) {
  constexpr int64_t kAlias = 4096;  // lines so far apart share an L1 set, which has room for 8
  plan_gemm_blocks(t, rows, lanes);
  GemmPlan plan{&t};
  plan.in_place = can_stay && in.c == 1 && reads_no_padding(t) && t.step_w * in.w * size % kAlias;
  const int64_t pixel = plan.in_place ? in.w : t.C * size % kAlias ? t.C : t.C + lanes;
  plan.pixel = plan.in_place ? t.step_w * in.w : pixel;
  plan.row = plan.in_place ? t.step_h * in.h : t.pitch * pixel;
  auto place = [&](const Tap& tap) {
    return plan.in_place ? tap.h * in.h + tap.w * in.w
                         : (tap.slot * t.plane + tap.row * t.pitch + tap.col) * pixel;
  };
  std::sort(t.taps.begin(), t.taps.end(),
            [&](const Tap& a, const Tap& b) { return place(a) < place(b); });
  for (const Tap& tap : t.taps) {
    const int64_t at = place(tap);
    if (!plan.runs.empty() && plan.runs.back().at + plan.runs.back().count == at)
      plan.runs.back().count += t.C;
    else
      plan.runs.push_back({at, t.C});
  }
  return plan;
}

}  // namespace cnnkern
