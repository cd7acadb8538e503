// Geometry and blocking of Winograd's F(4x4, 3x3): an output tile of 4x4 takes 36 products a
// channel instead of 144. The plane is cut into tiles of 4x4 outputs, each from 6x6 inputs.
#pragma once
#include "tap_conv.h"

namespace cnnkern {

constexpr int kWinogradOut = 4, kWinogradIn = 6, kWinogradTaps = 3;
// The interpolation points are 0, +-kPointA, +-kPointB and infinity. With the usual 1 and 2 the
// error is twice as large, at worst four times.
constexpr double kPointA = 0.75, kPointB = 1.5;
constexpr int kWinogradPoints = kWinogradIn * kWinogradIn;

// A dilated kernel sees an image as several: rows and columns of one residue modulo the dilation
// are a phase, whose tiles read and write no others.
struct WinogradPlan {
  int64_t base_h, base_w;  // input position of the first element of tile (0, 0)
  int64_t step_h, step_w;  // from an element of a tile to the next: the dilation
  int64_t weight_at[9];    // element of a weight plane that is tap (r, s) of the correlation
  int64_t phases_h, phases_w;
  int64_t tiles_h, tiles_w;  // of one phase; the last ones of some have no outputs
  int64_t tiles;             // of the batch
  int64_t block_tiles, blocks;
};

// Tiles of a row: the image, the first output, and as many tiles as follow each other.
struct TileRow {
  int64_t n, p0, q0, count;
};
inline TileRow tile_row(const WinogradPlan& w, int64_t t, int64_t end, int64_t most) {
  const int64_t j = t % w.tiles_w, i = t / w.tiles_w % w.tiles_h;
  const int64_t phase = t / (w.tiles_w * w.tiles_h), image = phase / w.phases_w;
  return {image / w.phases_h, image % w.phases_h + i * kWinogradOut * w.step_h,
          phase % w.phases_w + j * kWinogradOut * w.step_w,
          std::min({end - t, w.tiles_w - j, most})};
}

// The taps must be those of a 3x3 kernel of stride 1, in either direction.
// Blocks are cut by the geometry alone: results do not depend on the number of threads.
inline WinogradPlan plan_winograd(const TapConv& tc) {
  // Tiles whose transforms and products stay in a 1 MiB L2, tuned on a 2-core Zen 4.
  constexpr int64_t kBlock = 28, kShares = 8;
  WinogradPlan w;
  w.base_h = tc.taps[0].h, w.base_w = tc.taps[0].w;
  w.step_h = w.step_w = 0;
  for (const Tap& tap : tc.taps)
    w.base_h = std::min(w.base_h, tap.h), w.base_w = std::min(w.base_w, tap.w);
  for (const Tap& tap : tc.taps) {
    w.step_h = std::max(w.step_h, (tap.h - w.base_h) / (kWinogradTaps - 1));
    w.step_w = std::max(w.step_w, (tap.w - w.base_w) / (kWinogradTaps - 1));
  }
  for (const Tap& tap : tc.taps)
    w.weight_at[(tap.h - w.base_h) / w.step_h * kWinogradTaps + (tap.w - w.base_w) / w.step_w] =
        tap.weight;
  w.phases_h = std::min(w.step_h, tc.P), w.phases_w = std::min(w.step_w, tc.Q);
  w.tiles_h = ceil_div(tc.P, w.step_h * kWinogradOut);
  w.tiles_w = ceil_div(tc.Q, w.step_w * kWinogradOut);
  w.tiles = tc.N * w.phases_h * w.phases_w * w.tiles_h * w.tiles_w;
  w.blocks = ceil_div(w.tiles, kBlock);
  if (w.blocks < 4 * kShares) w.blocks = std::min(w.tiles, ceil_div(w.blocks, kShares) * kShares);
  w.block_tiles = ceil_div(w.tiles, w.blocks);
  w.blocks = ceil_div(w.tiles, w.block_tiles);
  return w;
}

// Blocking of the weight gradient, a sum over tiles: items of kGradChannels x 2 vectors of dW. With
// many tiles they are cut into shares, and a chunk is what a thread transforms of one at a time,
// for itself; otherwise (shares = 0) a chunk is transformed for all.
struct WinogradGradPlan {
  WinogradPlan w;
  int64_t shares, share_tiles;
  int64_t chunk_tiles, chunks;
};
constexpr int64_t kGradChannels = 32;

inline WinogradGradPlan plan_winograd_weight_grad(const ConvParams& p) {
  // Floats of all sums that stay in the L3 cache beside the inputs, and of a chunk for all.
  constexpr int64_t kSums = 4 << 20, kChunk = 4 << 20;
  constexpr int64_t kItems = 16;  // shares x input channels
  // Tiles to transform for itself: in the L2 cache, and whole rows or strips. Tuned on a Zen 4.
  constexpr int64_t kOwnTiles = 32, kStrip = 14;
  WinogradGradPlan g{plan_winograd(fprop_taps(p))};
  const int64_t per_tile = kWinogradPoints * (p.C + p.K), sums = kWinogradPoints * p.C * p.K;
  if (sums <= kSums && g.w.tiles * per_tile >= sums) {
    const int64_t worth = g.w.tiles * per_tile / (3 * sums);  // where sums are added up in no time
    const int64_t wanted = kItems / ceil_div(p.C, kGradChannels);
    g.shares = std::max<int64_t>(1, std::min({worth, wanted, kSums / sums}));
    const int64_t unit = std::min(g.w.tiles_w, kStrip);
    g.share_tiles = ceil_div(ceil_div(g.w.tiles, g.shares), unit) * unit;
    g.shares = ceil_div(g.w.tiles, g.share_tiles);
    g.chunk_tiles = std::min(g.share_tiles, kOwnTiles / unit * unit);
    return g;
  }
  g.chunks = ceil_div(g.w.tiles, std::max(g.w.block_tiles, kChunk / per_tile));
  g.chunk_tiles = ceil_div(g.w.blocks, g.chunks) * g.w.block_tiles;
  g.chunks = ceil_div(g.w.tiles, g.chunk_tiles);
  return g;
}

}  // namespace cnnkern
