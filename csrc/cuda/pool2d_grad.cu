// Backward pooling as a gather: a thread adds up, window by window in ascending order, what one
// element of the plane is due of the windows that hold it, so nothing is added atomically. A block
// stages the windows over its tile of the plane once. In NHWC a thread has 16 bytes of channels.
#include "pool2d_tile.cuh"

namespace cnnkern {
namespace {

struct PoolDgrad {
  PoolTiles tiles;
  PoolAxis rows, cols;
  int64_t divisor;  // of all windows; 0: they differ
};

// Of an average pool every window gives its share; of a max pool those whose maximum this is.
template <typename T, typename I, int kLanes, bool kStaged>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool2d_dgrad_kernel(PoolDgrad f, const T* grad, const I* saved, T* to) {
  typedef AccOf<T> A;
  constexpr bool kMax = !std::is_void_v<I>;
  typedef std::conditional_t<kMax, I, char> Place;
  extern __shared__ uint4 shared[];
  const PoolTiles& t = f.tiles;
  for (int64_t i = blockIdx.x; i < t.count; i += gridDim.x) {
    const PoolTile tile = pool_tile(t, i);
    PoolView<T, kStaged> from;
    PoolView<Place, kStaged> places;
    if constexpr (kStaged) {
      PoolSource s{0, t.H, 0, t.W};
      if (t.planes == 1) {
        s.row = min(f.rows.lowest(tile.row), t.H);
        s.rows = max(0, f.rows.highest(tile.row + tile.rows - 1) + 1 - s.row);
      }
      if (t.cols < t.E) {
        s.col = min(f.cols.lowest(tile.col), t.W);
        s.cols = max(0, f.cols.highest(tile.col + tile.cols - 1) + 1 - s.col);
      }
      char* memory = reinterpret_cast<char*>(shared);
      from = stage_tile(t, tile, s, reinterpret_cast<T*>(memory), grad);
      if constexpr (kMax)
        places = stage_tile(t, tile, s, reinterpret_cast<Place*>(memory + t.saved_at), saved);
      wait_for_copies();
    } else {
      from = view_tile(t, tile, grad);
      if constexpr (kMax) places = view_tile(t, tile, saved);
    }
    const int count = pool_elements(t, tile);
    for (int j = pool_first<kLanes>(t, tile) + int(threadIdx.x); j < count; j += kPoolThreads) {
      PoolElement e;
      if (j < 0 || !pool_element<kLanes>(t, tile, j, e)) continue;
      const int h = e.row, w = e.col;
      const int p_end = f.rows.highest(h) + 1, q_end = f.cols.highest(w) + 1;
      const int q_begin = f.cols.lowest(w);
      A sum[kLanes] = {};
#pragma unroll 1
      for (int p = f.rows.lowest(h); p < p_end; ++p) {
        const int r = f.rows.adaptive ? 0 : f.rows.tap(p, h);
        if (r < 0) continue;
        int64_t row_divisor = 1;
        if (!kMax && !f.divisor) row_divisor = f.rows.divisor(p, f.rows.window(p));
#pragma unroll 1
        for (int q = q_begin; q < q_end; ++q) {
          const int u = f.cols.adaptive ? 0 : f.cols.tap(q, w);
          if (u < 0) continue;
          const auto g = *reinterpret_cast<const PoolVec<T, kLanes>*>(from.at(e.plane, p, q, e.ch));
          if constexpr (kMax) {
            const auto at =
                *reinterpret_cast<const PoolVec<Place, kLanes>*>(places.at(e.plane, p, q, e.ch));
            const Place here =
                sizeof(Place) == 1 ? Place(r * f.cols.k + u) : Place(int64_t(h) * f.cols.size + w);
#pragma unroll
            for (int v = 0; v < kLanes; ++v) sum[v] += at.lane[v] == here ? widen(g.lane[v]) : A(0);
          } else {
            A share = 1;
            if (!f.divisor) share = A(1) / A(row_divisor * f.cols.divisor(q, f.cols.window(q)));
#pragma unroll
            for (int v = 0; v < kLanes; ++v) sum[v] += widen(g.lane[v]) * share;
          }
        }
      }
      PoolVec<T, kLanes> out;
#pragma unroll
      for (int v = 0; v < kLanes; ++v)
        out.lane[v] = narrow<T>(!kMax && f.divisor ? sum[v] / A(f.divisor) : sum[v]);
      const int64_t at = pool_offset(t, tile, e);
      *reinterpret_cast<PoolVec<T, kLanes>*>(to + at) = out;
    }
    __syncthreads();  // the next tile overwrites this one's source
  }
}

int64_t common_divisor(const PoolParams& p) {
  if (p.divisor_override) return p.divisor_override;
  if (p.adaptive) return p.H % p.P || p.W % p.Q ? 0 : (p.H / p.P) * (p.W / p.Q);
  const bool overhang = (p.P - 1) * p.stride_h + p.R > p.H + 2 * p.pad_h ||
                        (p.Q - 1) * p.stride_w + p.S > p.W + 2 * p.pad_w;
  const bool padded = p.pad_h || p.pad_w;
  return overhang || (padded && !p.count_include_pad) ? 0 : p.R * p.S;
}

template <typename T, typename I>
void launch_pool2d_dgrad_as(const PoolCall& call) {
  const PoolParams& p = call.p;
  PoolDgrad f{{}, pool_rows(p), pool_cols(p), call.kind == PoolKind::kAvg ? common_divisor(p) : 1};
  PoolTiles t{};
  t.D = int(p.H), t.E = int(p.W), t.H = int(p.P), t.W = int(p.Q);
  t.C = int(call.nhwc ? p.C : 1), t.planes_total = call.nhwc ? p.N : p.N * p.C;
  constexpr int kLanes = 16 / sizeof(T);
  int64_t saved_bytes = 0;
  if constexpr (!std::is_void_v<I>) saved_bytes = sizeof(I);
  const bool vector = call.nhwc && p.C % kLanes == 0 &&
                      reinterpret_cast<uintptr_t>(call.from) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(call.saved_at) % 16 == 0;
  f.tiles = plan_pool_tiles(
      t, vector ? kLanes : 1, sizeof(T), saved_bytes, sizeof(T),
      [&](int64_t n) { return pool_covers(f.rows, n); },
      [&](int64_t n) { return pool_covers(f.cols, n); });
  const auto launch = [&](auto kernel) {
    kernel<<<grid_for(f.tiles.count, 1), kPoolThreads, f.tiles.shared_bytes, call.stream>>>(
        f, static_cast<const T*>(call.from), static_cast<const I*>(call.saved_at),
        static_cast<T*>(call.to));
  };
  if (!f.tiles.staged) {
    f.tiles.by_ch = FastDiv(f.tiles.ch);
    launch(pool2d_dgrad_kernel<T, I, 1, false>);
  } else if (vector) {
    launch(pool2d_dgrad_kernel<T, I, kLanes, true>);
  } else {
    launch(pool2d_dgrad_kernel<T, I, 1, true>);
  }
}

}  // namespace

cudaError_t launch_pool2d_dgrad(const PoolCall& call) {
  if (call.p.N == 0) return cudaSuccess;
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    if (call.saved == PoolSaved::kOffsets) return launch_pool2d_dgrad_as<T, uint8_t>(call);
    if (call.saved == PoolSaved::kIndices) return launch_pool2d_dgrad_as<T, int64_t>(call);
    launch_pool2d_dgrad_as<T, void>(call);
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
