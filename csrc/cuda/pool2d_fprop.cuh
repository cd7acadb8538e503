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

template <typename T, PoolKind kKind, PoolSaved kSaved, int kLanes, int kWindow>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool2d_fprop_kernel(PoolFprop f, const T* from, T* to, SavedOf<kSaved>* saved) {
  typedef AccOf<T> A;
  typedef std::conditional_t<kKind == PoolKind::kAvg, AvgState<A>, MaxState<A, kSaved>> State;
  extern __shared__ uint4 shared[];
  const PoolTiles& t = f.tiles;
  for (int64_t i = blockIdx.x; i < t.count; i += gridDim.x) {
    const PoolTile tile = pool_tile(t, i);
    PoolSource s{0, t.H, 0, t.W};
    if (t.planes == 1) {
      s.row = max(0, min(f.rows.size, f.rows.low(tile.row)));
      s.rows = max(0, f.rows.high(tile.row + tile.rows - 1) - s.row);
    }
    if (t.cols < t.E) {
      s.col = max(0, min(f.cols.size, f.cols.low(tile.col)));
      s.cols = max(0, f.cols.high(tile.col + tile.cols - 1) - s.col);
    }
    const PoolView<T, true> in = stage_tile(t, tile, s, reinterpret_cast<T*>(shared), from);
    wait_for_copies();
    const int count = pool_elements(t, tile);
    for (int j = threadIdx.x; j < count; j += kPoolThreads) {
      PoolElement e;
      if (!pool_element<kLanes>(t, tile, j, e)) continue;
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

// ---- windows that are too large to stage, or few and large
// ---------------------------------------

// kTaps threads share a window, the others are other windows; combined in a fixed order.
constexpr int kWideTaps = 32;

template <typename T, PoolKind kKind, PoolSaved kSaved>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool2d_fprop_wide_kernel(PoolFprop f, const T* from, T* to, SavedOf<kSaved>* saved,
                             int64_t count) {
  typedef AccOf<T> A;
  constexpr int kWindows = kPoolThreads / kWideTaps;
  __shared__ A values[kWideTaps][kWindows + 1];
  __shared__ int64_t places[kWideTaps][kWindows + 1];
  const PoolTiles& t = f.tiles;
  // Neighbours in memory are neighbours among the threads: columns in NCHW, channels in NHWC.
  const bool nhwc = t.C > 1;
  const int lane = nhwc ? threadIdx.x / kWindows : threadIdx.x % kWideTaps;
  const int mine = nhwc ? threadIdx.x % kWindows : threadIdx.x / kWideTaps;
  for (int64_t first = int64_t(blockIdx.x) * kWindows; first < count;
       first += int64_t(gridDim.x) * kWindows) {
    const int64_t i = min(first + mine, count - 1);
    int64_t c = i;
    int64_t q = f.by_C.split(c), p = f.cols.by_out.split(q);
    const int64_t plane = f.rows.by_out.split(p);
    const PoolWindow row = f.rows.window(int(p)), col = f.cols.window(int(q));
    const int rows = taps_in(row, f.rows), cols = taps_in(col, f.cols);
    const T* x = from + ((plane * t.H + row.begin) * t.W + col.begin) * t.C + c;
    // Tap r*cols + u is taken by lane (r*cols + u) % kWideTaps.
    A value = kKind == PoolKind::kAvg ? A(0) : A(-INFINITY);
    int64_t place = INT64_MAX;
    int r = cols ? lane / cols : rows, u = cols ? lane % cols : 0;
    while (r < rows) {
      const A y = widen(x[(int64_t(r) * f.rows.dil * t.W + int64_t(u) * f.cols.dil) * t.C]);
      if constexpr (kKind == PoolKind::kAvg) {
        value += y;
      } else if (place == INT64_MAX || y > value || y != y) {
        value = y, place = int64_t(r) * cols + u;
      }
      for (u += kWideTaps; u >= cols && r < rows; u -= cols) ++r;
    }
    values[lane][mine] = value, places[lane][mine] = place;
    __syncthreads();
    for (int half = kWideTaps / 2; half > 0; half /= 2) {
      if (lane < half) {
        const A a = values[lane][mine], b = values[lane + half][mine];
        if constexpr (kKind == PoolKind::kAvg) {
          values[lane][mine] = a + b;
        } else {
          const int64_t at_a = places[lane][mine], at_b = places[lane + half][mine];
          const bool nan_a = a != a, nan_b = b != b;
          const bool take =
              nan_a ? nan_b && at_b > at_a : nan_b || b > a || (b == a && at_b < at_a);
          if (take) values[lane][mine] = b, places[lane][mine] = at_b;
        }
      }
      __syncthreads();
    }
    if (lane == 0 && first + mine < count) {
      A out = values[0][mine];
      if constexpr (kKind == PoolKind::kAvg) {
        out /= f.divisor_override
                   ? A(f.divisor_override)
                   : A(int64_t(f.rows.divisor(int(p), row)) * f.cols.divisor(int(q), col));
      } else if constexpr (kSaved != PoolSaved::kNone) {
        const PoolCodes<kSaved> codes(f, row, col);
        const int64_t at = places[0][mine];
        int64_t code = codes.start;
        if (at != INT64_MAX)
          code += at / cols * int64_t(codes.row_step) + at % cols * int64_t(codes.col_step);
        saved[i] = SavedOf<kSaved>(code);
      }
      to[i] = narrow<T>(out);
    }
    __syncthreads();  // the next windows overwrite the sums
  }
}

template <typename T, PoolKind kKind, PoolSaved kSaved>
void launch_pool2d_fprop_as(const PoolCall& call) {
  typedef SavedOf<kSaved> I;
  const PoolParams& p = call.p;
  PoolFprop f{{}, pool_rows(p), pool_cols(p), LongDiv(call.nhwc ? p.C : 1), p.divisor_override};
  PoolTiles t{};
  t.D = int(p.P), t.E = int(p.Q), t.H = int(p.H), t.W = int(p.W);
  t.C = int(call.nhwc ? p.C : 1), t.planes_total = call.nhwc ? p.N : p.N * p.C;
  const T* from = static_cast<const T*>(call.from);
  T* to = static_cast<T*>(call.to);
  I* saved = static_cast<I*>(call.saved_to);
  constexpr int kLanes = 16 / sizeof(T);
  const bool vector = call.nhwc && p.C % kLanes == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  f.tiles = plan_pool_tiles(
      t, vector ? kLanes : 1, sizeof(T), 0,
      sizeof(T) + (kSaved == PoolSaved::kNone ? 0 : sizeof(I)),
      [&](int64_t n) { return pool_reach(f.rows, n); },
      [&](int64_t n) { return pool_reach(f.cols, n); });
  const int64_t count = p.N * p.C * p.P * p.Q;
  const int64_t taps = pool_reach(f.rows, 1) * pool_reach(f.cols, 1);
  // Windows that tile the plane, or less, are read once by either kernel.
  const bool few = taps >= kWideTaps && double(p.P * p.Q) * double(taps) < 1.1 * double(p.H * p.W);
  if (!f.tiles.staged || few) {
    pool2d_fprop_wide_kernel<T, kKind, kSaved>
        <<<grid_for(count, kPoolThreads / kWideTaps), kPoolThreads, 0, call.stream>>>(f, from, to,
                                                                                      saved, count);
    return;
  }
  const auto launch = [&](auto kernel) {
    const unsigned grid = grid_for(f.tiles.count, 1);
    kernel<<<grid, kPoolThreads, f.tiles.shared_bytes, call.stream>>>(f, from, to, saved);
  };
  const bool plain = !p.adaptive && p.dil_h == 1 && p.dil_w == 1 && p.R == p.S;
  if (vector) return launch(pool2d_fprop_kernel<T, kKind, kSaved, kLanes, 0>);
  if constexpr (sizeof(T) < 8) {
    if (plain && p.R == 2 && !call.nhwc) return launch(pool2d_fprop_kernel<T, kKind, kSaved, 1, 2>);
    if (plain && p.R == 3 && !call.nhwc) return launch(pool2d_fprop_kernel<T, kKind, kSaved, 1, 3>);
  }
  launch(pool2d_fprop_kernel<T, kKind, kSaved, 1, 0>);
}

void launch_max_pool2d_fprop(const PoolCall& call);

}  // namespace cnnkern
