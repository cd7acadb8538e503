// The launch of a forward pool: which of the kernels, and the cut into tiles.
#pragma once
#include "pool2d_wide.cuh"

namespace cnnkern {

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
  // Windows with taps for several threads. To stage them pays where they leave little out.
  const int64_t taps = pool_reach(f.rows, 1) * pool_reach(f.cols, 1);
  const double share = double(p.P * p.Q) * double(taps) / (double(p.H) * double(p.W));
  const bool few = taps >= 32 && share < 1.1, sparse = few && share < 0.7;
  const bool vector =
      !few && call.nhwc && p.C % kLanes == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  f.tiles = plan_pool_tiles(
      t, vector ? kLanes : 1, sizeof(T), 0,
      sizeof(T) + (kSaved == PoolSaved::kNone ? 0 : sizeof(I)),
      [&](int64_t n) { return pool_reach(f.rows, n); },
      [&](int64_t n) { return pool_reach(f.cols, n); });
  if (!f.tiles.staged || sparse) {
    // Of channels, the windows of a block read a sector at a time.
    const PoolLanes lanes(call.nhwc && sizeof(T) == 2 ? 16 : 32, call.nhwc);
    const unsigned grid = grid_for(p.N * p.C * p.P * p.Q, lanes.windows);
    pool2d_fprop_wide_kernel<T, kKind, kSaved, false>
        <<<grid, kPoolThreads, 0, call.stream>>>(f, lanes, from, to, saved);
    return;
  }
  const unsigned grid = grid_for(f.tiles.count, 1);
  if (few) {
    const PoolLanes lanes(staged_lanes(call.nhwc, taps), call.nhwc);
    pool2d_fprop_wide_kernel<T, kKind, kSaved, true>
        <<<grid, kPoolThreads, f.tiles.shared_bytes, call.stream>>>(f, lanes, from, to, saved);
    return;
  }
  const auto launch = [&](auto kernel) {
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
