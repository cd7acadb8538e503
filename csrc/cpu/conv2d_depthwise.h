// What all tiles of a depthwise TapConv share, whatever the instruction set: which taps of two
// neighbouring output rows read the same input row, and where every output's columns lie.
#pragma once
#include <vector>

#include "tap_conv.h"

namespace cnnkern {

struct DepthwisePlan {
  const TapConv* tc;
  // Of tap t of a row: the tap of the next row that reads the same inputs, or -1; and whether it is
  // the other one of such a pair.
  std::vector<int64_t> pair;
  std::vector<bool> is_second;
  // Of tap t: the row of `columns` that holds the offset of the input column of every output
  // column, or -1 on a zero.
  std::vector<int64_t> column_row;
  std::vector<int64_t> columns;
  int64_t pitch;       // of `columns`
  int64_t begin, end;  // the output columns of which no tap meets the padding
  int64_t last_h = 0;  // the largest tap.h
};

// The outputs [begin, end) of [0, Q) whose columns q*step + first .. q*step + last lie in [0, W).
inline void inner_range(int64_t Q, int64_t step, int64_t first, int64_t last, int64_t W,
                        int64_t* begin, int64_t* end) {
  *begin = std::min(Q, first < 0 ? (-first + step - 1) / step : int64_t{0});
  *end = W - 1 - last < 0 ? *begin : std::clamp((W - 1 - last) / step + 1, *begin, Q);
}

inline DepthwisePlan plan_depthwise(const TapConv& tc, const View& in) {
  constexpr int64_t kLargestTile = 8;  // is always whole in `columns`
  const int64_t taps = tc.taps.size();
  DepthwisePlan plan{&tc};
  plan.pair.assign(taps, -1), plan.is_second.assign(taps, false);
  plan.pitch = std::max(tc.Q, kLargestTile);
  int64_t first = 0, last = 0;
  std::map<int64_t, int64_t> rows;
  for (int64_t t = 0; t < taps; ++t) {
    const Tap& tap = tc.taps[t];
    for (int64_t u = 0; u < taps; ++u)
      if (tc.taps[u].h + tc.step_h == tap.h && tc.taps[u].w == tap.w) {
        plan.pair[t] = u;
        plan.is_second[u] = true;
      }
    plan.last_h = t ? std::max(plan.last_h, tap.h) : tap.h;
    first = t ? std::min(first, tap.w) : tap.w, last = t ? std::max(last, tap.w) : tap.w;
    const auto [entry, is_new] = rows.try_emplace(tap.w, int64_t(rows.size()));
    plan.column_row.push_back(entry->second);
    for (int64_t q = 0; is_new && q < plan.pitch; ++q) {
      const int64_t w = q < tc.Q ? padded_index(q * tc.step_w + tap.w, tc.W, tc.mode) : -1;
      plan.columns.push_back(w < 0 ? -1 : w * in.w);
    }
  }
  inner_range(tc.Q, tc.step_w, first, last, tc.W, &plan.begin, &plan.end);
  return plan;
}

}  // namespace cnnkern
