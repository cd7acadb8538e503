// How the weight gradient of a convolution is cut for AVX512-BF16's products of pairs of pixels.
#pragma once
#include "isa.h"
#include "tap_conv.h"

namespace cnnkern {

// An item owns some channels and some pairs of output vectors of dW and walks over its share of the
// chunks (images, or rows of one); where there are several shares, they are summed afterwards, in
// order.
struct DotGradPlan {
  TapConv tc;                       // its slots are the planes of the copy
  bool in_place, paired;            // inputs are read as they lie; copied as pairs of pixels
  bool flat;                        // the pixels of all rows of a chunk make one run
  int64_t images, chunks;           // images of a chunk
  int64_t c_blocks, pairs;          // all of a group
  int64_t item_blocks, item_pairs;  // of an item
  int64_t c_items, k_items, splits;
  int64_t tile;  // elements of partials of a channel block and a pair

  int64_t items() const { return tc.groups * c_items * k_items; }  // of a split
  int64_t item_sums() const { return item_pairs * item_blocks * tile; }
};

// Gives every column of taps a plane of its own, and every tap if `all`: then nothing lies between
// the rows of a plane.
inline void spread_planes(TapConv& t, bool all) {
  std::map<std::pair<int64_t, int64_t>, int64_t> index;
  std::vector<Slot> slots;
  for (Tap& tap : t.taps) {
    const Slot slot{all ? tap.h : t.slots[tap.slot].h, tap.w};
    const auto [entry, is_new] = index.try_emplace({slot.h, slot.w}, int64_t(slots.size()));
    if (is_new) slots.push_back(slot);
    tap.slot = entry->second, tap.col = 0;
    if (all) tap.row = 0;
  }
  t.slots = slots, t.halo_cols = 0;
  if (all) t.halo_rows = 0;
}

inline DotGradPlan plan_dots_weight_grad(const ConvParams& p, const View& input, int64_t lanes) {
  constexpr int64_t kPixels = 400, kSums = 512 << 10, kChannels = 64, kRows = 512;
  constexpr int64_t kItems = 16, kFewItems = 8, kChunks = 8;
  constexpr int64_t kMaxPartials = 16 << 20, kShortRow = 32, kAlias = 2048;
  DotGradPlan g{fprop_taps(p)};
  TapConv& t = g.tc;
  const int64_t taps = t.taps.size();
  t.col_blocks = ceil_div(t.Q, kPixels);
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.row_blocks = ceil_div(t.P, std::clamp<int64_t>(kPixels / t.block_cols, 1, t.P));
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  g.images = std::clamp<int64_t>(kPixels / (t.P * t.Q), 1, t.N);
  g.chunks = ceil_div(t.N, g.images) * t.row_blocks * t.col_blocks;
  g.in_place = taps == 1 && t.P == 1 && t.step_w == 1 && input.w == 1 && reads_no_padding(t) &&
               input.c % kAlias != 0;
  g.paired = !g.in_place && input.c == 1 && t.C >= lanes;
  g.flat = g.in_place || g.paired || (t.Q < kShortRow && t.M >= 4 * lanes);
  if (g.flat) spread_planes(t, g.paired && (t.block_cols % 2 != 0 || t.col_blocks > 1));
  t.pitch = t.block_cols + t.halo_cols;
  t.plane = (t.block_rows + t.halo_rows) * t.pitch;
  g.c_blocks = ceil_div(t.C, lanes), g.pairs = ceil_div(t.M, 2 * lanes);
  const int64_t channels = std::max(kChannels, kRows / taps / lanes * lanes);
  g.c_items = ceil_div(t.C, channels);
  g.item_blocks = ceil_div(g.c_blocks, g.c_items);
  const int64_t outputs = std::max(kChannels, kSums / (g.item_blocks * lanes * taps));
  g.k_items = ceil_div(t.M, outputs);
  g.item_pairs = ceil_div(g.pairs, g.k_items);
  g.c_items = ceil_div(g.c_blocks, g.item_blocks), g.k_items = ceil_div(g.pairs, g.item_pairs);
  g.tile = taps * lanes * 2 * lanes;
  // Shares of less than kChunks would spend their time on partials.
  const int64_t few = ceil_div(kFewItems, g.items());
  const int64_t shares = std::max<int64_t>(1, g.chunks / kChunks / few) * few;
  const int64_t splits =
      std::min({shares, kItems / g.items(), kMaxPartials / (g.items() * g.item_sums())});
  g.splits = std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, g.chunks));
  return g;
}

}  // namespace cnnkern
