// fprop, and dgrad of stride 1, for few channels and small images, in every type. A thread computes
// 4 columns of 4 channels. A row of its window is in registers while the kernel's row slides over
// it; each value that is read from shared memory is multiplied 4 to 4 * S times:
//
//     in   [ a b c d e f ]        S = 3, stride 1: 3 16-byte loads of weights and 2 of inputs
//     k0    * * *                 feed 48 multiply-adds
//     y    [ 0 1 2 3 ] x 4
#include <utility>

#include "conv2d_direct.h"
#include "conv2d_direct_tile.cuh"

namespace cnnkern {
namespace {

constexpr int kStrip = kDirectStrip, kQuad = kDirectChannels;

struct WindowShape {
  DirectTile tile;
  Strides from, to, weight;  // n of the weight: the channels computed, c: those summed over
  int64_t weight_group;      // from group to group
  IndexMap rows, columns;    // of the source
  int C, K;                  // of a group: summed over, computed
  int stride_h, dil_h, pad_top, pad_left;
  int N, h, w;
  bool vector_store;  // the 4 neighbours in memory are one aligned access
  Activation activation;
};

// Weights [quad][c][r][s][4 channels], zeros beyond K: a tap's place is known at compile time.
template <typename T, int kS>
__device__ __forceinline__ void stage_weights(const WindowShape& s, const T* w, int channels,
                                              int valid_k, AccOf<T>* to) {
  const int lane = threadIdx.x % 32;
  if (lane >= s.tile.quads * kQuad) return;  // of no more than 32
  to += lane / kQuad * s.tile.channels * kS * kS * kQuad + lane % kQuad;
  for (int line = threadIdx.x / 32; line < channels * kS; line += blockDim.x / 32) {
    const int c = line / kS, r = line % kS;
#pragma unroll
    for (int t = 0; t < kS; ++t)
      to[(line * kS + t) * kQuad] =
          lane < valid_k ? widen(w[s.weight.at(lane, c, r, t)]) : AccOf<T>(0);
  }
}

template <typename Out>
struct alignas(4 * sizeof(Out)) Vector4 {
  Out v[4];
};

// 4 columns of channels k to k + 3 of one row.
template <typename Out, typename A>
__device__ __forceinline__ void store_strip(const WindowShape& s, const A (&sum)[kQuad][kStrip],
                                            int k, int column, Out* y) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // i counts what is farther apart: channels in NCHW, columns in NHWC.
    const bool nhwc = s.to.c == 1;
    Out* to = y + i * (nhwc ? s.to.w : s.to.c);
    if (nhwc ? column + i >= s.w : k + i >= s.K) break;
    Vector4<Out> four;
#pragma unroll
    for (int j = 0; j < 4; ++j) four.v[j] = narrow<Out>(nhwc ? sum[j][i] : sum[i][j]);
    if (s.vector_store) {
      *reinterpret_cast<Vector4<Out>*>(to) = four;
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (nhwc ? k + j < s.K : column + j < s.w) to[j] = four.v[j];
  }
}

template <typename T>
constexpr int kMinBlocks = sizeof(T) == 8 ? 2 : 3;  // of an SM

template <typename T, typename Out, int kS, int kStride>
__global__ __launch_bounds__(kDirectThreads, kMinBlocks<T>) void conv2d_direct_window_kernel(
    WindowShape s, const T* x, const T* w, const T* bias, Out* y) {
  typedef AccOf<T> A;
  constexpr int kSpan = (kStrip - 1) * kStride + kS;
  extern __shared__ uint4 shared[];
  const DirectTile& t = s.tile;
  const int plane = t.source_rows * t.pitch, across = t.quads * kQuad;
  A* source = reinterpret_cast<A*>(shared);
  A* weights = source + t.images * t.channels * plane;

  // This block's part of the result.
  const int across_tiles = (s.w + t.strips * kStrip - 1) / (t.strips * kStrip);
  const int down_tiles = (s.h + t.rows - 1) / t.rows;
  const int column0 = int(blockIdx.x % across_tiles) * t.strips * kStrip;
  const int row0 = int(blockIdx.x / across_tiles % down_tiles) * t.rows;
  const int64_t n0 = int64_t(blockIdx.x / across_tiles / down_tiles) * t.images;
  const int k_tiles = (s.K + across - 1) / across;
  const int64_t group = blockIdx.y / k_tiles;
  const int k0 = int(blockIdx.y % k_tiles) * across;
  x += n0 * s.from.n + group * s.C * s.from.c;
  w += group * s.weight_group + k0 * s.weight.n;

  // And this thread's.
  int rest = threadIdx.x;
  const int strip = rest % t.strips;
  rest /= t.strips;
  const int row = rest % t.rows;
  rest /= t.rows;
  const int image = rest % t.images, quad = rest / t.images;
  const bool active = quad < t.quads;
  const A* window =
      source + image * t.channels * plane + row * s.stride_h * t.pitch + strip * kStrip * kStride;

  A sum[kQuad][kStrip] = {};
  for (int c0 = 0; c0 < s.C; c0 += t.channels) {
    if (c0) __syncthreads();
    const int valid = min(t.channels, s.C - c0);
    for (int i = 0; i < t.images && n0 + i < s.N; ++i)
      stage_planes(x + i * s.from.n + c0 * s.from.c, s.from, s.rows, s.columns,
                   {valid, valid, t.source_rows, t.pitch, plane, row0 * s.stride_h - s.pad_top,
                    column0 * kStride - s.pad_left},
                   source + i * t.channels * plane);
    stage_weights<T, kS>(s, w + c0 * s.weight.c, valid, s.K - k0, weights);
    __syncthreads();
    if (!active) continue;
    const A* taps = weights + quad * t.channels * kS * kS * kQuad;
#pragma unroll(kS == 1 ? 4 : 1)
    for (int c = 0; c < valid; ++c) {
      const A* line = window + c * plane;
#pragma unroll(kS < 7 ? kS : 1)
      for (int r = 0; r < kS; ++r) {
        A in[(kSpan + 3) / 4 * 4];
        load_run<kSpan>(line, in);
#pragma unroll
        for (int tap = 0; tap < kS; ++tap) {
          A k4[kQuad];
          load_run<kQuad>(taps + tap * kQuad, k4);
#pragma unroll
          for (int k = 0; k < kQuad; ++k)
#pragma unroll
            for (int j = 0; j < kStrip; ++j) sum[k][j] += k4[k] * in[j * kStride + tap];
        }
        line += s.dil_h * t.pitch, taps += kS * kQuad;
      }
    }
  }

  const int k = k0 + quad * kQuad;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const A b = bias && active && k + i < s.K ? widen(bias[group * s.K + k + i]) : A(0);
#pragma unroll
    for (int j = 0; j < kStrip; ++j) sum[i][j] += b;
  }
  if (s.activation != Activation::kNone) {
    __syncthreads();  // the tile is done with; one copy of the activation's code a channel
    A* own = source + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
#pragma unroll
      for (int j = 0; j < kStrip; ++j) own[j * kDirectThreads] = sum[i][j];
#pragma unroll 1
      for (int j = 0; j < kStrip; ++j)
        own[j * kDirectThreads] = activate(own[j * kDirectThreads], s.activation);
#pragma unroll
      for (int j = 0; j < kStrip; ++j) sum[i][j] = own[j * kDirectThreads];
    }
  }
  const int p = row0 + row, q = column0 + strip * kStrip;
  if (active && n0 + image < s.N && p < s.h && q < s.w)
    store_strip(s, sum, k, q, y + s.to.at(n0 + image, group * s.K + k, p, q));
}

}  // namespace

cudaError_t launch_conv2d_direct_window(const ConvCall& call, const DirectTile& tile) {
  const ConvParams& p = call.p;
  const DirectProblem d = direct_problem(call);
  const bool is_dgrad = call.pass == ConvPass::kDgrad;
  if (!(p.N * d.h * d.w)) return cudaSuccess;
  WindowShape s{};
  s.tile = tile;
  s.from = dense_strides(d.summed * p.groups, d.source_h, d.source_w, call.nhwc);
  s.to = dense_strides(d.computed * p.groups, d.h, d.w, call.nhwc);
  s.rows = make_index_map(d.source_h, p.mode), s.columns = make_index_map(d.source_w, p.mode);
  s.C = int(d.summed), s.K = int(d.computed);
  s.stride_h = is_dgrad ? 1 : int(p.stride_h), s.dil_h = int(p.dil_h);
  s.pad_top = int(d.pad_top), s.pad_left = int(d.pad_left);
  s.N = int(p.N), s.h = int(d.h), s.w = int(d.w);
  s.activation = call.activation;
  s.weight = dense_strides(p.C / p.groups, p.R, p.S, call.weight_nhwc);
  s.weight_group = p.K / p.groups * s.weight.n;
  int64_t first = 0;  // dgrad: the kernel's last tap
  if (is_dgrad) {
    std::swap(s.weight.n, s.weight.c);
    first = (p.R - 1) * s.weight.h + (p.S - 1) * s.weight.w;
    s.weight.h = -s.weight.h, s.weight.w = -s.weight.w;
  }
  const int64_t tiles = ceil_div(d.computed, tile.quads * kQuad);
  const dim3 grid(unsigned(ceil_div(d.w, tile.strips * kStrip) * ceil_div(d.h, tile.rows) *
                           ceil_div(p.N, tile.images)),
                  unsigned(p.groups * tiles));
  const int threads =
      int(ceil_div(int64_t(tile.strips) * tile.rows * tile.images * tile.quads, 32) * 32);
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    const T* weight = static_cast<const T*>(call.weight) + first;
    const auto run = [&](auto kernel, auto* y) {
      typedef std::remove_reference_t<decltype(*y)> Out;
      s.vector_store = reinterpret_cast<uintptr_t>(y) % (4 * sizeof(Out)) == 0 &&
                       (call.nhwc ? d.computed : d.w) % 4 == 0;
      kernel<<<grid, threads, tile.shared, call.stream>>>(
          s, static_cast<const T*>(is_dgrad ? call.grad : call.input), weight,
          static_cast<const T*>(call.bias), y);
    };
    with_window(p.S, is_dgrad ? 1 : p.stride_w, [&](auto width, auto stride) {
      constexpr int kS = decltype(width)::value, kStride = decltype(stride)::value;
      if constexpr (kStride == 1 && !std::is_same_v<T, AccOf<T>>) {
        if (call.output_is_acc)
          return run(conv2d_direct_window_kernel<T, AccOf<T>, kS, kStride>,
                     static_cast<AccOf<T>*>(call.output));
      }
      run(conv2d_direct_window_kernel<T, T, kS, kStride>, static_cast<T*>(call.output));
    });
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
