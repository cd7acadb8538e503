// Forward pooling with few and large windows, global pools above all: threads share a window, as
// its lanes, and combine what they found in a fixed order. Tiles are staged, so that the planes of
// NCHW, which need not begin where sectors do, are one run; windows that do not fit into shared
// memory, or lie far apart, are read where they are.
#pragma once
#include "pool2d_fprop.cuh"

namespace cnnkern {

// A block is lanes x windows threads. Neighbours in memory are neighbours among the threads:
// columns, thus lanes, in NCHW; channels, thus windows, in NHWC.
struct PoolLanes {
  int lanes, windows, lane_step, window_step;

  PoolLanes(int lanes, bool nhwc)
      : lanes(lanes),
        windows(kPoolThreads / lanes),
        lane_step(nhwc ? kPoolThreads / lanes : 1),
        window_step(nhwc ? 1 : lanes) {}
};

constexpr int kNoTap = -1;

// A window and where it is; x is its first tap inside the plane, `to` its place in the pooled side.
template <typename T, typename Step>
struct WideWindow {
  bool valid;
  int p, q;
  const T* x;
  Step row_step, col_step;
  int64_t to;
};

// Tap r*cols + u of the window is taken by lane (r*cols + u) % lanes.
template <PoolKind kKind, typename T, typename Step>
__device__ __forceinline__ void walk_taps(const WideWindow<T, Step>& at, int rows, int cols,
                                          int lane, int lanes, AccOf<T>& value, int& tap) {
  typedef AccOf<T> A;
  value = kKind == PoolKind::kAvg ? A(0) : A(-INFINITY);
  tap = kNoTap;
  if (cols == 0) return;
  const int r_step = lanes / cols, u_step = lanes % cols;
  int r = lane / cols, u = lane % cols;
  while (r < rows) {
    const A y = widen(at.x[r * at.row_step + u * at.col_step]);
    if constexpr (kKind == PoolKind::kAvg)
      value += y;
    else if (tap == kNoTap || y > value || y != y)
      value = y, tap = r * cols + u;
    r += r_step, u += u_step;
    if (u >= cols) u -= cols, ++r;
  }
}

// Leaves in the slot of lane 0 what the lanes of a window found together.
template <PoolKind kKind, typename A>
__device__ __forceinline__ void combine_lanes(A* values, int* taps, const PoolLanes& l, int lane) {
  __syncthreads();
  for (int half = l.lanes / 2; half > 0; half /= 2) {
    if (lane < half) {
      const int a = threadIdx.x, b = a + half * l.lane_step;
      if constexpr (kKind == PoolKind::kAvg) {
        values[a] += values[b];
      } else if (taps[b] != kNoTap) {
        const A x = values[a], y = values[b];
        const bool nan_x = x != x, nan_y = y != y;
        if (taps[a] == kNoTap ||
            (nan_x ? nan_y && taps[b] > taps[a] : nan_y || y > x || (y == x && taps[b] < taps[a])))
          values[a] = y, taps[a] = taps[b];
      }
    }
    __syncthreads();
  }
}

// Windows first, first + 1, ... of those that `locate` numbers, one for each group of lanes.
template <PoolKind kKind, PoolSaved kSaved, typename T, typename Locate>
__device__ __forceinline__ void pool_wide_windows(const PoolFprop& f, const PoolLanes& l,
                                                  int64_t first, const Locate& locate, T* to,
                                                  SavedOf<kSaved>* saved) {
  typedef AccOf<T> A;
  __shared__ A values[kPoolThreads];
  __shared__ int taps[kPoolThreads];
  const int lane = threadIdx.x / l.lane_step % l.lanes;
  const auto mine = locate(first + threadIdx.x / l.window_step % l.windows);
  const auto rows_of = [&](int p) { return taps_in(f.rows.window(p), f.rows); };
  const auto cols_of = [&](int q) { return taps_in(f.cols.window(q), f.cols); };
  walk_taps<kKind>(mine, mine.valid ? rows_of(mine.p) : 0, cols_of(mine.q), lane, l.lanes,
                   values[threadIdx.x], taps[threadIdx.x]);
  combine_lanes<kKind>(values, taps, l, lane);
  // Neighbours write neighbours, whichever their lanes were.
  const auto out = locate(first + threadIdx.x);
  if (threadIdx.x < l.windows && out.valid) {
    const PoolWindow row = f.rows.window(out.p), col = f.cols.window(out.q);
    A value = values[threadIdx.x * l.window_step];
    if constexpr (kKind == PoolKind::kAvg) {
      value /= f.divisor_override
                   ? A(f.divisor_override)
                   : A(int64_t(f.rows.divisor(out.p, row)) * f.cols.divisor(out.q, col));
    } else if constexpr (kSaved != PoolSaved::kNone) {
      const PoolCodes<kSaved> codes(f, row, col);
      const int tap = max(taps[threadIdx.x * l.window_step], 0), cols = max(cols_of(out.q), 1);
      saved[out.to] =
          SavedOf<kSaved>(codes.start + tap / cols * codes.row_step + tap % cols * codes.col_step);
    }
    to[out.to] = narrow<T>(value);
  }
  __syncthreads();  // the next windows overwrite the values
}

template <typename T, PoolKind kKind, PoolSaved kSaved, bool kStaged>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool2d_fprop_wide_kernel(PoolFprop f, PoolLanes l, const T* from, T* to,
                             SavedOf<kSaved>* saved) {
  const PoolTiles& t = f.tiles;
  if constexpr (kStaged) {
    extern __shared__ uint4 shared[];
    for (int64_t i = blockIdx.x; i < t.count; i += gridDim.x) {
      const PoolTile tile = pool_tile(t, i);
      const auto in = stage_tile(t, tile, source_of(f, tile), reinterpret_cast<T*>(shared), from);
      wait_for_copies();
      const int count = pool_elements(t, tile);
      const auto locate = [&](int64_t j) {
        PoolElement e;
        const bool valid = pool_element<1>(t, tile, int(j), e) && j < count;
        const int h = f.rows.window(e.row).begin, w = f.cols.window(e.col).begin;
        return WideWindow<T, int>{valid,
                                  e.row,
                                  e.col,
                                  in.at(e.plane, h, w, e.ch),
                                  in.rows * f.rows.dil,
                                  in.cols * f.cols.dil,
                                  pool_offset(t, tile, e)};
      };
      for (int first = 0; first < count; first += l.windows)
        pool_wide_windows<kKind, kSaved>(f, l, first, locate, to, saved);
    }
  } else {
    const int64_t count = t.planes_total * t.D * t.E * t.C;
    const auto locate = [&](int64_t i) {
      int64_t c = i;
      int64_t q = f.by_C.split(c), p = f.cols.by_out.split(q);
      const int64_t plane = f.rows.by_out.split(p);
      const int h = f.rows.window(int(p)).begin, w = f.cols.window(int(q)).begin;
      const int64_t pixel = t.C, line = t.W * pixel;
      return WideWindow<T, int64_t>{i < count,
                                    int(p),
                                    int(q),
                                    from + plane * t.H * line + h * line + w * pixel + c,
                                    line * f.rows.dil,
                                    pixel * f.cols.dil,
                                    i};
    };
    for (int64_t first = int64_t(blockIdx.x) * l.windows; first < count;
         first += int64_t(gridDim.x) * l.windows)
      pool_wide_windows<kKind, kSaved>(f, l, first, locate, to, saved);
  }
}

// A NCHW window of a few dozen taps would leave most lanes of a warp idle.
inline int staged_lanes(bool nhwc, int64_t taps) {
  return nhwc || taps < 128 ? 8 : taps < 2048 ? 32 : kPoolThreads;
}

}  // namespace cnnkern
