// wgrad on tensor cores: for each tap a product of gradient (rows k) and input (columns c), summed
// over pixels. Blocks sum slices of the pixels into float32; a second kernel adds the slices in
// order. Shared memory keeps memory's order, [pixel][channel], so NHWC is copied in 16 bytes;
// ldmatrix transposes on the way to the registers. Chunk c of pixel r lies at c ^ (r % 8).
#include "conv2d_mma.cuh"
#include "conv2d_mma.h"
#include "conv2d_sum_parts.cuh"

namespace cnnkern {
namespace {

constexpr int kTile = int(kMmaWgradTile), kThreads = 128, kStages = 4;

struct WgradShape {
  ConvParams p;
  Strides grad, input;
  int C, K;  // a group
  int c_tiles;
  int64_t pixels, slice;  // of the sum: all, and those of a block
  bool nhwc;
};

template <typename T>
constexpr int kPixels = 64 / int(sizeof(T));  // a step: 32, or 16 of float32
template <typename T>
constexpr int kRowChunks = kTile / kChunkElements<T>;

// float32 is read in words, by pixel lane % 4 and channel lane / 4: 4 pixels must then lie in every
// other chunk, and all 8 in different ones, for NCHW is written a pixel a lane.
template <typename T>
__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  const int swizzle = sizeof(T) == 4 ? row % 4 * 2 + row / 4 % 2 : row % 8;
  return (row * kRowChunks<T> + (chunk ^ swizzle)) * kChunk;
}

// The two chunks of either operand that a thread copies of every step, and their pixels.
template <typename T, bool Async>
struct Loader {
  static constexpr int kChunks = kPixels<T> * kRowChunks<T> / kThreads;
  const WgradShape& s;
  int r, t, k0, c0;
  int64_t end, at;
  int row[kChunks], chunk[kChunks];
  int64_t n[kChunks];
  unsigned p[kChunks], q[kChunks];

  __device__ Loader(const WgradShape& s, int r, int t, int k0, int c0, int64_t begin, int64_t end)
      : s(s), r(r), t(t), k0(k0), c0(c0), end(end), at(begin) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int id = threadIdx.x + i * kThreads;
      row[i] = Async || s.nhwc ? id / kRowChunks<T> : id % kPixels<T>;
      chunk[i] = Async || s.nhwc ? id % kRowChunks<T> : id / kPixels<T>;
      const int64_t m = begin + row[i];
      q[i] = unsigned(m % s.p.Q);
      p[i] = unsigned(m / s.p.Q % s.p.P);
      n[i] = m / s.p.Q / s.p.P;
    }
  }

  __device__ void copy(char* to, const T* from, const T* any, int64_t stride, int count) {
    if constexpr (Async)
      copy_chunk_async(to, count > 0 ? from : any, count > 0);
    else
      gather_chunk(to, from, stride, count);
  }

  __device__ void load(char* a, char* b, const T* dy, const T* x) {
    const ConvParams& g = s.p;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int unit = chunk[i] * kChunkElements<T>, offset = chunk_offset<T>(row[i], chunk[i]);
      const bool inside = at + row[i] < end;
      copy(a + offset, dy + s.grad.at(n[i], k0 + unit, p[i], q[i]), dy, s.grad.c,
           inside ? s.K - k0 - unit : 0);
      const int64_t h = padded_index(p[i] * g.stride_h - g.pad_top + r * g.dil_h, g.H, g.mode);
      const int64_t w = padded_index(q[i] * g.stride_w - g.pad_left + t * g.dil_w, g.W, g.mode);
      copy(b + offset, x + s.input.at(n[i], c0 + unit, h, w), x, s.input.c,
           inside && h >= 0 && w >= 0 ? s.C - c0 - unit : 0);
      q[i] += kPixels<T>;
      p[i] += q[i] / unsigned(g.Q), q[i] %= unsigned(g.Q);
      n[i] += p[i] / unsigned(g.P), p[i] %= unsigned(g.P);
    }
    at += kPixels<T>;
  }
};

// Fragments of 16 channels from `channel` on: of the rows (a), or of two times 8 columns (b).
template <typename T, bool Columns>
__device__ __forceinline__ void load_fragment(uint32_t (&d)[4], const char* tile, int pixel,
                                              int channel, int lane) {
  if constexpr (sizeof(T) == 2) {
    const int matrix = lane / 8, high = Columns ? matrix % 2 : matrix / 2;
    const int right = Columns ? matrix / 2 : matrix % 2;
    load_matrices_transposed(
        d, tile + chunk_offset<T>(pixel + lane % 8 + high * 8, channel / 8 + right));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int high = Columns ? i % 2 : i / 2, right = Columns ? i / 2 : i % 2;
      const int c = channel + right * 8 + lane / 4;
      d[i] = *reinterpret_cast<const uint32_t*>(
          tile + chunk_offset<T>(pixel + high * 4 + lane % 4, c / 4) + c % 4 * 4);
    }
    prepare_operand<T>(d);
  }
}

template <typename T, bool Async>
__global__ void __launch_bounds__(kThreads)
    conv2d_wgrad_mma_kernel(WgradShape s, const T* dy, const T* x, float* partial) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr int kBytes = kPixels<T> * kTile * int(sizeof(T));
  __shared__ alignas(128) char shared[kStages * 2 * kBytes];
  const int group = int(blockIdx.z % s.p.groups), split = int(blockIdx.z / s.p.groups);
  const int tap = blockIdx.y / s.c_tiles, c0 = blockIdx.y % s.c_tiles * kTile;
  const int k0 = blockIdx.x * kTile;
  const int64_t begin = split * s.slice;
  const int64_t end = begin + s.slice < s.pixels ? begin + s.slice : s.pixels;
  dy += group * s.K * s.grad.c, x += group * s.C * s.input.c;
  Loader<T, Async> loader(s, tap / int(s.p.S), tap % int(s.p.S), k0, c0, begin, end);
  const int steps = end > begin ? int((end - begin + kPixels<T> - 1) / kPixels<T>) : 0;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int m0 = warp / 2 * 32, n0 = warp % 2 * 32;
  float sum[2][4][4] = {};

  for (int i = 0; i < kStages - 1; ++i) {
    char* stage = shared + i * 2 * kBytes;
    if (i < steps) loader.load(stage, stage + kBytes, dy, x);
    commit_copies();
  }
  for (int i = 0; i < steps; ++i) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (i + kStages - 1 < steps) {
      char* next = shared + (i + kStages - 1) % kStages * 2 * kBytes;
      loader.load(next, next + kBytes, dy, x);
    }
    commit_copies();
    const char *a = shared + i % kStages * 2 * kBytes, *b = a + kBytes;
#pragma unroll
    for (int pixel = 0; pixel < kPixels<T>; pixel += kPixels<T> / 2) {
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_fragment<T, false>(fa[m], a, pixel, m0 + m * 16, lane);
        load_fragment<T, true>(fb[m], b, pixel, n0 + m * 16, lane);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          multiply_add<T>(sum[m][n], fa[m], fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]);
    }
  }

  // partial [split, K, tap, C/groups]
  const int taps = int(s.p.R * s.p.S);
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = k0 + m0 + m * 16 + half * 8 + lane / 4;
        const int c = c0 + n0 + n * 8 + lane % 4 * 2;
        if (k >= s.K || c >= s.C) continue;
        float* to = partial + (((split * s.p.K + group * s.K + k) * taps + tap) * s.C + c);
        const float2 two = {sum[m][n][half * 2], sum[m][n][half * 2 + 1]};
        if (s.C % 2 == 0) {
          *reinterpret_cast<float2*>(to) = two;
        } else {
          to[0] = two.x;
          if (c + 1 < s.C) to[1] = two.y;
        }
      }
#endif
}

template <typename T>
void launch(const ConvCall& call) {
  const ConvParams& p = call.p;
  const int64_t splits = mma_wgrad_splits(call), taps = p.R * p.S;
  WgradShape s{p, dense_strides(p.K, p.P, p.Q, call.nhwc), dense_strides(p.C, p.H, p.W, call.nhwc)};
  s.C = int(p.C / p.groups), s.K = int(p.K / p.groups);
  s.c_tiles = int(ceil_div(s.C, kTile));
  s.pixels = p.N * p.P * p.Q;
  s.slice = ceil_div(ceil_div(s.pixels, kPixels<T>), splits) * kPixels<T>;
  s.nhwc = call.nhwc;
  const T *dy = static_cast<const T*>(call.grad), *x = static_cast<const T*>(call.input);
  const bool async =
      call.nhwc && in_chunks(dy, p.K, s.K, call.dtype) && in_chunks(x, p.C, s.C, call.dtype);
  const dim3 grid(unsigned(ceil_div(s.K, kTile)), unsigned(taps * s.c_tiles),
                  unsigned(splits * p.groups));
  float* partial = static_cast<float*>(call.workspace);
  const auto kernel = async ? conv2d_wgrad_mma_kernel<T, true> : conv2d_wgrad_mma_kernel<T, false>;
  kernel<<<grid, kThreads, 0, call.stream>>>(s, dy, x, partial);
  sum_parts(partial, splits, p.K * s.C * taps, p.K, s.C, s.C, taps, static_cast<T*>(call.output),
            call.stream);
}

}  // namespace

cudaError_t launch_conv2d_mma_wgrad(const ConvCall& call) {
  switch (call.dtype) {
    case DType::kFloat16: launch<__half>(call); break;
    case DType::kBFloat16: launch<__nv_bfloat16>(call); break;
    default: launch<float>(call);
  }
  return cudaGetLastError();
}

}  // namespace cnnkern
