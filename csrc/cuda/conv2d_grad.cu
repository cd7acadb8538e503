// The two small gradients beside the convolutions: of the bias, and of the padding. Both sum in an
// order that the geometry alone decides.
#include "common.cuh"
#include "conv2d.h"

namespace cnnkern {
namespace {

constexpr int kLanes = 32, kRows = 8;

// A block sums one channel of NCHW, or 32 neighbouring channels of NHWC, a lane each; in double,
// because the gradients of a whole batch all but cancel and reading them is what takes the time.
template <typename T>
__global__ void conv2d_bias_grad_kernel(const T* dy, bool nhwc, int64_t N, int64_t K, int64_t PQ,
                                        T* db) {
  __shared__ double partial[kRows][kLanes];
  const int lane = threadIdx.x, row = threadIdx.y;
  double sum = 0;
  const int64_t k = nhwc ? int64_t(blockIdx.x) * kLanes + lane : blockIdx.x;
  if (nhwc) {
    if (k < K)
      for (int64_t i = row; i < N * PQ; i += kRows) sum += widen(dy[i * K + k]);
  } else {
    for (int64_t n = 0; n < N; ++n)
      for (int64_t i = row * kLanes + lane; i < PQ; i += kRows * kLanes)
        sum += widen(dy[(n * K + k) * PQ + i]);
  }
  partial[row][lane] = sum;
  __syncthreads();
  if (row == 0) {
    sum = partial[0][lane];
    for (int r = 1; r < kRows; ++r) sum += partial[r][lane];
    if (!nhwc)
      for (int step = kLanes / 2; step; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (k < K && (nhwc || lane == 0)) db[k] = narrow<T>(AccOf<T>(sum));
  }
}

// The padded positions that land on i, in order: itself and its images on either side.
template <typename F>
__device__ void for_images(int64_t i, int64_t size, int64_t before, int64_t after, PaddingMode mode,
                           const F& body) {
  for (int64_t j = -before; j < 0; ++j)
    if (padded_index(j, size, mode) == i) body(j + before);
  body(i + before);
  for (int64_t j = size; j < size + after; ++j)
    if (padded_index(j, size, mode) == i) body(j + before);
}

template <typename T>
__global__ void fold_padding_kernel(ConvParams p, Strides padded, Strides plain,
                                    const AccOf<T>* from, T* to, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    int64_t rest = i;
    const int64_t w = rest % p.W;
    rest /= p.W;
    const int64_t h = rest % p.H;
    rest /= p.H;
    const int64_t c = rest % p.C, n = rest / p.C;
    AccOf<T> sum = 0;
    for_images(h, p.H, p.pad_top, p.pad_bottom, p.mode, [&](int64_t row) {
      for_images(w, p.W, p.pad_left, p.pad_right, p.mode,
                 [&](int64_t col) { sum += from[padded.at(n, c, row, col)]; });
    });
    to[plain.at(n, c, h, w)] = narrow<T>(sum);
  }
}

}  // namespace

cudaError_t launch_conv2d_bias_grad(const void* grad, DType dtype, bool nhwc, int64_t N, int64_t K,
                                    int64_t P, int64_t Q, void* output, cudaStream_t stream) {
  if (K == 0) return cudaSuccess;
  const unsigned blocks = unsigned(nhwc ? ceil_div(K, kLanes) : K);
  with_device_type(dtype, [&](auto type) {
    typedef decltype(type) T;
    conv2d_bias_grad_kernel<T><<<blocks, dim3(kLanes, kRows), 0, stream>>>(
        static_cast<const T*>(grad), nhwc, N, K, P * Q, static_cast<T*>(output));
  });
  return cudaGetLastError();
}

cudaError_t launch_fold_padding(const ConvParams& p, DType dtype, bool nhwc, const void* padded,
                                void* output, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t count = p.N * p.C * p.H * p.W;
  if (count == 0) return cudaSuccess;
  const Strides from =
      dense_strides(p.C, p.H + p.pad_top + p.pad_bottom, p.W + p.pad_left + p.pad_right, nhwc);
  with_device_type(dtype, [&](auto type) {
    typedef decltype(type) T;
    fold_padding_kernel<T><<<grid_for(count, kThreads), kThreads, 0, stream>>>(
        p, from, dense_strides(p.C, p.H, p.W, nhwc), static_cast<const AccOf<T>*>(padded),
        static_cast<T*>(output), count);
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
