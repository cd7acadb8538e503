// How an input gradient by columns is cut and where its parts lie (see conv2d_col2im.inc), whatever
// the instruction set.
#pragma once

#include "conv2d_igemm.h"

namespace cnnkern {

struct Col2imPlan {
  ConvParams p;
  bool nhwc;
  int64_t C, K, columns;  // of a group: channels of dX and dY, R*S*C
  GemmPanels panels;      // of the columns, where these are lanes
  bool in_place;          // reads dY as it lies, not a copy of it
  bool from_memory;       // dY, not from a cache: see fetch_ahead()
  int64_t weights;        // elements of a group's
  int64_t k_pitch;        // from one run of K weights, or copied elements of dY, to the next
  int64_t pitch;          // of the columns: from pixel to pixel; NCHW: from column to column
  int64_t block_rows, block_cols;  // of dY, whose columns are made at a time
  int64_t bands;                   // of rows of dX
  // The rows of dX that a block adds to lie in a ring of `ring` rows. channels_last: a row is one
  // line, all channels of all columns, the padding's too. NCHW: a line for every channel and
  // residue of the column modulo the stride.
  int64_t ring, row, line;
  int64_t copy_size, columns_size, ring_size;  // elements of workspace
};

// `can_stay`: the elements of dY are of the type that sums have, `size` bytes.
inline Col2imPlan plan_col2im(const ConvParams& p, const View& grad, const View& out, bool can_stay,
                              int64_t size, int64_t lanes, int64_t most) {
  constexpr int64_t kColumns = 20 << 10, kCopy = 16 << 10, kBands = 4, kRows = 4, kAlias = 4096;
  const int64_t C = p.C / p.groups, K = p.K / p.groups, columns = p.R * p.S * C;
  auto whole = [&](int64_t elements) { return ceil_div(elements, lanes) * lanes; };
  // Planes of one element are of either layout.
  Col2imPlan plan{p, grad.c == 1 && out.c == 1, C, K, columns, GemmPanels(columns, lanes, most)};
  plan.k_pitch = K * size % kAlias ? K : K + lanes;
  plan.weights = plan.nhwc ? whole(columns) * K : columns * plan.k_pitch;
  // Measured on an Ice Lake: columns in L2 are no slower than in L1, short rows of pixels are.
  const int64_t pixels =
      std::max<int64_t>(std::min(kColumns / whole(columns), kCopy / K), most * lanes);
  plan.block_cols = std::min(p.Q, whole(ceil_div(p.Q, ceil_div(p.Q, pixels))));
  plan.block_rows = std::clamp<int64_t>(pixels / p.Q, 1, p.P);
  plan.block_rows = ceil_div(p.P, ceil_div(p.P, plan.block_rows));
  plan.in_place = plan.nhwc && can_stay && grad.w * size % kAlias;
  plan.from_memory = outgrow_caches(p.N * grad.n * size);
  const int64_t reach_h = (p.R - 1) * p.dil_h + 1, reach_w = (p.S - 1) * p.dil_w + 1;
  // What bands share is computed for both.
  const int64_t most_bands = std::clamp<int64_t>(p.H / (kRows * reach_h), 1, kBands);
  plan.bands = even_blocks(1, p.N * p.groups, most_bands);
  plan.ring = (plan.block_rows - 1) * p.stride_h + reach_h;
  const int64_t width = std::max((p.Q - 1) * p.stride_w + reach_w, p.pad_left + p.W);
  plan.line = whole(plan.nhwc ? width * C : ceil_div(width, p.stride_w));
  plan.row = plan.line * (plan.nhwc ? 1 : C * p.stride_w);
  const int64_t most_pixels = plan.block_rows * plan.block_cols;
  plan.pitch = whole(plan.nhwc ? columns : most_pixels);
  // Vectors are read and written to their end, and read from a vector before their first element.
  const int64_t slack = 2 * lanes;
  plan.copy_size = slack + (!plan.nhwc      ? K * most * lanes
                            : plan.in_place ? 0
                                            : whole(most_pixels * plan.k_pitch));
  plan.columns_size = slack + plan.pitch * (plan.nhwc ? most_pixels : columns);
  plan.ring_size = slack + plan.ring * plan.row;
  return plan;
}

template <typename T>
void run_conv2d_col2im(const ConvParams& p, const View& grad, const T* weight, const View& out);

}  // namespace cnnkern
