// Forward pooling. A block stages the part of the plane under its tile of windows, then a thread
// walks one window, or in NHWC the windows of 16 bytes of channels. Windows of 2x2 and 3x3 are
// unrolled in NCHW; in NHWC their walk is shared by the channels.
#pragma once
#include "pool2d_tile.cuh"

namespace cnnkern {

struct PoolFprop {
  PoolTiles tiles;
  PoolAxis rows, cols;
  LongDiv by_C;
  int64_t divisor_override;
};

// What becomes of the taps of a window.
template <typename A>
struct AvgState {
  A value = 0;
  __device__ __forceinline__ void tap(A x, int) { value += x; }
};

// The strict comparison keeps the first maximum; NaN beats everything, the last one counts.
template <typename A, PoolSaved kSaved>
struct MaxState {
  A value = -INFINITY;
  int code;
  __device__ __forceinline__ void tap(A x, int at) {
    if (x > value || x != x) {
      value = x;
      if constexpr (kSaved != PoolSaved::kNone) code = at;
    }
  }
};

template <PoolSaved kSaved>
using SavedOf = std::conditional_t<kSaved == PoolSaved::kIndices, int64_t, uint8_t>;

__device__ __forceinline__ int taps_in(const PoolWindow& w, const PoolAxis& axis) {
  if (w.end <= w.begin) return 0;
  return axis.adaptive || axis.dil == 1 ? w.end - w.begin
                                        : axis.by_dil.quotient(w.end - w.begin - 1) + 1;
}

// How a tap is numbered: r*S + s in its window, or h*W + w in the plane.
template <PoolSaved kSaved>
struct PoolCodes {
  int start, row_step, col_step;
  __device__ __forceinline__ PoolCodes(const PoolFprop& f, const PoolWindow& row,
                                       const PoolWindow& col) {
    if constexpr (kSaved == PoolSaved::kIndices) {
      start = row.begin * f.cols.size + col.begin;
      row_step = f.rows.dil * f.cols.size, col_step = f.cols.dil;
    } else {
      start = row.first * f.cols.k + col.first;
      row_step = f.cols.k, col_step = 1;
    }
  }
};

// The part of the plane under a tile's windows.
__device__ __forceinline__ PoolSource source_of(const PoolFprop& f, const PoolTile& tile) {
  const PoolTiles& t = f.tiles;
  PoolSource s{0, t.H, 0, t.W};
  if (t.planes == 1) {
    s.row = max(0, min(f.rows.size, f.rows.low(tile.row)));
    s.rows = max(0, f.rows.high(tile.row + tile.rows - 1) - s.row);
  }
  if (t.cols < t.E) {
    s.col = max(0, min(f.cols.size, f.cols.low(tile.col)));
    s.cols = max(0, f.cols.high(tile.col + tile.cols - 1) - s.col);
  }
  return s;
}

template <typename T, PoolKind kKind, PoolSaved kSaved, int kLanes, int kWindow>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool2d_fprop_kernel(PoolFprop f, const T* from, T* to, SavedOf<kSaved>* saved) {
  typedef AccOf<T> A;
  typedef std::conditional_t<kKind == PoolKind::kAvg, AvgState<A>, MaxState<A, kSaved>> State;
  extern __shared__ uint4 shared[];
  const PoolTiles& t = f.tiles;
  for (int64_t i = blockIdx.x; i < t.count; i += gridDim.x) {
    const PoolTile tile = pool_tile(t, i);
    const auto in = stage_tile(t, tile, source_of(f, tile), reinterpret_cast<T*>(shared), from);
    wait_for_copies();
    const int count = pool_elements(t, tile);
    for (int j = pool_first<kLanes>(t, tile) + int(threadIdx.x); j < count; j += kPoolThreads) {
      PoolElement e;
      if (j < 0 || !pool_element<kLanes>(t, tile, j, e)) continue;
      const int p = e.row, q = e.col;
      const PoolWindow row = f.rows.window(p), col = f.cols.window(q);
      const PoolCodes<kSaved> codes(f, row, col);
      State state[kLanes];
      if constexpr (kKind == PoolKind::kMax && kSaved != PoolSaved::kNone)
        for (int v = 0; v < kLanes; ++v) state[v].code = codes.start;
      if constexpr (kWindow > 0) {
        const T* x = in.at(e.plane, row.begin, col.begin, e.ch);
#pragma unroll
        for (int r = 0; r < kWindow; ++r)
#pragma unroll
          for (int u = 0; u < kWindow; ++u)
            if (row.begin + r < row.end && col.begin + u < col.end)
              state[0].tap(widen(x[r * in.rows + u * in.cols]),
                           codes.start + r * codes.row_step + u * codes.col_step);
      } else {
        const int rows = taps_in(row, f.rows), cols = taps_in(col, f.cols);
        const int row_step = in.rows * f.rows.dil, col_step = in.cols * f.cols.dil;
        const T* x = in.at(e.plane, row.begin, col.begin, e.ch);
        for (int r = 0; r < rows; ++r, x += row_step) {
          const T* tap = x;
          auto code = codes.start + r * codes.row_step;
          for (int u = 0; u < cols; ++u, tap += col_step, code += codes.col_step) {
            const auto vec = *reinterpret_cast<const PoolVec<T, kLanes>*>(tap);
#pragma unroll
            for (int v = 0; v < kLanes; ++v) state[v].tap(widen(vec.lane[v]), code);
          }
        }
      }
      PoolVec<T, kLanes> out;
      A divisor = 1;
      if constexpr (kKind == PoolKind::kAvg)
        divisor = f.divisor_override ? A(f.divisor_override)
                                     : A(int64_t(f.rows.divisor(p, row)) * f.cols.divisor(q, col));
#pragma unroll
      for (int v = 0; v < kLanes; ++v)
        out.lane[v] =
            narrow<T>(kKind == PoolKind::kAvg ? state[v].value / divisor : state[v].value);
      const int64_t at = pool_offset(t, tile, e);
      *reinterpret_cast<PoolVec<T, kLanes>*>(to + at) = out;
      if constexpr (kKind == PoolKind::kMax && kSaved != PoolSaved::kNone) {
        PoolVec<SavedOf<kSaved>, kLanes> codes_out;
#pragma unroll
        for (int v = 0; v < kLanes; ++v) codes_out.lane[v] = SavedOf<kSaved>(state[v].code);
        *reinterpret_cast<PoolVec<SavedOf<kSaved>, kLanes>*>(saved + at) = codes_out;
      }
    }
    __syncthreads();  // the next tile overwrites this one's source
  }
}

}  // namespace cnnkern
