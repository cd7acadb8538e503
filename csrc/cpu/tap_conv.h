// A convolution as a sum over taps, the one form in which the direct kernels compute all passes:
//   out[m][p][q] = sum over c, t of weight[m][c][t] * in[c][p*step_h + tap.h][q*step_w + tap.w]
// fprop has one tap per kernel element and step = stride. dgrad has step 1 on the output gradient:
// the input rows of one residue modulo the stride meet a fixed subset of the kernel's rows, so
// every residue (phase) is a TapConv of its own, and nothing is ever scattered.
//
// A block of outputs reads a copy of its input in which rows and columns are split by residue
// modulo the step. There every tap is a constant offset and a step is 1, so vectors of outputs are
// loads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "params.h"

namespace cnnkern {

struct Tap {
  int64_t h, w;      // of the input position relative to (p*step_h, q*step_w)
  int64_t weight;    // index of the tap inside a weight plane, r*S + s
  int64_t slot;      // which residue plane of the copy it reads
  int64_t row, col;  // offset inside that plane
};

struct Slot {
  int64_t h, w;  // input position of the plane's first element relative to (p0*step_h, q0*step_w)
};

struct TapConv {
  int64_t N, groups;
  int64_t C, M;  // per group: reduced channels, output channels
  int64_t H, W;  // input planes
  int64_t P, Q;  // outputs of this problem
  int64_t step_h, step_w;
  PaddingMode mode;
  // Where output (p, q) lies in the output tensor: row out_h + p*out_step_h, likewise the column.
  int64_t out_h = 0, out_w = 0, out_step_h = 1, out_step_w = 1;
  // Strides of the weight tensor: per group, per output channel, per reduced channel.
  int64_t weight_g, weight_m, weight_c;
  std::vector<Tap> taps;
  std::vector<Slot> slots;
  int64_t halo_rows = 0, halo_cols = 0;  // rows and columns of the copy beyond the outputs'
  int64_t copy_h = 1, copy_w = 1;        // and from one output to the next

  // Blocking, see plan_blocks().
  int64_t block_rows, block_cols, row_blocks, col_blocks;
  int64_t block_tiles, tile_blocks, tiles;  // tiles of output channels
  int64_t block_channels;
  int64_t pitch, plane;  // of the copy: elements per row, per residue plane
  int64_t acc_stride;    // elements per output channel of the accumulators
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// First channel of tile i when M channels are split as evenly as can be.
inline int64_t tile_start(int64_t i, int64_t M, int64_t tiles) { return i * M / tiles; }

// What has so many bytes is in memory rather than in a cache.
inline bool outgrow_caches(int64_t bytes) { return bytes >= 12 << 20; }

// Assigns every tap its residue plane and offset.
inline void plan_slots(TapConv& t) {
  if (t.taps.empty()) return;
  std::map<std::pair<int64_t, int64_t>, int64_t> index;
  int64_t min_h = t.taps[0].h, min_w = t.taps[0].w;
  for (const Tap& tap : t.taps) min_h = std::min(min_h, tap.h), min_w = std::min(min_w, tap.w);
  for (Tap& tap : t.taps) {
    const int64_t dh = tap.h - min_h, dw = tap.w - min_w;
    const Slot slot{min_h + dh % t.step_h, min_w + dw % t.step_w};
    tap.row = dh / t.step_h, tap.col = dw / t.step_w;
    const auto [entry, is_new] = index.try_emplace({slot.h, slot.w}, int64_t(t.slots.size()));
    if (is_new) t.slots.push_back(slot);
    tap.slot = entry->second;
    t.halo_rows = std::max(t.halo_rows, tap.row);
    t.halo_cols = std::max(t.halo_cols, tap.col);
  }
}

// True if no tap of any output reads padding.
inline bool reads_no_padding(const TapConv& t) {
  for (const Tap& tap : t.taps)
    if (tap.h < 0 || tap.w < 0 || (t.P - 1) * t.step_h + tap.h >= t.H ||
        (t.Q - 1) * t.step_w + tap.w >= t.W)
      return false;
  return true;
}

// Rounds a number of blocks up so that, where items are few, each of 2, 4 or 8 threads gets as many
// of them; every block stands for `each` items.
inline int64_t even_blocks(int64_t blocks, int64_t each, int64_t most) {
  constexpr int64_t kShares = 8, kMany = 4 * kShares;
  if (blocks * each >= kMany) return blocks;
  const int64_t unit = kShares / std::gcd(kShares, each);
  return std::min(ceil_div(blocks, unit) * unit, most);
}

// Cuts the output channels of a block further, to no fewer than `least` tiles, where a small batch
// has fewer items than a few threads want.
inline void share_tiles(TapConv& t, int64_t least) {
  constexpr int64_t kItems = 8;
  while (t.N * t.groups * t.row_blocks * t.col_blocks * ceil_div(t.tiles, t.block_tiles) < kItems &&
         t.block_tiles > least)
    t.block_tiles = ceil_div(t.block_tiles, 2);
  t.tile_blocks = ceil_div(t.tiles, t.block_tiles);
}

// Lays out the copy and the accumulators of a block of block_rows x block_cols outputs.
inline void plan_copy(TapConv& t, int64_t lanes, int64_t floats = 64 << 10) {
  constexpr int64_t kWeights = 4096;
  t.pitch = t.block_cols + t.halo_cols;
  t.plane = (t.block_rows + t.halo_rows) * t.pitch;
  t.acc_stride = ceil_div(t.block_rows * t.pitch, lanes) * lanes;
  const int64_t per_channel = t.plane * std::max<int64_t>(1, t.slots.size());
  const int64_t taps = std::max<int64_t>(1, t.taps.size());
  const int64_t reduction = kWeights / ceil_div(t.M, t.tiles);
  t.block_channels = std::clamp<int64_t>(std::min(reduction / taps, floats / per_channel), 1, t.C);
}

// Cuts the problem into work items (image, group, rows, columns, channel tiles) whose copy and
// accumulators stay in a 1 MiB L2, and the reduction into runs whose weights stay in L1.
// Depends on the geometry alone, so results do not depend on the number of threads.
// Budgets in floats, tuned on a 2-core Zen 4.
inline void plan_blocks(TapConv& t, int64_t max_tile, int64_t lanes) {
  constexpr int64_t kAccumulators = 64 << 10, kMaxChannels = 128;
  t.tiles = ceil_div(t.M, max_tile);
  t.block_tiles =
      ceil_div(t.tiles, ceil_div(t.tiles, std::max<int64_t>(1, kMaxChannels / max_tile)));
  const int64_t channels = std::min(t.M, t.block_tiles * max_tile);
  const int64_t pixels = std::clamp<int64_t>(kAccumulators / channels, 256, 2048);
  t.col_blocks = ceil_div(t.Q, std::max<int64_t>(pixels, 1024));
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.row_blocks = ceil_div(t.P, std::clamp<int64_t>(pixels / (t.block_cols + t.halo_cols), 1, t.P));
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  share_tiles(t, 2);
  plan_copy(t, lanes);
}

// Cuts the rows of phases further, so that the copy that they share has all channels.
inline void plan_shared_copy(TapConv& t, int64_t lanes) {
  constexpr int64_t kCopy = 96 << 10;
  const int64_t rows = kCopy / (t.C * (t.block_cols + t.halo_cols)) - t.halo_rows;
  if (rows < 2 * (t.halo_rows + 1)) return;
  t.row_blocks = ceil_div(t.P, std::min(rows, t.block_rows));
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  plan_copy(t, lanes, kCopy);
}

// A 1x1 convolution does not see rows: one row of all pixels makes longer vectors and fewer copies.
inline ConvParams flatten_pointwise(ConvParams p) {
  if (p.R == 1 && p.S == 1 && p.P == p.H && p.Q == p.W && p.stride_h == 1 && p.stride_w == 1 &&
      p.pad_left == 0 && p.pad_top == 0) {
    p.W = p.Q = p.H * p.W;
    p.H = p.P = 1;
  }
  return p;
}

inline TapConv fprop_taps(const ConvParams& p) {
  const int64_t C = p.C / p.groups, M = p.K / p.groups, RS = p.R * p.S;
  TapConv t{p.N, p.groups, C, M, p.H, p.W, p.P, p.Q, p.stride_h, p.stride_w, p.mode};
  t.weight_g = M * C * RS, t.weight_m = C * RS, t.weight_c = RS;
  t.taps.reserve(RS);
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t s = 0; s < p.S; ++s)
      t.taps.push_back({r * p.dil_h - p.pad_top, s * p.dil_w - p.pad_left, r * p.S + s, 0, 0, 0});
  plan_slots(t);
  return t;
}

// The gradient of a zero-padded convolution with respect to the input rows h0, h0 + stride_h, ...
// and columns w0, w0 + stride_w, ...; h0 < min(stride_h, H), w0 < min(stride_w, W).
inline TapConv dgrad_taps(const ConvParams& p, int64_t h0, int64_t w0) {
  const int64_t C = p.C / p.groups, M = p.K / p.groups, RS = p.R * p.S;
  TapConv t{p.N,
            p.groups,
            M,
            C,
            p.P,
            p.Q,
            ceil_div(p.H - h0, p.stride_h),
            ceil_div(p.W - w0, p.stride_w),
            1,
            1,
            PaddingMode::kZeros};
  t.out_h = h0, t.out_w = w0, t.out_step_h = p.stride_h, t.out_step_w = p.stride_w;
  t.weight_g = M * C * RS, t.weight_m = RS, t.weight_c = C * RS;
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t h = h0 + p.pad_top - r * p.dil_h;
    if (h % p.stride_h != 0) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t w = w0 + p.pad_left - s * p.dil_w;
      if (w % p.stride_w == 0)
        t.taps.push_back({h / p.stride_h, w / p.stride_w, r * p.S + s, 0, 0, 0});
    }
  }
  plan_slots(t);
  return t;
}

// The phases of a gradient step by 1 and read one copy of the input, of all that any tap reads.
inline void share_copy(TapConv* tc, size_t count) {
  int64_t min_h = INT64_MAX, min_w = INT64_MAX, rows = 0, columns = 0;
  auto for_taps = [&](auto&& body) {
    for (size_t i = 0; i < count; ++i)
      for (Tap& tap : tc[i].taps) body(tap);
  };
  for_taps([&](Tap& tap) { min_h = std::min(min_h, tap.h), min_w = std::min(min_w, tap.w); });
  if (min_h == INT64_MAX) min_h = min_w = 0;  // no taps: zeros
  for_taps([&](Tap& tap) {
    tap.row = tap.h - min_h, tap.col = tap.w - min_w;
    rows = std::max(rows, tap.row), columns = std::max(columns, tap.col);
  });
  for (size_t i = 0; i < count; ++i) {
    tc[i].slots = {{min_h, min_w}};
    tc[i].halo_rows = rows, tc[i].halo_cols = columns;
  }
}

// True if the phases of a gradient have outputs alike: they are then cut alike and share a copy.
inline bool align_phases(TapConv* tc, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (tc[i].P != tc[0].P || tc[i].Q != tc[0].Q) return false;
  if (count > 1) share_copy(tc, count);
  return true;
}

// Blocking of the weight gradient: an item owns block_k x block_channels of dW and walks over its
// share of the chunks (some images, some rows); shares are summed afterwards, in order.
struct WeightGradPlan {
  TapConv tc;
  int64_t images, image_blocks, chunks, splits;
  int64_t block_k, k_blocks, c_blocks;
  int64_t grad_stride;  // floats per channel and image of the copied output gradient
};

inline WeightGradPlan plan_weight_grad(const ConvParams& p, int64_t lanes) {
  constexpr int64_t kPixels = 1024, kCopy = 64 << 10, kItems = 16, kMaxPartials = 16 << 20;
  WeightGradPlan g{fprop_taps(p)};
  TapConv& t = g.tc;
  t.col_blocks = ceil_div(t.Q, kPixels);
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.pitch = t.block_cols + t.halo_cols;
  t.block_rows = std::clamp<int64_t>(kPixels / t.pitch, 1, t.P);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.plane = (t.block_rows + t.halo_rows) * t.pitch;
  g.grad_stride = ceil_div(t.block_rows * t.pitch, lanes) * lanes;
  g.images = std::clamp<int64_t>(kPixels / g.grad_stride, 1, t.N);
  g.image_blocks = ceil_div(t.N, g.images);
  g.chunks = g.image_blocks * t.row_blocks * t.col_blocks;
  g.block_k =
      std::clamp<int64_t>(kCopy / (g.images * g.grad_stride), std::min<int64_t>(16, t.M), t.M);
  g.k_blocks = ceil_div(t.M, g.block_k);
  const int64_t per_channel = g.images * int64_t(t.slots.size()) * t.plane;
  t.block_channels = std::clamp<int64_t>(kCopy / per_channel, std::min<int64_t>(8, t.C), t.C);
  // Few chunks: more items by fewer channels each, so that every thread has some.
  while (t.groups * g.k_blocks * ceil_div(t.C, t.block_channels) * g.chunks < 8 &&
         t.block_channels > 8)
    t.block_channels = ceil_div(t.block_channels, 2);
  g.c_blocks = ceil_div(t.C, t.block_channels);
  const int64_t numel = p.K * t.C * int64_t(t.taps.size());
  const int64_t items = t.groups * g.k_blocks * g.c_blocks;
  g.splits =
      std::clamp<int64_t>(std::min(ceil_div(kItems, items), kMaxPartials / numel), 1, g.chunks);
  return g;
}

// Phases that are run together: enough for stride 4, and a bound on what a call prepares at a time.
constexpr size_t kMaxPhases = 16;

// A 4-D tensor as a pointer and the strides of N, C, H, W in elements.
struct View {
  void* data;
  int64_t n, c, h, w;
  // Images in lanes: kLaneImages of them at a time, at the end what is left, lie as
  // [C][H][W][image] where they lay one after the other; n, c, h and w are those of an image alone.
  // Of kernels whose lanes are images only: see lane_block().
  bool lanes = false;
  template <typename T>
  T* at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return static_cast<T*>(data) + in * n + ic * c + ih * h + iw * w;
  }
};

constexpr int64_t kLaneImages = 16;

inline View view_of(void* data, int64_t C, int64_t H, int64_t W, bool nhwc) {
  return nhwc ? View{data, C * H * W, 1, W * C, C} : View{data, C * H * W, H * W, W, 1};
}

}  // namespace cnnkern
