// How the weight gradient of a convolution is cut for AMX's tiles of 16 rows x 32 pixels.
#pragma once
#include "conv2d_amx.h"

namespace cnnkern {

// An item owns some channels and some pairs of output vectors of dW and walks over its share of the
// chunks (images, or rows of one); where there are several shares, they are summed afterwards, in
// order.
struct AmxGradPlan {
  TapConv tc;
  int64_t images, chunks;  // images of a chunk
  int64_t image_pixels;    // from an image of a chunk to the next
  int64_t pixels;          // of a chunk, in whole steps
  int64_t pairs;           // all of a group
  int64_t item_channels, item_pairs;
  int64_t c_items, k_items, splits;
  int64_t rows;   // (channel, tap) of an item, in whole tiles
  int64_t x_row;  // elements from one to the next

  int64_t items() const { return tc.groups * c_items * k_items; }  // of a split
  int64_t pair_sums() const { return rows * 2 * kAmxRows; }
  int64_t item_sums() const { return item_pairs * pair_sums(); }
};

// Long chunks make little of loading and storing sums; what an item copies of one, and its sums,
// stay in the L2 cache. Tuned on a Sapphire Rapids.
inline void plan_amx_grad_chunks(AmxGradPlan& g) {
  constexpr int64_t kPixels = 768, kFewPixels = 192;
  TapConv& t = g.tc;
  const int64_t each = t.N * g.items();
  auto blocks = [&](int64_t size, int64_t most, int64_t least, int64_t copies) {
    const int64_t count = ceil_div(size, most);
    return count == 1 ? 1 : even_blocks(count, each * copies, std::max(count, size / least));
  };
  t.col_blocks = blocks(t.Q, kPixels, kFewPixels, t.P);
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.col_blocks = ceil_div(t.Q, t.block_cols);
  // A chunk of several rows has all of their columns.
  const int64_t rows = t.col_blocks > 1 ? 1 : std::clamp<int64_t>(kPixels / t.block_cols, 1, t.P);
  t.row_blocks = blocks(t.P, rows, ceil_div(kFewPixels, t.block_cols), t.col_blocks);
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.pitch = t.block_cols + t.halo_cols;
  t.plane = (t.block_rows + t.halo_rows) * t.pitch;
  g.image_pixels = ceil_div(t.block_rows * t.block_cols, 2) * 2;
  const int64_t whole = t.row_blocks * t.col_blocks == 1 ? kPixels / g.image_pixels : 1;
  g.images = std::clamp<int64_t>(whole, 1, std::max<int64_t>(1, t.N));
  g.chunks = ceil_div(t.N, g.images) * t.row_blocks * t.col_blocks;
  g.pixels = ceil_div(g.images * g.image_pixels, kAmxChunk) * kAmxChunk;
  // Runs of pixels are stored as whole vectors. An odd number of lines spreads rows over the cache.
  g.x_row = g.pixels + kAmxChunk;
  if (g.x_row / kAmxChunk % 2 == 0) g.x_row += kAmxChunk;
}

inline AmxGradPlan plan_amx_weight_grad(const ConvParams& p) {
  constexpr int64_t kRows = 576, kSums = 160 << 10, kFewChannels = 32, kPair = 2 * kAmxRows;
  constexpr int64_t kItems = 16, kFewItems = 8, kFewShares = 4, kChunks = 4,
                    kMaxPartials = 16 << 20;
  AmxGradPlan g{fprop_taps(p)};
  TapConv& t = g.tc;
  const int64_t taps = t.taps.size();
  auto share_channels = [&](int64_t channels) {
    g.c_items = ceil_div(t.C, channels);
    g.item_channels = std::min(t.C, ceil_div(ceil_div(t.C, g.c_items), kAmxRows) * kAmxRows);
    g.c_items = ceil_div(t.C, g.item_channels);
    g.rows = ceil_div(taps * g.item_channels, kAmxRows) * kAmxRows;
  };
  share_channels(std::max(kAmxRows, kRows / taps / kAmxRows * kAmxRows));
  g.pairs = ceil_div(t.M, kPair);
  g.k_items = ceil_div(g.pairs, std::max<int64_t>(1, kSums / g.pair_sums()));
  g.item_pairs = ceil_div(g.pairs, g.k_items);
  g.k_items = ceil_div(g.pairs, g.item_pairs);
  plan_amx_grad_chunks(g);
  while (g.items() * g.chunks < kFewItems && g.item_channels > kFewChannels)
    share_channels(std::max(kFewChannels, g.item_channels / 2));
  // Shares of less than kChunks spend much of their time on partials: no more of them than a few
  // threads need.
  const int64_t shares = std::max(g.chunks / kChunks, ceil_div(kFewShares, g.items()));
  const int64_t splits =
      std::min({shares, kItems / g.items(), kMaxPartials / (g.items() * g.item_sums())});
  g.splits = std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, g.chunks));
  return g;
}

}  // namespace cnnkern
