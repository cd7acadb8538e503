// The weight, rewritten for a matrix product: [group][b][tap][a] or [group][tap][b][a], where a and
// b are its two axes of channels, filled up with zeros to whole tiles. Tiles of 32 a x 32 (b, tap)
// turn around in shared memory, so that both sides are read and written along memory:
//   NCHW, a = C: all taps of 32 channels | NCHW, a = K: 32 of (C, tap) | NHWC: 32 of C
#pragma once
#include "common.cuh"

namespace cnnkern {

constexpr int kPackTile = 32, kPackThreads = 128;

struct PackAxis {
  int64_t extent, padded, from, to;  // from, to: pitches
};

struct PackShape {
  PackAxis a, b, taps;       // a.to == 1
  int64_t groups, from, to;  // from, to: pitches of a group
  bool taps_inside;          // of the two others, taps are the denser ones in the source
  int64_t run;               // of (b, tap) that a tile must not go beyond
  int width;                 // of a tile
  int64_t tiles;
};

template <typename T, typename U>
__global__ __launch_bounds__(kPackThreads) void pack_weight_kernel(PackShape s, const T* from,
                                                                   U* to) {
  __shared__ float tile[kPackTile * (kPackTile + 1)];
  const int pitch = s.width | 1;  // odd, so that both ways touch each bank once
  const int64_t across = ceil_div(s.a.padded, kPackTile), along = ceil_div(s.run, s.width);
  const int64_t runs = s.b.padded * s.taps.extent / s.run;
  for (int64_t t = blockIdx.x; t < s.tiles; t += gridDim.x) {
    const int64_t a0 = t % across * kPackTile, part = t / across % along * s.width;
    const int64_t run = t / across / along % runs, group = t / across / along / runs;
    // Calls body(a, b, tap, place in the tile); columns first, or rows.
    const auto each = [&](bool by_columns, const auto& body) {
      for (int i = threadIdx.x; i < kPackTile * s.width; i += kPackThreads) {
        const int row = by_columns ? i / s.width : i % kPackTile;
        const int column = by_columns ? i % s.width : i / kPackTile;
        const int64_t j = run * s.run + part + column, a = a0 + row;
        if (a >= s.a.padded || part + column >= s.run) continue;
        const int64_t inner = s.taps_inside ? s.taps.extent : s.b.padded;
        const int64_t outside = j / inner, inside = j % inner;
        body(a, s.taps_inside ? outside : inside, s.taps_inside ? inside : outside,
             tile[row * pitch + column]);
      }
    };
    each(s.a.from != 1, [&](int64_t a, int64_t b, int64_t tap, float& place) {
      const int64_t at = group * s.from + a * s.a.from + b * s.b.from + tap * s.taps.from;
      place = a < s.a.extent && b < s.b.extent ? widen(from[at]) : 0.f;
    });
    __syncthreads();
    each(false, [&](int64_t a, int64_t b, int64_t tap, float& place) {
      to[group * s.to + a + b * s.b.to + tap * s.taps.to] = narrow<U>(place);
    });
    __syncthreads();
  }
}

// `a`, `b`: {extent, padded, pitch in the source}. `b_outside`: [b][tap][a], else [tap][b][a].
template <typename T, typename U>
void pack_weight(const T* from, U* to, PackAxis a, PackAxis b, int64_t taps, int64_t tap_pitch,
                 int64_t groups, int64_t group_pitch, bool b_outside, cudaStream_t stream) {
  PackShape s{a, b, {taps, taps, tap_pitch, 0}, groups, group_pitch, a.padded * b.padded * taps};
  s.a.to = 1, s.b.to = b_outside ? taps * a.padded : a.padded;
  s.taps.to = b_outside ? a.padded : b.padded * a.padded;
  s.taps_inside = tap_pitch < b.from;
  // Beside a come its own taps, where they lie within one b.
  s.run = tap_pitch < a.from && a.from < b.from ? taps : b.padded * taps;
  s.width = int(s.run < kPackTile ? s.run : kPackTile);
  s.tiles =
      groups * ceil_div(a.padded, kPackTile) * ceil_div(s.run, s.width) * (b.padded * taps / s.run);
  if (s.tiles)
    pack_weight_kernel<<<grid_for(s.tiles * kPackThreads, kPackThreads), kPackThreads, 0, stream>>>(
        s, from, to);
}

}  // namespace cnnkern
