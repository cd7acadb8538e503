// How a TapConv of few channels a group is cut where two rows of the input make the pairs that
// AVX512-BF16 multiplies.
#pragma once
#include <array>
#include <map>

#include "isa.h"
#include "tap_conv.h"

namespace cnnkern {

// What a pair of input rows is to an output row: nothing, one of the two, or both.
enum RowUse { kNoRow, kOneRow, kBothRows };
constexpr int kRowUses = 3;

// What two neighbouring output rows, `first` and `second`, read of one pair of input rows.
struct RowPairTap {
  int64_t at = 0;  // elements of the copy behind the first pair of these outputs
  std::array<std::array<int64_t, 2>, 2> weight{{{-1, -1}, {-1, -1}}};  // [output][input row]
  uint32_t mask[2] = {};  // [output]: the halves of a pair that it reads
  RowUse use(int output) const {
    return RowUse((weight[output][0] >= 0) + (weight[output][1] >= 0));
  }
  int kind() const { return use(0) * kRowUses + use(1); }
};

struct RowPairPlan {
  const TapConv* tc;
  int64_t tile;                    // columns of a tile
  int64_t base_h = 0, base_w = 0;  // input position of the first element for output (0, 0)
  int64_t vectors;                 // of channels
  int64_t rows, columns;           // of the copy: pairs of rows, columns
  int64_t block_rows, block_cols, row_blocks, col_blocks;
  std::vector<RowPairTap> taps;             // by their kinds
  int64_t kinds[kRowUses * kRowUses] = {};  // how many taps of each

  int64_t row() const { return vectors * columns; }  // vectors from a pair of rows to the next
};

inline bool pairs_rows(const TapConv& t, const View& in, const View& out) {
  return in.c == 1 && out.c == 1 && t.C == t.M && (t.C == 1 || t.C == 2 || t.C == 4 || t.C == 8);
}

// Blocks of whole pairs of output rows whose copy stays in a 1 MiB L2.
inline void plan_row_pair_blocks(RowPairPlan& plan, int64_t halo_h, int64_t halo_w, int64_t lanes) {
  constexpr int64_t kCopy = 64 << 10, kItems = 4;
  const TapConv& t = *plan.tc;
  const int64_t vectors = std::max<int64_t>(1, kCopy / (plan.vectors * lanes));
  auto pairs = [&](int64_t p) { return ceil_div((p - 1) * t.step_h + halo_h + 1, 2); };
  auto columns = [&](int64_t q) { return (q - 1) * t.step_w + halo_w + 1; };
  const int64_t most = (vectors / pairs(4) - halo_w - 1) / t.step_w + 1;
  plan.col_blocks = ceil_div(t.Q, std::max(plan.tile, most));
  plan.block_cols = ceil_div(t.Q, plan.col_blocks);
  plan.columns = columns(std::max(plan.tile, plan.block_cols));
  int64_t rows = (2 * (vectors / plan.columns) - halo_h - 1) / t.step_h + 1;
  rows = std::clamp<int64_t>(rows, 1, t.P);
  while (t.N * plan.col_blocks * ceil_div(t.P, rows) < kItems && rows > 4) rows = ceil_div(rows, 2);
  plan.block_rows = ceil_div(ceil_div(t.P, ceil_div(t.P, rows)), 2) * 2;
  plan.row_blocks = ceil_div(t.P, plan.block_rows);
  plan.rows = pairs(plan.block_rows);
}

inline RowPairPlan plan_row_pairs(const TapConv& t, int64_t tile, int64_t lanes) {
  RowPairPlan plan{&t, tile};
  plan.vectors = ceil_div(t.groups * t.M, lanes);
  int64_t last_h = 0, last_w = 0;
  for (const Tap& tap : t.taps) {
    const bool first = &tap == t.taps.data();
    plan.base_h = first ? tap.h : std::min(plan.base_h, tap.h);
    plan.base_w = first ? tap.w : std::min(plan.base_w, tap.w);
    last_h = first ? tap.h : std::max(last_h, tap.h);
    last_w = first ? tap.w : std::max(last_w, tap.w);
  }
  plan_row_pair_blocks(plan, last_h - plan.base_h, last_w - plan.base_w, lanes);
  std::map<std::pair<int64_t, int64_t>, RowPairTap> taps;
  for (const Tap& tap : t.taps)
    for (int output = 0; output < 2; ++output) {
      const int64_t h = tap.h - plan.base_h + output * t.step_h, w = tap.w - plan.base_w;
      RowPairTap& pair = taps[{h / 2, w}];
      pair.at = (h / 2 * plan.row() + w) * lanes;
      pair.weight[output][h % 2] = tap.weight;
      pair.mask[output] |= h % 2 ? 0xffff0000u : 0x0000ffffu;
    }
  for (const auto& entry : taps) plan.taps.push_back(entry.second);
  std::stable_sort(plan.taps.begin(), plan.taps.end(),
                   [](const RowPairTap& a, const RowPairTap& b) { return a.kind() < b.kind(); });
  for (const RowPairTap& tap : plan.taps) ++plan.kinds[tap.kind()];
  return plan;
}

}  // namespace cnnkern
