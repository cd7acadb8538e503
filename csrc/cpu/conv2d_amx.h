// Implicit GEMMs whose products are AMX's: tiles of 16 outputs x 16 output channels, 32 elements of
// the reduction at a time, at 16 times the rate of float32. Sums are float32.
#pragma once
#include <numeric>

#include "conv2d_dots.h"

namespace cnnkern {

constexpr int64_t kAmxRows = 16;   // of a tile, at most
constexpr int kAmxColumn = 5;      // tiles of outputs that share a vector of weights
constexpr int64_t kAmxChunk = 32;  // elements of the reduction that a tile holds, at most
constexpr int64_t kAmxGroup = 64;  // pairs of output vectors

// The input of a block is read as it lies, or is a copy [residue][row][column][channel] whose
// channels are padded by zeros. Outputs follow each other at one distance, and a step of the
// reduction takes as many neighbours of the input as any other: some channels of a tap or, where
// channels are few, those of several taps of a row.
struct AmxPlan : DotPlan {
  int64_t chunk = 0;            // elements of a step
  std::vector<int64_t> steps;   // elements of the input behind the first one of an output's
  std::vector<Slot> planes;     // of the copy: the first input position of each
  int64_t plane = 0, copy = 0;  // elements
  int64_t pitch = 0;   // outputs from a row to the next if rows are tiled as one; 0: each alone
  bool split = false;  // the copy is split by residue
  int64_t group = 1;   // pairs of output vectors that outputs are taken through at a time

  // True if the other phases of a gradient that are cut alike read the same copy.
  bool shares_copy() const { return !in_place && !steps.empty(); }
};

// Channels of a copy: the fewest zeros that make them up of whole even chunks.
inline int64_t amx_channels(int64_t channels) {
  const int64_t chunks = std::max<int64_t>(1, ceil_div(channels, kAmxChunk));
  return std::max<int64_t>(1, ceil_div(channels, 2 * chunks)) * 2 * chunks;
}

// The largest even chunk that divides `count`, an even number.
inline int64_t amx_chunk(int64_t count) {
  int64_t chunk = std::min(count, kAmxChunk);
  while (count % chunk) chunk -= 2;
  return chunk;
}

// Of as few tiles as a line of outputs takes: all have as many.
inline int64_t amx_tile_rows(int64_t length) {
  return ceil_div(length, ceil_div(length, kAmxRows));
}
// What a line costs: a tile's loads of weights, and its rows.
inline int64_t amx_line_cost(int64_t length) {
  constexpr int64_t kWeights = 5;  // in rows; measured on a Sapphire Rapids
  return ceil_div(length, kAmxRows) * (amx_tile_rows(length) + kWeights);
}

// Blocks whose copy stays in the L2 cache beside the weights of some pairs of output vectors.
inline void plan_amx_blocks(AmxPlan& plan) {
  constexpr int64_t kCopy = 256 << 10, kItems = 8, kRows = 4;
  TapConv& t = *plan.tc;
  const int64_t halo_rows = plan.halo_h / plan.step_h, halo_cols = plan.halo_w / plan.step_w;
  const int64_t output =
      plan.channel * std::max<int64_t>(1, plan.planes.size()) * plan.step_h * plan.step_w;
  const int64_t pixels = std::max(kCopy / output, 2 * kAmxRows);
  t.tiles = ceil_div(t.M, 2 * kAmxRows);
  t.col_blocks = ceil_div(t.Q, std::max(2 * kAmxRows, pixels / (1 + halo_rows)));
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.block_rows = std::clamp<int64_t>(pixels / (t.block_cols + halo_cols) - halo_rows, 1, t.P);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  // Few images: rows are copied but once, unlike where pairs of output vectors are shared out.
  const int64_t shares = ceil_div(kItems, t.N * t.groups * t.col_blocks);
  t.row_blocks = std::max(t.row_blocks, std::min(shares, t.P / kRows));
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  // Rows without neighbours are cut, too.
  if (plan.halo_w == 0 && t.P == 1) {
    t.col_blocks = std::max(t.col_blocks, std::min(shares * t.col_blocks, t.Q / (4 * kAmxRows)));
    t.block_cols = ceil_div(t.Q, t.col_blocks);
    t.col_blocks = ceil_div(t.Q, t.block_cols);
  }
  t.block_tiles = t.tiles;
  share_tiles(t, 1);
  plan.rows = (t.block_rows - 1) * plan.step_h + plan.halo_h + 1;
  plan.columns = (t.block_cols - 1) * plan.step_w + plan.halo_w + 1;
  plan.plane = ceil_div(plan.rows * plan.columns * plan.channel, 32) * 32;
}

// Where the inputs of many channels are split by residue modulo the step, outputs are neighbours;
// few channels are left side by side with those of the next tap.
inline void plan_amx_copy(AmxPlan& plan, const View& in) {
  // In elements: lines so far apart share a set of the L1 cache, or one of few sets.
  constexpr int64_t kFewChannels = 16, kAlias = 2048, kFewSets = 128;
  TapConv& t = *plan.tc;
  const int64_t channels = amx_channels(t.C);
  plan.split = t.C >= kFewChannels || t.taps.size() <= 1 || t.step_h * t.step_w == 1;
  plan.in_place =
      in.c == 1 && channels == t.C && reads_no_padding(t) && t.step_w * in.w % kAlias != 0;
  plan.source_h = plan.split ? t.step_h : 1, plan.source_w = plan.split ? t.step_w : 1;
  plan.step_h = plan.split ? 1 : t.step_h, plan.step_w = plan.split ? 1 : t.step_w;
  plan.halo_h = t.halo_rows, plan.halo_w = t.halo_cols;
  plan.planes = t.slots;
  if (!plan.split) {
    plan.planes = {{plan.base_h, plan.base_w}};
    plan.halo_h = plan.halo_w = 0;
    for (const Tap& tap : t.taps) {
      plan.halo_h = std::max(plan.halo_h, tap.h - plan.base_h);
      plan.halo_w = std::max(plan.halo_w, tap.w - plan.base_w);
    }
  }
  plan.channel = channels % kFewSets == 0 ? channels + kAmxChunk : channels;
  plan_amx_blocks(plan);
  plan.copy = plan.in_place ? 0 : plan.plane * int64_t(plan.planes.size());
  plan.pixel = plan.in_place ? t.step_w * in.w : plan.step_w * plan.channel;
  plan.row = plan.in_place ? t.step_h * in.h : plan.step_h * plan.columns * plan.channel;
  // Rows side by side make one row of tiles where its gaps cost less than the rows' last tiles.
  const int64_t pitch = plan.row / plan.pixel;
  if (plan.row % plan.pixel || pitch < t.block_cols) return;
  const int64_t joined = amx_line_cost((t.block_rows - 1) * pitch + t.block_cols);
  if (joined <= t.block_rows * amx_line_cost(t.block_cols)) plan.pitch = pitch;
}

// Runs of taps that are neighbours, cut into steps: the first chunk of all taps, then the second,
// for what the taps of a chunk read are the same inputs, which stay in the L1 cache.
inline void plan_amx_steps(AmxPlan& plan, const View& in, int64_t plane_size) {
  const TapConv& t = *plan.tc;
  const int64_t channels = amx_channels(t.C);
  auto place = [&](const Tap& tap) {
    const int64_t h = tap.h - plan.base_h, w = tap.w - plan.base_w;
    if (plan.in_place) return h * in.h + w * in.w;
    if (!plan.split) return (h * plan.columns + w) * plan.channel;
    return tap.slot * plan.plane + (tap.row * plan.columns + tap.col) * plan.channel;
  };
  std::vector<Tap> taps = t.taps;
  std::stable_sort(taps.begin(), taps.end(),
                   [&](const Tap& a, const Tap& b) { return place(a) < place(b); });
  for (const Tap& tap : taps) {
    const int64_t at = place(tap);
    if (channels <= kAmxChunk && !plan.runs.empty() &&
        plan.runs.back().at + plan.runs.back().count == at)
      plan.runs.back().count += channels;
    else
      plan.runs.push_back({at, channels});
  }
  int64_t common = 0;
  for (const DotRun& run : plan.runs) common = std::gcd(common, run.count);
  plan.chunk = amx_chunk(common ? common : channels);
  const bool whole = channels <= kAmxChunk;  // taps, one after the other
  const int64_t part = whole ? channels : plan.chunk;
  plan.together = whole ? t.C / 2 : plan.chunk / 2;
  for (int64_t c0 = 0; c0 < channels; c0 += part) {
    for (const DotRun& run : plan.runs)
      for (int64_t c = 0; c < (whole ? run.count : part); c += plan.chunk)
        plan.steps.push_back(run.at + c0 + c);
    for (const Tap& tap : taps)
      for (int64_t c = c0; c < c0 + part; ++c)
        plan.order.push_back(c < t.C ? c * plane_size + tap.weight : -1);
  }
}

// `plane_size`: elements of a weight plane, R*S. `alone`: not one of several phases.
inline AmxPlan plan_amx(TapConv& t, const View& in, const View& out, int64_t plane_size,
                        bool alone) {
  constexpr int64_t kGroup = 256 << 10;  // bytes of the weights, and of outputs that are kept
  AmxPlan plan{};
  plan.tc = &t;
  for (const Tap& tap : t.taps) {
    const bool first = &tap == t.taps.data();
    plan.base_h = first ? tap.h : std::min(plan.base_h, tap.h);
    plan.base_w = first ? tap.w : std::min(plan.base_w, tap.w);
  }
  plan_amx_copy(plan, in);
  // Rows of inputs that cross lines take twice as long to load.
  plan.apart = t.taps.size() > 1 && plan.pixel % kAmxChunk == 0;
  plan_amx_steps(plan, in, plane_size);
  if (alone) plan_weight_items(plan, plan.plane * int64_t(plan.planes.size()), kAmxRows);
  const int64_t weights = 128 * plan.pairs(), kept = 64 * t.block_rows * t.block_cols;
  plan.group = std::clamp<int64_t>(kGroup / std::max<int64_t>(weights + 1, out.c == 1 ? 1 : kept),
                                   1, std::min(kAmxGroup, t.tiles));
  return plan;
}

#if CNNKERN_X86_ISAS
namespace amx_bf16 {

// As launch_conv2d_igemm: one TapConv, or the phases of one gradient.
void launch_conv2d_amx(TapConv* tc, size_t count, int64_t plane_size, const View& in,
                       const bfloat16* weight, const bfloat16* bias, const View& out);
// Of channels_last tensors: in float32, as processors with tiles multiply pairs no faster.
void launch_conv2d_amx_depthwise(TapConv* tc, size_t count, const View& in, const bfloat16* weight,
                                 const bfloat16* bias, const View& out);
void launch_conv2d_amx_weight_grad(const ConvParams& p, const View& grad, const View& input,
                                   bfloat16* weight_grad);

}  // namespace amx_bf16
#endif

}  // namespace cnnkern
