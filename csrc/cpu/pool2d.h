// What the pooling kernels are handed: for each axis, which window takes which positions (forward)
// and which windows hold a position (backward), as tables. Plain, padded, dilated, ceil_mode and
// adaptive pools differ in these tables alone, so that no kernel knows of those options.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "params.h"

namespace cnnkern {

// Window i along one axis: positions begin, begin + dil, ... < end, all inside the plane.
struct Window {
  int32_t begin, end;
  int32_t first;    // which tap of the window `begin` is: not 0 where the window starts in padding
  int32_t divisor;  // what the window counts along this axis in an average
};

// A window that holds a position, and as which of its taps.
struct Cover {
  int32_t window, tap;
};

// The tables of one axis. Position h has covers[offsets[h]] .. covers[offsets[h + 1] - 1], windows
// ascending; they are filled for backward only.
struct PoolAxis {
  int64_t dil;
  std::vector<Window> windows;
  std::vector<Cover> covers;
  std::vector<int64_t> offsets;
};

inline PoolAxis make_pool_axis(int64_t size, int64_t out, int64_t k, int64_t stride, int64_t pad,
                               int64_t dil, bool adaptive, bool count_include_pad) {
  PoolAxis axis{dil, std::vector<Window>(size_t(out)), {}, {}};
  int64_t i = 0;
  for (Window& w : axis.windows) {
    const int64_t start = adaptive ? i * size / out : i * stride - pad;
    const int64_t stop = adaptive ? ((i + 1) * size + out - 1) / out : start + (k - 1) * dil + 1;
    const int64_t first = start < 0 ? (-start + dil - 1) / dil : 0;
    const int64_t begin = start + first * dil, end = std::max(begin, std::min(size, stop));
    const bool clip = adaptive || !count_include_pad;
    const int64_t divisor = clip ? end - begin : std::min(stop, size + pad) - start;
    w = {int32_t(begin), int32_t(end), int32_t(first), int32_t(divisor)};
    ++i;
  }
  return axis;
}

inline void add_covers(PoolAxis& axis, int64_t size) {
  axis.offsets.assign(size_t(size) + 2, 0);
  for (const Window& w : axis.windows)
    for (int64_t i = w.begin; i < w.end; i += axis.dil) ++axis.offsets[size_t(i) + 2];
  for (size_t i = 2; i < axis.offsets.size(); ++i) axis.offsets[i] += axis.offsets[i - 1];
  axis.covers.resize(size_t(axis.offsets.back()));
  for (size_t n = 0; n < axis.windows.size(); ++n) {
    int32_t tap = axis.windows[n].first;
    for (int64_t i = axis.windows[n].begin; i < axis.windows[n].end; i += axis.dil)
      axis.covers[size_t(axis.offsets[size_t(i) + 1]++)] = {int32_t(n), tap++};
  }
}

// A pool or its gradient. `plane` is the [N, C, H, W] side and `pooled` the [N, C, P, Q] side:
// forward reads the one and writes the other, backward the reverse.
struct PoolJob {
  PoolParams p;
  PoolKind kind;
  DType dtype;
  bool nhwc;
  int64_t row_dil, col_dil;
  const Window *rows, *cols;  // P and Q of them
  const Cover *row_covers, *col_covers;
  const int64_t *row_offsets, *col_offsets;  // H + 1 and W + 1 of them
  void* plane;
  void* pooled;
  uint8_t* offsets;  // of a max pool, at most one of the two: tap r*S + s of the window,
  int64_t* indices;  // or position h*W + w in the plane
  bool fetch;        // what is read is large: ahead of its use
  bool stream;       // what is written is: past the caches, whole lines at a time
};

// Which offsets the windows of a plane take. Bits of an offset: r of its row, R + s of its column.
struct OffsetRules {
  static constexpr int64_t kTaps = 16, kBits = 8;  // no larger window has such rules
  int64_t taps;
  uint8_t bits[kTaps];
  std::vector<uint8_t> denied;  // by window: the bits of rows and columns outside the plane
};

// Moves between a plane and its windows by saved position (max_unpool2d.inc). An NCHW tensor is
// N*C images of one channel, an NHWC tensor N images of C.
enum class IndexMove : int { kScatterAdd, kScatter, kGather };
struct IndexJob {
  IndexMove move;
  DType dtype;
  int64_t images, C;
  int64_t plane, pooled;  // H*W and P*Q
  const void* from;
  void* to;
  const int64_t* indices;
  const uint8_t* offsets;  // in place of indices; they need the windows
  PoolParams p;

  // Where tap `offset` of window i lies in the plane; -1: outside.
  int64_t position(int64_t i, uint8_t offset) const {
    const int64_t h = i / p.Q * p.stride_h - p.pad_h + offset / p.S * p.dil_h;
    const int64_t w = i % p.Q * p.stride_w - p.pad_w + offset % p.S * p.dil_w;
    return h < 0 || h >= p.H || w < 0 || w >= p.W ? -1 : h * p.W + w;
  }
};

}  // namespace cnnkern
