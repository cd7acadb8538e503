// What every CUDA kernel shares: storage types and the arithmetic they are widened to, index
// arithmetic, activations, launch sizes. Nothing of torch.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "params.h"

namespace cnnkern {

// 16-bit types are widened to float, which every sum is kept in.
template <typename T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
__device__ __forceinline__ AccOf<T> widen(T x) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(x);
  else
    return x;
}

template <typename T>
__device__ __forceinline__ T narrow(AccOf<T> x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

template <typename A>
__device__ __forceinline__ A activate(A x, Activation activation) {
  switch (activation) {
    case Activation::kRelu: return x > A(0) || x != x ? x : A(0);
    case Activation::kSigmoid: return A(1) / (A(1) + exp(-x));
    case Activation::kTanh: return tanh(x);
    case Activation::kGelu: return A(0.5) * x * (A(1) + erf(x * A(0.70710678118654752440)));
    case Activation::kSilu: return x / (A(1) + exp(-x));
    default: return x;
  }
}

// Calls body with a value of the device's type for `dtype`: with_device_type(d, [&](auto t) {...}).
template <typename F>
auto with_device_type(DType dtype, const F& body) {
  switch (dtype) {
    case DType::kFloat64: return body(double{});
    case DType::kBFloat16: return body(__nv_bfloat16{});
    case DType::kFloat16: return body(__half{});
    default: return body(float{});
  }
}

constexpr CNNKERN_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for a grid-stride loop over `items`: enough to fill any device, never too many to launch.
inline unsigned grid_for(int64_t items, int threads) {
  const int64_t blocks = ceil_div(items, threads);
  return unsigned(blocks < 1 ? 1 : blocks > 65536 ? 65536 : blocks);
}

// A dense 4-D tensor in either layout: element (n, c, h, w) lies at n*sn + c*sc + h*sh + w*sw.
struct Strides {
  int64_t n, c, h, w;

  CNNKERN_HOST_DEVICE int64_t at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};

inline Strides dense_strides(int64_t C, int64_t H, int64_t W, bool nhwc) {
  if (nhwc) return {C * H * W, 1, W * C, C};
  return {C * H * W, H * W, W, 1};
}

// padded_index() as a table of three numbers, without branches: the result is inside [0, size), or
// on a zero.
struct IndexMap {
  int size, below, above, slope;

  __device__ int operator()(int i) const {
    const int outside = (i < 0 ? below : above) + slope * i;
    return unsigned(i) < unsigned(size) ? i : outside;
  }
  __device__ bool inside(int i) const { return unsigned(i) < unsigned(size); }
};

inline IndexMap make_index_map(int64_t extent, PaddingMode mode) {
  const int size = int(extent);
  switch (mode) {
    case PaddingMode::kReflect: return {size, 0, 2 * (size - 1), -1};
    case PaddingMode::kReplicate: return {size, 0, size - 1, 0};
    case PaddingMode::kCircular: return {size, size, -size, 1};
    default: return {size, -1, -1, 0};
  }
}

}  // namespace cnnkern
