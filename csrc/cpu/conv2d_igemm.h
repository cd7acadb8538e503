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

// Vectors of `lanes` elements, shared as evenly as can be by panels of `most`.
struct GemmPanels {
  int64_t vectors, count;
  GemmPanels(int64_t elements, int64_t lanes, int64_t most)
      : vectors(ceil_div(elements, lanes)), count(ceil_div(vectors, most)) {}
  int64_t first(int64_t i) const { return tile_start(i, vectors, count); }
  int width(int64_t i) const { return int(first(i + 1) - first(i)); }
  int widest() const { return width(count - 1); }
};

struct GemmPlan {
  TapConv* tc;
  GemmPanels panels;          // of the output channels of a group: the tiles of tc
  std::vector<GemmRun> runs;  // of all taps and channels, in the order of tc->taps
  bool from_memory;           // not a cache: see fetch_ahead()
  bool in_place;              // reads the input as it lies, not a copy of it
  int64_t column;             // elements of a column of the copy
  int64_t pixel, row;         // from an output's inputs to those of the next column, row
};

// Pixels are no lanes here, so that inputs of neighbours may lie apart: rows are copied whole, not
// split by residue, unless the taps skip some.
inline void join_residues(TapConv& t) {
  if (t.step_h * t.step_w == 1 || int64_t(t.slots.size()) < t.step_h * t.step_w) return;
  Slot first = t.slots[0];
  for (const Slot& slot : t.slots)
    first.h = std::min(first.h, slot.h), first.w = std::min(first.w, slot.w);
  t.halo_rows = t.halo_cols = 0;
  for (Tap& tap : t.taps) {
    tap.slot = 0, tap.row = tap.h - first.h, tap.col = tap.w - first.w;
    t.halo_rows = std::max(t.halo_rows, tap.row), t.halo_cols = std::max(t.halo_cols, tap.col);
  }
  t.slots = {first};
  t.copy_h = t.step_h, t.copy_w = t.step_w;
}

// Of the copy of a block.
inline int64_t copy_height(const TapConv& t, int64_t rows) {
  return (rows - 1) * t.copy_h + t.halo_rows + 1;
}
inline int64_t copy_width(const TapConv& t, int64_t columns) {
  return (columns - 1) * t.copy_w + t.halo_cols + 1;
}

// Cuts the problem into items (image, group, rows, columns, panels of output channels) whose input
// stays in a 1 MiB L2 beside the weights of a panel. `rows`: pixels of a tile.
inline void plan_gemm_blocks(TapConv& t, int64_t panels, int64_t rows) {
  constexpr int64_t kCopy = 64 << 10;
  t.tiles = panels;
  const int64_t slots = std::max<int64_t>(1, t.slots.size());
  // Whole tiles, where a row of outputs has so many.
  const int64_t pixels =
      ceil_div(std::max<int64_t>(kCopy / (t.C * slots * t.copy_h * t.copy_w), 1), rows) * rows;
  const int64_t halo_rows = ceil_div(t.halo_rows, t.copy_h);
  const int64_t halo_cols = ceil_div(t.halo_cols, t.copy_w);
  t.col_blocks = ceil_div(t.Q, std::max<int64_t>(rows, pixels / (1 + halo_rows)));
  if (t.P == 1) t.col_blocks = even_blocks(t.col_blocks, t.N * t.groups, ceil_div(t.Q, rows));
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.col_blocks = ceil_div(t.Q, t.block_cols);
  t.block_rows = std::clamp<int64_t>(pixels / (t.block_cols + halo_cols) - halo_rows, 1, t.P);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  // Rather than the inputs of shorter blocks, what they share is copied twice.
  t.row_blocks = even_blocks(t.row_blocks, t.N * t.groups * t.col_blocks,
                             std::max(t.row_blocks, t.P / (2 * (halo_rows + 1))));
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.pitch = copy_width(t, t.block_cols);
  t.plane = copy_height(t, t.block_rows) * t.pitch;
  t.block_tiles = t.tiles;
  share_tiles(t, 1);
}

// Sorts the taps by place(tap), the offset of their inputs, `channels` each; where these `merge`,
// neighbours make one run.
template <typename F>
std::vector<GemmRun> sort_into_runs(TapConv& t, int64_t channels, bool merge, const F& place) {
  std::sort(t.taps.begin(), t.taps.end(),
            [&](const Tap& a, const Tap& b) { return place(a) < place(b); });
  std::vector<GemmRun> runs;
  for (const Tap& tap : t.taps) {
    const int64_t at = place(tap);
    if (merge && !runs.empty() && runs.back().at + runs.back().count == at)
      runs.back().count += channels;
    else
      runs.push_back({at, channels});
  }
  return runs;
}

// `size`: bytes of an element of the copy; `can_stay`: the input's elements have that very type.
inline GemmPlan plan_igemm(TapConv& t, const View& in, bool can_stay, int64_t size,
                           const GemmPanels& panels, int64_t rows, int64_t lanes) {
  constexpr int64_t kAlias = 4096, kWays = 8;  // lines so far apart share an L1 set
  join_residues(t);
  plan_gemm_blocks(t, panels.count, rows);
  GemmPlan plan{&t, panels};
  plan.from_memory = outgrow_caches(t.N * in.n * size);
  // A line of weights that is in use and the next one pass through the set of a tile's pixels.
  const bool apart = t.step_w * in.w * size % kAlias != 0 || rows + 2 <= kWays;
  plan.in_place = can_stay && in.c == 1 && reads_no_padding(t) && apart;
  plan.column = t.C * t.copy_w * size % kAlias ? t.C : t.C + lanes;
  plan.pixel = plan.in_place ? t.step_w * in.w : t.copy_w * plan.column;
  plan.row = plan.in_place ? t.step_h * in.h : t.copy_h * t.pitch * plan.column;
  plan.runs = sort_into_runs(t, t.C, true, [&](const Tap& tap) {
    return plan.in_place ? tap.h * in.h + tap.w * in.w
                         : (tap.slot * t.plane + tap.row * t.pitch + tap.col) * plan.column;
  });
  return plan;
}

// The weight gradient as an implicit GEMM: an item owns some rows of dW (channels at all taps) and
// panels of output channels, for its share of the chunks (rows of an image); the shares are summed
// afterwards, in order.
struct GemmGradPlan {
  TapConv tc;
  GemmPanels panels;              // of the output channels of a group
  std::vector<GemmRun> runs;      // the rows: elements side by side of what a pixel of dY meets
  bool x_in_place, dy_in_place;   // read as they lie, not copied
  bool fetch_x, fetch_dy;         // ahead, see fetch_ahead()
  int64_t x_pixel;                // elements of a pixel of the copy of x
  int64_t x_row, x_step, x_line;  // of x from row to row, from pixel to pixel, line to line
  int64_t dy_step;                // of dY from pixel to pixel
  int64_t item_channels, item_panels, c_items, k_items, splits, chunks;
  // Most output channels of an item.
  int64_t item_outputs(int64_t lanes) const {
    return lanes * std::min(panels.vectors, item_panels * panels.widest());
  }
};

// `can_stay`: elements of both tensors are of the type that the sums have, `size` bytes.
inline GemmGradPlan plan_igemm_weight_grad(const ConvParams& p, const View& grad, const View& input,
                                           bool can_stay, int64_t size, const GemmPanels& panels,
                                           int64_t rows, int64_t lanes) {
  constexpr int64_t kRows = 256, kSums = 32 << 10, kChannels = 64, kItems = 16, kFewItems = 8;
  constexpr int64_t kMaxPartials = 16 << 20, kAlias = 4096, kLine = 64, kApart = 512;
  GemmGradPlan g{fprop_taps(p), panels};
  TapConv& t = g.tc;
  g.fetch_x = outgrow_caches(t.N * input.n * size);
  g.fetch_dy = outgrow_caches(t.N * grad.n * size);
  join_residues(t);
  const int64_t taps = t.taps.size();
  // Which L2 keeps beside the next ones; tiles of short vectors come back to a line so soon that it
  // had better be in L1.
  const bool short_vectors = lanes * size < kLine, both_nhwc = input.c == 1 && grad.c == 1;
  const int64_t pixels_at_once = taps > 1 ? 384 : short_vectors && both_nhwc ? 112 : 256;
  t.col_blocks = ceil_div(t.Q, pixels_at_once);
  if (t.P == 1) t.col_blocks = even_blocks(t.col_blocks, t.N, t.col_blocks * 2);
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.col_blocks = ceil_div(t.Q, t.block_cols);
  t.pitch = copy_width(t, t.block_cols);
  t.row_blocks = ceil_div(t.P, std::clamp<int64_t>(pixels_at_once / t.block_cols, 1, t.P));
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.plane = copy_height(t, t.block_rows) * t.pitch;
  g.chunks = t.N * t.row_blocks * t.col_blocks;
  // Planes of few channels are copied, so that those of neighbouring taps make long rows, unless
  // they lie that way; and what lies a multiple of kAlias apart.
  const int64_t apart = (input.c == 1 ? t.step_w * input.w : input.c) * size;
  const bool joined = taps == 1 || t.C >= 2 * rows || (input.c == 1 && input.w == t.C);
  const bool adjacent = input.c == 1 || t.step_w * input.w == 1;
  g.x_in_place = can_stay && reads_no_padding(t) && apart % kAlias && joined && adjacent;
  // Items of other outputs copy the same inputs: rather fewer channels of all outputs. Measured on
  // a Zen 4, it does not pay where vectors are short.
  const int64_t all = panels.vectors * lanes;
  const bool copies = taps == 1 && !g.x_in_place && !short_vectors;
  const int64_t channels = copies ? std::min(kRows, kSums / all) : kRows / taps;
  g.c_items = ceil_div(t.C, std::max(kChannels, channels));
  const int64_t outputs = kSums / (ceil_div(t.C, g.c_items) * taps);
  g.k_items = ceil_div(all, std::max(kChannels, outputs));
  const int64_t sums = t.groups * all * taps * t.C;
  auto items = [&] { return t.groups * g.c_items * g.k_items; };
  auto splits = [&](int64_t wanted) {
    return std::clamp<int64_t>(std::min(ceil_div(wanted, items()), kMaxPartials / sums), 1,
                               std::max<int64_t>(1, g.chunks));
  };
  g.splits = splits(kItems);
  // Where the shares' sums are no small part of the operands, they cost more than operands that
  // some items read anew.
  if (g.splits > 1 && 4 * g.splits * sums > t.N * t.groups * (t.C * t.H * t.W + t.M * t.P * t.Q)) {
    while (items() < kFewItems && t.C >= 2 * kChannels * g.c_items) g.c_items *= 2;
    while (items() < kFewItems && all >= 2 * kChannels * g.k_items) g.k_items *= 2;
    g.splits = splits(kFewItems);
  }
  g.item_channels = ceil_div(t.C, g.c_items);
  if (g.c_items > 1) g.item_channels = ceil_div(g.item_channels, lanes) * lanes;
  g.c_items = ceil_div(t.C, g.item_channels);
  g.item_panels = ceil_div(panels.count, g.k_items);
  g.k_items = ceil_div(panels.count, g.item_panels);
  // Pixels kApart apart would share few sets of L1.
  const bool alike = g.item_channels * size % kApart == 0;
  g.x_pixel = g.item_channels + (alike ? kLine / size : 0);
  g.dy_in_place =
      can_stay && grad.c == 1 && t.M % lanes == 0 && (t.block_rows == 1 || t.col_blocks == 1);
  g.x_row = g.x_in_place ? input.c : 1;
  g.x_step = g.x_in_place ? t.step_w * input.w : t.copy_w * g.x_pixel;
  g.x_line = g.x_in_place ? t.step_h * input.h : t.copy_h * t.pitch * g.x_pixel;
  g.dy_step = g.dy_in_place ? grad.w : g.item_outputs(lanes);
  const bool merge = g.c_items == 1 && g.x_row == 1;
  g.runs = sort_into_runs(t, g.item_channels, merge, [&](const Tap& tap) {
    return g.x_in_place ? tap.h * input.h + tap.w * input.w
                        : (tap.slot * t.plane + tap.row * t.pitch + tap.col) * g.x_pixel;
  });
  return g;
}

}  // namespace cnnkern
