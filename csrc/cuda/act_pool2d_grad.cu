// Backward of activation and pool together, as a gather: a thread sums what one element of the
// convolution's output is due of its windows and multiplies it with the derivative of the
// activation, so that the gradient between the two is never in memory. Where the derivative is a
// function of the value, a max pool has that value at hand: the pooled one.
#include "conv2d_act_pool2d.h"
#include "pool2d_tile.cuh"

namespace cnnkern {
namespace {

struct ActPoolGrad {
  PoolTiles tiles;
  PoolAxis rows, cols;
  Activation activation;
  bool from_pooled;  // the derivative is taken at the pooled value
};

// At pre-activation x with value y; which of the two `at` is goes by the activation.
template <typename A>
__device__ __forceinline__ A activation_grad(A at, Activation activation) {
  switch (activation) {
    case Activation::kRelu: return at > A(0) ? A(1) : A(0);
    case Activation::kSigmoid: return at * (A(1) - at);
    case Activation::kTanh: return A(1) - at * at;
    case Activation::kGelu: {
      const A cdf = A(0.5) * (A(1) + erf(at * A(0.70710678118654752440)));
      return cdf + at * exp(at * at * A(-0.5)) * A(0.39894228040143267794);
    }
    case Activation::kSilu: {
      const A s = A(1) / (A(1) + exp(-at));
      return s * (A(1) + at * (A(1) - s));
    }
    default: return A(1);
  }
}

template <typename T, bool kMax>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    act_pool2d_grad_kernel(ActPoolGrad f, const T* grad, const T* output, const T* saved,
                           const uint8_t* offsets, T* to) {
  typedef AccOf<T> A;
  const PoolTiles& t = f.tiles;
  for (int64_t i = blockIdx.x; i < t.count; i += gridDim.x) {
    const PoolTile tile = pool_tile(t, i);
    const auto from = view_tile(t, tile, grad);
    const auto values = view_tile(t, tile, output);
    PoolView<uint8_t, false> places{};
    if constexpr (kMax) places = view_tile(t, tile, offsets);
    const int count = pool_elements(t, tile);
    for (int j = threadIdx.x; j < count; j += kPoolThreads) {
      PoolElement e;
      if (!pool_element<1>(t, tile, j, e)) continue;
      const int p_end = f.rows.highest(e.row) + 1, q_end = f.cols.highest(e.col) + 1;
      const int q_begin = f.cols.lowest(e.col);
      A sum = 0;
      for (int p = f.rows.lowest(e.row); p < p_end; ++p)
        for (int q = q_begin; q < q_end; ++q) {
          if constexpr (kMax) {
            const int tap = f.rows.tap(p, e.row) * f.cols.k + f.cols.tap(q, e.col);
            if (*places.at(e.plane, p, q, e.ch) != tap) continue;
            A share = widen(*from.at(e.plane, p, q, e.ch));
            if (f.from_pooled)
              share *= activation_grad(widen(*values.at(e.plane, p, q, e.ch)), f.activation);
            sum += share;
          } else {
            const int64_t taps =
                int64_t(f.rows.divisor(p, f.rows.window(p))) * f.cols.divisor(q, f.cols.window(q));
            sum += widen(*from.at(e.plane, p, q, e.ch)) / A(taps);
          }
        }
      const int64_t at = pool_offset(t, tile, e);
      if (f.activation != Activation::kNone && !f.from_pooled)
        sum *= activation_grad(widen(saved[at]), f.activation);
      to[at] = narrow<T>(sum);
    }
  }
}

}  // namespace

cudaError_t launch_act_pool2d_grad(const ActPoolGradCall& call) {
  const PoolParams& p = call.pool;
  if (p.N == 0) return cudaSuccess;
  ActPoolGrad f{{}, pool_rows(p), pool_cols(p), call.activation, false};
  const bool of_value = call.activation == Activation::kRelu ||
                        call.activation == Activation::kSigmoid ||
                        call.activation == Activation::kTanh;
  f.from_pooled = call.kind == PoolKind::kMax && of_value;
  f.tiles.D = int(p.H), f.tiles.E = int(p.W), f.tiles.H = int(p.P), f.tiles.W = int(p.Q);
  f.tiles.C = int(call.nhwc ? p.C : 1);
  f.tiles.planes_total = call.nhwc ? p.N : p.N * p.C;
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    f.tiles = plan_pool_tiles(
        f.tiles, 1, sizeof(T), 1, sizeof(T), [&](int64_t n) { return pool_covers(f.rows, n); },
        [&](int64_t n) { return pool_covers(f.cols, n); });
    const auto kernel = call.kind == PoolKind::kMax ? act_pool2d_grad_kernel<T, true>
                                                    : act_pool2d_grad_kernel<T, false>;
    // Without a saved tensor the derivative is taken at the output, which has that size then.
    kernel<<<grid_for(f.tiles.count, 1), kPoolThreads, 0, call.stream>>>(
        f, static_cast<const T*>(call.grad), static_cast<const T*>(call.output),
        static_cast<const T*>(call.saved ? call.saved : call.output), call.offsets,
        static_cast<T*>(call.to));
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
