// fprop and dgrad for every geometry: a thread sums one element of the output, in the order of the
// definition. Neighbours in memory are neighbours in the grid, so stores are whole sectors.
#include "common.cuh"
#include "conv2d_direct.h"

namespace cnnkern {
namespace {

struct DirectShape {
  ConvParams p;
  Strides input, grad, weight;  // grad: of the convolution's output
  bool nhwc;
  Activation activation;
};

// Element i of a dense tensor in memory order.
struct Element {
  int64_t n, c, h, w;
};
__device__ __forceinline__ Element element_at(int64_t i, int64_t C, int64_t H, int64_t W,
                                              bool nhwc) {
  Element e;
  if (nhwc) {
    e.c = i % C, i /= C;
    e.w = i % W, i /= W;
    e.h = i % H, e.n = i / H;
  } else {
    e.w = i % W, i /= W;
    e.h = i % H, i /= H;
    e.c = i % C, e.n = i / C;
  }
  return e;
}

template <typename T>
__global__ void conv2d_fprop_direct_kernel(DirectShape s, const T* x, const T* w, const T* bias,
                                           T* y, int64_t count) {
  typedef AccOf<T> A;
  const ConvParams& p = s.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Element e = element_at(i, p.K, p.P, p.Q, s.nhwc);
    A sum = 0;
    for (int64_t r = 0; r < p.R; ++r) {
      const int64_t h = padded_index(e.h * p.stride_h - p.pad_top + r * p.dil_h, p.H, p.mode);
      if (h < 0) continue;
      for (int64_t t = 0; t < p.S; ++t) {
        const int64_t col = padded_index(e.w * p.stride_w - p.pad_left + t * p.dil_w, p.W, p.mode);
        if (col < 0) continue;
        const T* xs = x + s.input.at(e.n, e.c / K * C, h, col);
        const T* ws = w + s.weight.at(e.c, 0, r, t);
        for (int64_t c = 0; c < C; ++c) sum += widen(xs[c * s.input.c]) * widen(ws[c * s.weight.c]);
      }
    }
    if (bias) sum += widen(bias[e.c]);
    y[i] = narrow<T>(activate(sum, s.activation));
  }
}

template <typename T, typename Out>
__global__ void conv2d_dgrad_direct_kernel(DirectShape s, const T* dy, const T* w, Out* dx,
                                           int64_t count) {
  typedef AccOf<T> A;
  const ConvParams& p = s.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Element e = element_at(i, p.C, p.H, p.W, s.nhwc);
    const int64_t k0 = e.c / C * K;
    A sum = 0;
    for (int64_t r = 0; r < p.R; ++r) {
      const int64_t h = e.h + p.pad_top - r * p.dil_h;
      if (h < 0 || h % p.stride_h || h / p.stride_h >= p.P) continue;
      for (int64_t t = 0; t < p.S; ++t) {
        const int64_t col = e.w + p.pad_left - t * p.dil_w;
        if (col < 0 || col % p.stride_w || col / p.stride_w >= p.Q) continue;
        const T* g = dy + s.grad.at(e.n, k0, h / p.stride_h, col / p.stride_w);
        const T* ws = w + s.weight.at(k0, e.c % C, r, t);
        for (int64_t k = 0; k < K; ++k) sum += widen(g[k * s.grad.c]) * widen(ws[k * s.weight.n]);
      }
    }
    dx[i] = narrow<Out>(sum);
  }
}

constexpr int kThreads = 128;

}  // namespace

cudaError_t launch_conv2d_direct(const ConvCall& call) {
  const DirectTile tile = direct_tile(call);
  if (call.pass == ConvPass::kWgrad) return launch_conv2d_wgrad_direct(call, tile);
  if (tile.rows) return launch_conv2d_direct_window(call, tile);
  const ConvParams& p = call.p;
  const int64_t C = p.C / p.groups;
  const DirectShape s{p,
                      dense_strides(p.C, p.H, p.W, call.nhwc),
                      dense_strides(p.K, p.P, p.Q, call.nhwc),
                      dense_strides(C, p.R, p.S, call.weight_nhwc),
                      call.nhwc,
                      call.activation};
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    const T *x = static_cast<const T*>(call.input), *w = static_cast<const T*>(call.weight);
    const T *dy = static_cast<const T*>(call.grad), *bias = static_cast<const T*>(call.bias);
    const auto launch = [&](auto kernel, int64_t count, auto... arguments) {
      if (count)
        kernel<<<grid_for(count, kThreads), kThreads, 0, call.stream>>>(s, arguments..., count);
    };
    switch (call.pass) {
      case ConvPass::kFprop:
        return launch(conv2d_fprop_direct_kernel<T>, p.N * p.K * p.P * p.Q, x, w, bias,
                      static_cast<T*>(call.output));
      case ConvPass::kDgrad:
        if (call.output_is_acc)
          return launch(conv2d_dgrad_direct_kernel<T, AccOf<T>>, p.N * p.C * p.H * p.W, dy, w,
                        static_cast<AccOf<T>*>(call.output));
        return launch(conv2d_dgrad_direct_kernel<T, T>, p.N * p.C * p.H * p.W, dy, w,
                      static_cast<T*>(call.output));
      default: return;
    }
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
