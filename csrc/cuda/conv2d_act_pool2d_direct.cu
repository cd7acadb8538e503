// conv + bias + activation + 2x2 pool of small nets in one kernel. A block holds all weights and
// one padded image at a time in shared memory. A thread owns one pooled element of two channels:
// the 2x2 sums of each, from a patch of (R+1) x (S+1) pixels that is read once a channel, in pairs:
//
//     R = 3:  a a b b      lanes of a warp are neighbours along the row; weights are the same for
//             a a b b      the warp: a broadcast.
//             c c d d
//             c c d d      Nothing but the pooled element goes to memory unless it is to be saved.
#include "common.cuh"
#include "conv2d_act_pool2d.h"

namespace cnnkern {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 2;  // of the output, by thread
constexpr int64_t kSharedBytes = 47 * 1024;

int64_t shared_elements(const ConvParams& p) {
  const int64_t H = p.H + p.pad_top + p.pad_bottom, W = p.W + p.pad_left + p.pad_right;
  return p.C * H * (W + W % 2) + ceil_div(p.K, kChannels) * kChannels * p.C * p.R * p.S;
}

struct Fused {
  int N, C, H, W, K, P, Q, Hp, Wp, top, left;
  Strides input, weight, conv, pooled;
  Activation activation;
  PoolKind kind;
  bool save_before;
};

template <typename A>
struct alignas(2 * sizeof(A)) Pair {
  A x, y;
};

template <typename T, int kR>
__global__ void __launch_bounds__(kThreads)
    conv2d_act_pool2d_kernel(Fused f, const T* x, const T* w, const T* bias, T* out, T* saved,
                             uint8_t* offsets) {
  typedef AccOf<T> A;
  extern __shared__ uint4 shared[];
  A* image = reinterpret_cast<A*>(shared);
  const int image_size = f.C * f.Hp * f.Wp, taps = f.C * kR * kR;
  A* weight = image + image_size;
  const int channel_groups = (f.K + kChannels - 1) / kChannels;
  // weight[group][tap][channel of the group]
  for (int i = threadIdx.x; i < channel_groups * kChannels * taps; i += kThreads) {
    const int in = i % kChannels, tap = i / kChannels % taps;
    const int k = i / kChannels / taps * kChannels + in;
    const int c = tap / (kR * kR), r = tap / kR % kR, s = tap % kR;
    weight[i] = k < f.K ? widen(w[f.weight.at(k, c, r, s)]) : A(0);
  }
  const int PP = f.P / 2, PQ = f.Q / 2;
  for (int n = blockIdx.x; n < f.N; n += gridDim.x) {
    for (int i = threadIdx.x; i < image_size; i += kThreads) {
      // In the order of the input's memory.
      int c, h, col;
      if (f.input.c == 1) {
        c = i % f.C, col = i / f.C % f.Wp, h = i / f.C / f.Wp;
      } else {
        col = i % f.Wp, h = i / f.Wp % f.Hp, c = i / f.Wp / f.Hp;
      }
      const int row = h - f.top, at = col - f.left;
      const bool inside = row >= 0 && row < f.H && at >= 0 && at < f.W;
      image[(c * f.Hp + h) * f.Wp + col] = inside ? widen(x[f.input.at(n, c, row, at)]) : A(0);
    }
    __syncthreads();
    for (int j = threadIdx.x; j < channel_groups * PP * PQ; j += kThreads) {
      const int q = j % PQ, p = j / PQ % PP, group = j / PQ / PP;
      A sum[kChannels][2][2] = {};
      const A* patch = image + 2 * p * f.Wp + 2 * q;
      const A* tap = weight + group * taps * kChannels;
      for (int c = 0; c < f.C; ++c, patch += f.Hp * f.Wp, tap += kR * kR * kChannels) {
        // Two rows of the patch are in registers: those that kernel row r meets.
        A rows[2][kR + 1];
        const auto load = [&](int row, A* to) {
#pragma unroll
          for (int s = 0; s < kR + 1; s += 2) {
            const auto pair = *reinterpret_cast<const Pair<A>*>(patch + row * f.Wp + s);
            to[s] = pair.x, to[s + 1] = pair.y;
          }
        };
        load(0, rows[0]);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          load(r + 1, rows[(r + 1) % 2]);
#pragma unroll
          for (int s = 0; s < kR; ++s) {
            const auto weights = *reinterpret_cast<const Pair<A>*>(tap + (r * kR + s) * kChannels);
            const A by_channel[kChannels] = {weights.x, weights.y};
#pragma unroll
            for (int k = 0; k < kChannels; ++k)
#pragma unroll
              for (int dy = 0; dy < 2; ++dy)
#pragma unroll
                for (int dx = 0; dx < 2; ++dx)
                  sum[k][dy][dx] += rows[(r + dy) % 2][s + dx] * by_channel[k];
          }
        }
      }
#pragma unroll
      for (int in = 0; in < kChannels; ++in) {
        const int k = group * kChannels + in;
        if (k >= f.K) continue;
        const A b = bias ? widen(bias[k]) : A(0);
        A value = f.kind == PoolKind::kAvg ? A(0) : A(-INFINITY);
        int code = 0;
#pragma unroll
        for (int dy = 0; dy < 2; ++dy)
#pragma unroll
          for (int dx = 0; dx < 2; ++dx) {
            const A before = sum[in][dy][dx] + b, y = activate(before, f.activation);
            if (saved)
              saved[f.conv.at(n, k, 2 * p + dy, 2 * q + dx)] =
                  narrow<T>(f.save_before ? before : y);
            if (f.kind == PoolKind::kAvg)
              value += y;
            else if (y > value || y != y)
              value = y, code = dy * 2 + dx;
          }
        const int64_t at = f.pooled.at(n, k, p, q);
        out[at] = narrow<T>(f.kind == PoolKind::kAvg ? value * A(0.25) : value);
        if (offsets) offsets[at] = uint8_t(code);
      }
    }
    __syncthreads();  // the next image overwrites this one
  }
}

template <typename T>
__global__ void activation_kernel(Activation activation, const T* from, T* to, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = narrow<T>(activate(widen(from[i]), activation));
}

}  // namespace

std::string supports_conv2d_act_pool2d(const FusedCall& call) {
  const ConvParams& p = call.p;
  const PoolParams& pool = call.pool;
  if (call.kind == PoolKind::kNone) return "needs a pool";
  if (pool.R != 2 || pool.S != 2 || pool.stride_h != 2 || pool.stride_w != 2 || pool.pad_h ||
      pool.pad_w || pool.P * 2 != p.P || pool.Q * 2 != p.Q)
    return "needs a pool of 2x2, stride 2, no padding, over a plane of even sides";
  if (p.R != p.S || (p.R != 3 && p.R != 5)) return "needs a kernel of 3x3 or 5x5";
  if (p.stride_h != 1 || p.stride_w != 1 || p.dil_h != 1 || p.dil_w != 1 || p.groups != 1)
    return "needs stride 1, dilation 1 and groups 1";
  if (p.mode != PaddingMode::kZeros) return "needs padding_mode 'zeros'";
  const int64_t size = call.dtype == DType::kFloat64 ? 8 : 4;
  if (p.C > 256 || p.H > 256 || p.W > 256 || p.pad_left + p.pad_right > 256 ||
      p.pad_top + p.pad_bottom > 256 || p.K > 256 || shared_elements(p) * size > kSharedBytes)
    return "needs an image and weights that fit into 47 KiB of shared memory";
  return "";
}

cudaError_t launch_conv2d_act_pool2d(const FusedCall& call) {
  const ConvParams& p = call.p;
  if (p.N == 0) return cudaSuccess;
  const int64_t Hp = p.H + p.pad_top + p.pad_bottom, Wp = p.W + p.pad_left + p.pad_right;
  Fused f{};
  f.N = int(p.N), f.C = int(p.C), f.H = int(p.H), f.W = int(p.W), f.K = int(p.K);
  f.P = int(p.P), f.Q = int(p.Q), f.Hp = int(Hp), f.Wp = int(Wp + Wp % 2);
  f.top = int(p.pad_top), f.left = int(p.pad_left);
  f.input = dense_strides(p.C, p.H, p.W, call.nhwc);
  f.weight = dense_strides(p.C, p.R, p.S, call.weight_nhwc);
  f.conv = dense_strides(p.K, p.P, p.Q, call.nhwc);
  f.pooled = dense_strides(p.K, p.P / 2, p.Q / 2, call.nhwc);
  f.activation = call.activation, f.kind = call.kind, f.save_before = call.save_before;
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    const auto kernel = p.R == 3 ? conv2d_act_pool2d_kernel<T, 3> : conv2d_act_pool2d_kernel<T, 5>;
    const int shared = int(shared_elements(p) * int64_t(sizeof(AccOf<T>)));
    const unsigned grid = unsigned(p.N < 2048 ? p.N : 2048);
    kernel<<<grid, kThreads, shared, call.stream>>>(
        f, static_cast<const T*>(call.input), static_cast<const T*>(call.weight),
        static_cast<const T*>(call.bias), static_cast<T*>(call.output), static_cast<T*>(call.saved),
        call.offsets);
  });
  return cudaGetLastError();
}

cudaError_t launch_activation(DType dtype, Activation activation, const void* from, void* to,
                              int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  with_device_type(dtype, [&](auto type) {
    typedef decltype(type) T;
    activation_kernel<T><<<grid_for(count, kThreads), kThreads, 0, stream>>>(
        activation, static_cast<const T*>(from), static_cast<T*>(to), count);
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
