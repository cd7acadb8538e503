// Implicit GEMMs whose products are AVX512-BF16's: of two neighbours of the reduction at a time, as
// they lie in memory, at twice the rate of float32. Sums are float32.
#pragma once
#include "isa.h"
#include "tap_conv.h"

namespace cnnkern {

// Neighbours in the reduction that are neighbours in memory: `count` elements, `at` elements behind
// the first one of an output's input.
struct DotRun {
  int64_t at, count;
};

struct DotPlan {
  TapConv* tc;
  bool in_place;                // reads the input as it lies, not a copy of it
  bool by_pairs = false;        // items are pairs of output vectors of all images
  bool stream = false;          // outputs are stored past the caches
  bool apart = false;           // a pair's vectors of weights lie one after the other
  int64_t base_h, base_w;       // input position of the first element for output (0, 0)
  int64_t source_h, source_w;   // input rows and columns from one of the copy to the next
  int64_t step_h, step_w;       // rows and columns of the copy from one output to the next
  int64_t halo_h, halo_w;       // those beyond the outputs'
  int64_t rows, columns;        // of the copy of a whole block
  int64_t channel, pixel, row;  // elements from a column of the copy, an output, a row of outputs
                                // to the next
  std::vector<DotRun> runs;
  std::vector<int64_t> order;  // elements of a weight plane [channel][tap], in pairs; -1: none
  int64_t together;            // pairs of a tap's channels that are neighbours in `order`

  int64_t pairs() const { return int64_t(order.size()) / 2; }
  // Of a pair of output vectors: where the weights of vector 1 begin.
  int64_t second_vector(int64_t lanes) const { return apart ? pairs() * lanes : lanes; }
  // What the block whose first output is (p, q) reads where the input is read as it lies.
  const bfloat16* input_at(const View& in, int64_t n, int64_t group, int64_t p, int64_t q) const {
    return in.at<const bfloat16>(n, group * tc->C, p * tc->step_h + base_h,
                                 q * tc->step_w + base_w);
  }
  // Where an even number of channels is paired without gaps: pair c of channels of the first tap;
  // those of the others follow `together` later each.
  int64_t pair_of(int64_t c) const {
    return c / together * together * int64_t(tc->taps.size()) + c % together;
  }
};

// Cuts the problem into items (image, group, rows, columns, pairs of output vectors) whose input
// stays in a 1 MiB L2 beside the weights of a pair. `tile_rows`: pixels of a tile.
inline void plan_dot_blocks(DotPlan& plan, int64_t tile_rows, int64_t lanes) {
  constexpr int64_t kCopy = 64 << 10;
  TapConv& t = *plan.tc;
  t.tiles = ceil_div(t.M, 2 * lanes);
  const int64_t halo_rows = ceil_div(plan.halo_h, plan.step_h);
  const int64_t halo_cols = ceil_div(plan.halo_w, plan.step_w);
  const int64_t pixels = std::max(kCopy / (t.C * plan.step_h * plan.step_w), tile_rows);
  t.col_blocks = ceil_div(t.Q, std::max(tile_rows, pixels / (1 + halo_rows)));
  t.block_cols = ceil_div(t.Q, t.col_blocks);
  t.block_rows = std::clamp<int64_t>(pixels / (t.block_cols + halo_cols) - halo_rows, 1, t.P);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  t.block_rows = ceil_div(t.P, t.row_blocks);
  t.row_blocks = ceil_div(t.P, t.block_rows);
  plan.rows = (t.block_rows - 1) * plan.step_h + plan.halo_h + 1;
  plan.columns = (t.block_cols - 1) * plan.step_w + plan.halo_w + 1;
  t.block_tiles = t.tiles;
  share_tiles(t, 1);
}

// Where a block's input takes at most half of the memory of the weights of a pair of output
// vectors, it is the input that is better read anew for each pair, not the weights for each block;
// if that of all images stays in the L3 cache, and the pairs are enough for some threads. `copy`:
// elements of a block's input.
inline void plan_weight_items(DotPlan& plan, int64_t copy, int64_t lanes) {
  constexpr int64_t kCopies = 4 << 20, kItems = 8;  // elements, items
  TapConv& t = *plan.tc;
  const int64_t blocks = t.N * t.groups * t.row_blocks * t.col_blocks;
  plan.by_pairs =
      t.groups * t.tiles >= kItems && copy < 2 * lanes * plan.pairs() && blocks * copy <= kCopies;
  if (plan.by_pairs) t.block_tiles = t.tiles, t.tile_blocks = 1;
}

// `plane_size`: elements of a weight plane, R*S. `alone`: not one of several phases.
inline DotPlan plan_dots(TapConv& t, const View& in, int64_t plane_size, int64_t tile_rows,
                         int64_t lanes, bool alone) {
  constexpr int64_t kAlias = 2048;  // elements; lines so far apart share an L1 set of 8
  DotPlan plan{&t};
  for (const Tap& tap : t.taps) {
    const bool first = &tap == t.taps.data();
    plan.base_h = first ? tap.h : std::min(plan.base_h, tap.h);
    plan.base_w = first ? tap.w : std::min(plan.base_w, tap.w);
  }
  // Where all taps read one residue of the rows and columns, the others are not copied.
  const bool skips = t.slots.size() <= 1;
  plan.source_h = skips ? t.step_h : 1, plan.source_w = skips ? t.step_w : 1;
  plan.step_h = skips ? 1 : t.step_h, plan.step_w = skips ? 1 : t.step_w;
  plan.halo_h = t.halo_rows, plan.halo_w = t.halo_cols;
  for (const Tap& tap : t.taps) {
    plan.halo_h = std::max(plan.halo_h, (tap.h - plan.base_h) / plan.source_h);
    plan.halo_w = std::max(plan.halo_w, (tap.w - plan.base_w) / plan.source_w);
  }
  plan_dot_blocks(plan, tile_rows, lanes);
  plan.in_place = in.c == 1 && reads_no_padding(t) && t.step_w * in.w % kAlias != 0;
  plan.together = t.C / 2;
  plan.channel = t.C % kAlias == 0 ? t.C + lanes : t.C;
  plan.pixel = plan.in_place ? t.step_w * in.w : plan.step_w * plan.channel;
  plan.row = plan.in_place ? t.step_h * in.h : plan.step_h * plan.columns * plan.channel;
  auto place = [&](const Tap& tap) {
    const int64_t h = tap.h - plan.base_h, w = tap.w - plan.base_w;
    return plan.in_place ? h * in.h + w * in.w
                         : (h / plan.source_h * plan.columns + w / plan.source_w) * plan.channel;
  };
  std::vector<Tap> taps = t.taps;
  std::sort(taps.begin(), taps.end(),
            [&](const Tap& a, const Tap& b) { return place(a) < place(b); });
  for (const Tap& tap : taps) {
    const int64_t at = place(tap);
    if (!plan.runs.empty() && plan.runs.back().at + plan.runs.back().count == at) {
      plan.runs.back().count += t.C;
    } else {
      if (plan.order.size() % 2) plan.order.push_back(-1);
      plan.runs.push_back({at, t.C});
    }
    for (int64_t c = 0; c < t.C; ++c) plan.order.push_back(c * plane_size + tap.weight);
  }
  if (plan.order.size() % 2) plan.order.push_back(-1);
  if (alone) plan_weight_items(plan, plan.rows * plan.columns * plan.channel, lanes);
  return plan;
}

#if CNNKERN_X86_ISAS
namespace avx512_bf16 {

// As launch_conv2d_igemm: one TapConv, or the phases of one gradient.
void launch_conv2d_dots(TapConv* tc, size_t count, int64_t plane_size, const View& in,
                        const bfloat16* weight, const bfloat16* bias, const View& out);
void launch_conv2d_dots_weight_grad(const ConvParams& p, const View& grad, const View& input,
                                    bfloat16* weight_grad);

}  // namespace avx512_bf16
#endif

}  // namespace cnnkern
