// The end of a split wgrad: the parts' sums, added up in order, [part][K][tap][C] -> [K][C][tap].
// Taps and channels trade places in shared memory, so that both sides are used along memory.
#pragma once
#include <algorithm>

#include "common.cuh"

namespace cnnkern {

constexpr int kSumThreads = 256, kSumRows = 32, kSumFloats = kSumRows * (kSumRows + 1);

struct PartsShape {
  int64_t parts, part_pitch;  // from one part to the next
  int64_t K;                  // of all groups
  int C, C_pitch, taps;       // of a filter; from one tap to the next
  int rows, width;            // of a tile: channels, taps
};

template <typename T>
__global__ __launch_bounds__(kSumThreads) void sum_parts_kernel(PartsShape s, const float* partial,
                                                                T* dw, int64_t tiles) {
  __shared__ float tile[kSumFloats];
  const int pitch = s.width | 1;  // odd, so that both ways touch each bank once
  const int across = int(ceil_div(s.C, s.rows)), along = int(ceil_div(s.taps, s.width));
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t k = t / across / along;
    const int c0 = int(t % across) * s.rows, tap0 = int(t / across % along) * s.width;
    const int rows = min(s.rows, s.C - c0), width = min(s.width, s.taps - tap0);
    for (int i = threadIdx.x; i < rows * width; i += kSumThreads) {
      const int row = i % rows, column = i / rows;
      const float* at = partial + (k * s.taps + tap0 + column) * s.C_pitch + c0 + row;
      float sum = 0;
      for (int64_t part = 0; part < s.parts; ++part) sum += at[part * s.part_pitch];
      tile[row * pitch + column] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * width; i += kSumThreads) {
      const int row = i / width, column = i % width;
      dw[(k * s.C + c0 + row) * s.taps + tap0 + column] = narrow<T>(tile[row * pitch + column]);
    }
    __syncthreads();
  }
}

template <typename T>
void sum_parts(const float* partial, int64_t parts, int64_t part_pitch, int64_t K, int64_t C,
               int64_t C_pitch, int64_t taps, T* dw, cudaStream_t stream) {
  // Of one tap nothing trades places.
  if (taps == 1 && C == C_pitch && C * K <= INT32_MAX) C *= K, C_pitch = C, K = 1;
  PartsShape s{parts, part_pitch, K, int(C), int(C_pitch), int(taps)};
  s.width = std::min(s.taps, kSumRows);
  s.rows = kSumFloats / (s.width | 1) / kSumRows * kSumRows;
  const int64_t tiles = K * ceil_div(C, s.rows) * ceil_div(taps, s.width);
  if (tiles)
    sum_parts_kernel<T><<<grid_for(tiles * kSumThreads, kSumThreads), kSumThreads, 0, stream>>>(
        s, partial, dw, tiles);
}

}  // namespace cnnkern
