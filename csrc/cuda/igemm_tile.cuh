// The inner product that all passes of the float32 implicit GEMM share: out of shared memory, 8 x 8
// sums a thread, 32 x 64 a warp. Two 16-byte loads a side feed 64 FMA.
//
//       columns: lane%8 * 4 + {0..3}, and 32 further on
//      +--------------------+
// rows |                    |   lane/8 * 4 + {0..3}, and 16 further on: every load of a warp
//      +--------------------+   touches each bank once
#pragma once
#include "common.cuh"
#include "conv2d_igemm.h"

namespace cnnkern {

constexpr int kSlice = int(kIgemmSlice);  // of the reduction, in one stage of shared memory
constexpr int kChunk = int(kIgemmChunk);  // channels that are loaded together
constexpr int kThreadRows = 8, kThreadColumns = 8;
constexpr int kWarpRows = 32, kWarpColumns = 64;

template <int kTile>
struct Igemm {
  static constexpr int kThreads = kTile * kTile / (kThreadRows * kThreadColumns);
  static constexpr int kLoads = kTile * kSlice / kThreads;  // of a thread, per operand and slice
  static constexpr int kPitch = kTile + 4;  // transposing stores then spread over the banks
  static constexpr int kMinBlocks = kTile == 128 ? 2 : 6;  // of an SM: 128 and 168 registers
};

// Where the thread's sums lie within the tile.
template <int kTile>
struct ThreadPlace {
  int row, column;

  __device__ explicit ThreadPlace(int thread) {
    constexpr int kWarpsAcross = kTile / kWarpColumns;
    const int warp = thread / 32, lane = thread % 32;
    row = warp / kWarpsAcross * kWarpRows + lane / 8 * 4;
    column = warp % kWarpsAcross * kWarpColumns + lane % 8 * 4;
  }
  __device__ int row_of(int i) const { return row + i % 4 + i / 4 * (kWarpRows / 2); }
  __device__ int column_of(int j) const { return column + j % 4 + j / 4 * (kWarpColumns / 2); }
};

template <int kPitch>
__device__ __forceinline__ void multiply_slice(const float* rows, const float* columns,
                                               float (&sum)[kThreadRows][kThreadColumns]) {
#pragma unroll
  for (int k = 0; k < kSlice; ++k) {
    float a[kThreadRows], b[kThreadColumns];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<float4*>(a + 4 * half) =
          *reinterpret_cast<const float4*>(rows + k * kPitch + half * (kWarpRows / 2));
      *reinterpret_cast<float4*>(b + 4 * half) =
          *reinterpret_cast<const float4*>(columns + k * kPitch + half * (kWarpColumns / 2));
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
      for (int j = 0; j < kThreadColumns; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
  }
}

// NCHW and NHWC, and both where channels come in whole chunks; in NHWC, one is then one load.
enum class Gather { kPlanes, kPixels, kPlaneChunks, kPixelChunks };
constexpr CNNKERN_HOST_DEVICE bool is_nhwc(Gather g) {
  return g == Gather::kPixels || g == Gather::kPixelChunks;
}

template <typename T>
struct alignas(kChunk * sizeof(T)) Vector4 {
  T v[kChunk];
};

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// The first `count` channels of a chunk, which may be none, and zeros for the rest.
template <Gather kGather, typename T>
__device__ __forceinline__ void load_chunk(const T* from, int channel_pitch, int count, float* to) {
  if constexpr (kGather == Gather::kPixelChunks) {
    Vector4<T> four{};
    if (count > 0) four = *reinterpret_cast<const Vector4<T>*>(from);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) to[i] = widen(four.v[i]);
  } else {
    const int pitch = is_nhwc(kGather) ? 1 : channel_pitch;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      // The product of two int is one instruction with the sum, as long as it is widened at once.
      const char* at = reinterpret_cast<const char*>(from) + int64_t(pitch) * int(i * sizeof(T));
      const bool inside = (kGather == Gather::kPlaneChunks ? 0 : i) < count;
      to[i] = inside ? widen(*reinterpret_cast<const T*>(at)) : 0.f;
    }
  }
}

// An element of global memory, `offset` elements of `size` bytes further on, as one multiply-add:
// of a size that it knows, or a sum that it may take apart, the compiler makes three instructions.
template <typename T>
__device__ __forceinline__ const T* advance(const T* from, int offset, int size) {
  size_t base = __cvta_generic_to_global(from), bytes;
  asm("" : "+l"(base));
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(bytes) : "r"(offset), "r"(size));
  return static_cast<const T*>(__cvta_global_to_generic(base + bytes));
}

// A chunk's channels in NCHW, `offsets` from the first one.
template <typename T>
__device__ __forceinline__ void load_planes(const T* from, int4 offsets, int size, float* to) {
  to[0] = widen(*advance(from, offsets.x, size));
  to[1] = widen(*advance(from, offsets.y, size));
  to[2] = widen(*advance(from, offsets.z, size));
  to[3] = widen(*advance(from, offsets.w, size));
}

__device__ __forceinline__ void store_chunk(float* to, const float* from, bool has) {
  *reinterpret_cast<float4*>(to) =
      has ? make_float4(from[0], from[1], from[2], from[3]) : make_float4(0, 0, 0, 0);
}

}  // namespace cnnkern
