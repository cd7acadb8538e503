// What all tiles of a depthwise TapConv share, whatever the instruction set: which taps of two
// neighbouring output rows read the same input row, and where every output's columns lie.
#pragma once
#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "tap_conv.h"

namespace cnnkern {

// Taps of one row of inputs that neighbouring output columns share, from the left to the right.
struct DepthwiseRun {
  int64_t first, step, count;  // the first tap, the distance from one tap's index to the next's
  int64_t pair = -1;           // the run of the next output row that reads the same inputs
  bool is_second = false;      // whether it is the other one of such a pair
};

struct DepthwisePlan {
  const TapConv* tc;
  std::vector<DepthwiseRun> runs;
  // Of tap t: the row of `columns` that holds the offset of the input column of every output
  // column, or -1 on a zero.
  std::vector<int64_t> column_row;
  std::vector<int64_t> columns;
  int64_t pitch;       // of `columns`
  int64_t begin, end;  // the output columns of which no tap meets the padding
  int64_t last_h = 0;  // the largest tap.h
};

inline std::vector<DepthwiseRun> depthwise_runs(const TapConv& tc) {
  std::vector<int64_t> order(tc.taps.size());
  std::iota(order.begin(), order.end(), 0);
  auto chain = [&](const Tap& tap) { return (tap.w % tc.step_w + tc.step_w) % tc.step_w; };
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    const Tap &a = tc.taps[i], &b = tc.taps[j];
    return std::make_tuple(a.h, chain(a), a.w) < std::make_tuple(b.h, chain(b), b.w);
  });
  std::vector<DepthwiseRun> runs;
  for (int64_t t : order) {
    if (!runs.empty()) {
      DepthwiseRun& run = runs.back();
      const int64_t last = run.first + (run.count - 1) * run.step;
      if (tc.taps[last].h == tc.taps[t].h && tc.taps[last].w + tc.step_w == tc.taps[t].w &&
          (run.count == 1 || last + run.step == t)) {
        run.step = t - last, ++run.count;
        continue;
      }
    }
    runs.push_back({t, 0, 1});
  }
  for (DepthwiseRun& a : runs)
    for (size_t i = 0; i < runs.size(); ++i) {
      const DepthwiseRun& b = runs[i];
      if (tc.taps[b.first].h + tc.step_h == tc.taps[a.first].h &&
          tc.taps[b.first].w == tc.taps[a.first].w && b.count == a.count && b.step == a.step) {
        a.pair = int64_t(i);
        runs[i].is_second = true;
      }
    }
  return runs;
}

// The outputs [begin, end) of [0, Q) whose columns q*step + first .. q*step + last lie in [0, W).
inline void inner_range(int64_t Q, int64_t step, int64_t first, int64_t last, int64_t W,
                        int64_t* begin, int64_t* end) {
  *begin = std::min(Q, first < 0 ? (-first + step - 1) / step : int64_t{0});
  *end = W - 1 - last < 0 ? *begin : std::clamp((W - 1 - last) / step + 1, *begin, Q);
}

inline DepthwisePlan plan_depthwise(const TapConv& tc, const View& in) {
  constexpr int64_t kLargestTile = 8;  // is always whole in `columns`
  const int64_t taps = tc.taps.size();
  DepthwisePlan plan{&tc, depthwise_runs(tc)};
  plan.pitch = std::max(tc.Q, kLargestTile);
  int64_t first = 0, last = 0;
  for (int64_t t = 0; t < taps; ++t) {
    const Tap& tap = tc.taps[t];
    plan.last_h = t ? std::max(plan.last_h, tap.h) : tap.h;
    first = t ? std::min(first, tap.w) : tap.w, last = t ? std::max(last, tap.w) : tap.w;
  }
  std::map<int64_t, int64_t> rows;
  for (const Tap& tap : tc.taps) {
    const auto [entry, is_new] = rows.try_emplace(tap.w, int64_t(rows.size()));
    plan.column_row.push_back(entry->second);
    // Also of outputs beyond the last one, which reads the same by another tap.
    for (int64_t q = 0; is_new && q < plan.pitch; ++q) {
      const int64_t w = padded_index(q * tc.step_w + tap.w, tc.W, tc.mode);
      plan.columns.push_back(w < 0 ? -1 : w * in.w);
    }
  }
  inner_range(tc.Q, tc.step_w, first, last, tc.W, &plan.begin, &plan.end);
  return plan;
}

// Taps of one axis that an input meets at consecutive outputs: first, first + step, ... The input
// at u*stride + offset meets tap first + j*step at output u - j.
struct TapWindow {
  int64_t first, step, count, offset;
};

// A weight gradient's window is held in registers: so many taps at most.
constexpr int max_window(int channels_a_group) { return channels_a_group == 1 ? 7 : 3; }

// Cuts the `taps` of an axis into windows, as even as can be.
inline std::vector<TapWindow> tap_windows(int64_t taps, int64_t stride, int64_t pad, int64_t dil,
                                          int64_t most) {
  std::vector<TapWindow> windows;
  const int64_t step = stride % dil == 0 ? stride / dil : taps;
  for (int64_t chain = 0; chain < std::min(step, taps); ++chain) {
    const int64_t length = ceil_div(taps - chain, step), cuts = ceil_div(length, most);
    for (int64_t i = 0; i < cuts; ++i) {
      const int64_t j = tile_start(i, length, cuts), first = chain + j * step;
      windows.push_back({first, step, tile_start(i + 1, length, cuts) - j, first * dil - pad});
    }
  }
  return windows;
}

// Elements from row to row of the copy of a plane: whole lines of float32, but not so many that the
// rows would share few sets of a cache.
inline int64_t plane_pitch(const TapConv& t, int64_t columns) {
  constexpr int64_t kLine = 16, kAlias = 256;
  const int64_t pitch = ceil_div(columns + t.halo_cols, kLine) * kLine;
  return pitch % kAlias ? pitch : pitch + kLine;
}

// How many output rows at a time when copies of whole rows of a plane (see copy_plane) may take
// `floats`: if not all, a multiple of the rows of a tile, which are 4 or 7.
inline int64_t plane_block_rows(const TapConv& t, int64_t columns, int64_t floats, int64_t P) {
  const int64_t row = plane_pitch(t, columns) * std::max<int64_t>(1, t.slots.size());
  const int64_t most = std::max<int64_t>(floats / row - t.halo_rows, 4);
  return most >= P ? P : most - most % (most >= 28 ? 28 : most >= 7 ? 7 : 4);
}
inline void plan_plane_copy(TapConv& t, int64_t columns, int64_t block_rows) {
  t.block_rows = block_rows;
  t.pitch = plane_pitch(t, columns);
  t.plane = (block_rows + t.halo_rows) * t.pitch;
}

// Consecutive taps of one column of a plane of a group: what a tile reads from `row` down, of the
// rows of all planes in turn.
struct TapRun {
  int64_t row, column, slot, taps;
};
struct PlanePlan {
  const TapConv* tc;
  std::vector<TapRun> runs;      // of all reduced channels, by their taps
  std::vector<int64_t> weights;  // their taps' offsets from the first weight of an output channel
};

// The weights of a run are held in registers, if they are those of one output channel.
constexpr int longest_run(int outputs) { return outputs == 1 ? 7 : 3; }

// The step of the columns if rows can be read as they lie, zeros beside them; else, or with no
// taps, 0: they are copied.
inline int row_step(const TapConv& t) {
  if (t.mode != PaddingMode::kZeros || t.slots.empty()) return 0;
  return t.step_w == 1 || (t.step_w == 2 && t.M == 1) ? int(t.step_w) : 0;
}
// True if the outputs are whole planes.
inline bool whole(const TapConv& t) { return t.out_step_h == 1 && t.out_step_w == 1; }

inline PlanePlan plan_runs(const TapConv& tc) {
  const int64_t longest = longest_run(tc.M == 1 ? 1 : 2);
  std::vector<Tap> taps = tc.taps;
  std::sort(taps.begin(), taps.end(), [](const Tap& a, const Tap& b) {
    return std::make_tuple(a.slot, a.col, a.row) < std::make_tuple(b.slot, b.col, b.row);
  });
  struct Run {
    TapRun run;
    std::vector<int64_t> weights;
  };
  std::vector<Run> runs;
  for (int64_t c = 0; c < tc.C; ++c)
    for (size_t i = 0; i < taps.size(); ++i) {
      const Tap& tap = taps[i];
      const bool goes_on = i > 0 && taps[i - 1].slot == tap.slot && taps[i - 1].col == tap.col &&
                           taps[i - 1].row + 1 == tap.row && runs.back().run.taps < longest;
      const int64_t plane = c * int64_t(tc.slots.size()) + tap.slot;
      if (!goes_on)
        runs.push_back(
            {{plane * (tc.block_rows + tc.halo_rows) + tap.row, tap.col, tap.slot, 0}, {}});
      ++runs.back().run.taps;
      runs.back().weights.push_back(c * tc.weight_c + tap.weight);
    }
  std::stable_sort(runs.begin(), runs.end(),
                   [](const Run& a, const Run& b) { return a.run.taps < b.run.taps; });
  PlanePlan plan{&tc};
  for (const Run& run : runs) {
    plan.runs.push_back(run.run);
    plan.weights.insert(plan.weights.end(), run.weights.begin(), run.weights.end());
  }
  return plan;
}

// One TapConv, or the phases of one gradient, cut alike.
inline std::vector<PlanePlan> plan_planes(TapConv* tc, size_t count) {
  // Floats, for L1; several planes are whole if they can, as what follows then lies in one piece.
  const int64_t kCopy = tc[0].C == 1 ? 6 << 10 : 16 << 10, kPhases = 10 << 10;
  int64_t P = 0, Q = 0;
  for (size_t i = 0; i < count; ++i) P = std::max(P, tc[i].P), Q = std::max(Q, tc[i].Q);
  if (count > 1) share_copy(tc, count);
  const int64_t floats = count > 1 ? kPhases / (tc[0].C + 2 * int64_t(count)) : kCopy / tc[0].C;
  const int64_t rows = plane_block_rows(tc[0], Q, floats, P);
  std::vector<PlanePlan> plans;
  for (size_t i = 0; i < count; ++i) {
    plan_plane_copy(tc[i], Q, rows);
    plans.push_back(plan_runs(tc[i]));
  }
  return plans;
}

// One TapConv, or the phases of one gradient, in either layout.
template <typename T>
void run_conv2d_depthwise(TapConv* taps, size_t count, const View& in, const T* weight,
                          const T* bias, const View& out);

}  // namespace cnnkern
