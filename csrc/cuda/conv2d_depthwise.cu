// Depthwise and grouped convolution and the gradient of its input. A block keeps a tile of its
// source in shared memory; a thread slides down one column of one channel with the window's weights
// and a strip of sums in registers. Lanes are neighbouring channels (NHWC) or columns (NCHW), hence
// other banks, unless a stride takes them two columns apart.
#include "conv2d_depthwise_shape.cuh"

namespace cnnkern {
namespace {

extern __shared__ __align__(16) unsigned char depthwise_memory[];

// A tap beyond the window is never multiplied, so that a NaN stays in the windows that hold it.
template <typename T>
struct DepthwiseBlock {
  typedef AccOf<T> A;
  DepthwiseBoxes box;
  A* weights;  // [output channel][input channel of the group][tap]
  T *source, *result;
  TileSteps steps;

  __device__ DepthwiseBlock(const DepthwiseShape& s, bool gathers, const T* out) {
    int64_t i = blockIdx.x;
    const int chunk = int(i % s.chunks);
    i /= s.chunks;
    const int tile_w = int(i % s.tiles_w);
    i /= s.tiles_w;
    box = depthwise_boxes(s, i / s.tiles_h, chunk, int(i % s.tiles_h), tile_w, gathers);
    weights = reinterpret_cast<A*>(depthwise_memory);
    const int weight_bytes = s.tile.groups * s.multiplier * s.tile.weight_pitch * int(sizeof(A));
    source = reinterpret_cast<T*>(depthwise_memory + (weight_bytes + 15) / 16 * 16);
    const int source_bytes = box.src.channels * box.src.plane * int(sizeof(T));
    result = source + (source_bytes + 15) / 16 * 16 / int(sizeof(T));
    if (s.tile.staged) result += store_skew(out, s.out, box.out);
    steps = tile_steps(s.nhwc, box.src);
  }

  __device__ void load(const DepthwiseShape& s, const T* src, const T* w) {
    const int taps = s.R * s.S, first = box.out.c0 / s.out_each * s.multiplier;
    const int row = s.depth * taps, count = box.out.valid / s.out_each * s.multiplier * row;
    for (int i = threadIdx.x; i < count; i += kDepthwiseThreads) {
      const int k = i / row;
      int at = i % row;
      if (s.weight_nhwc) at = at % s.depth * taps + at / s.depth;
      if (s.flip) at += taps - 1 - 2 * (at % taps);
      weights[k * s.tile.weight_pitch + at] = widen(w[int64_t(first) * row + i]);
    }
    load_tile(src, s.nhwc, s.src, box.src, source);
  }

  __device__ __forceinline__ void put(const DepthwiseShape& s, int c, int row, int col, T value,
                                      T* out) {
    const TileBox& b = box.out;
    const int64_t h = b.h0 + row, w = b.w0 + col, channel = b.c0 + c;
    if (h >= s.out.H || w >= s.out.W) return;
    if (s.tile.staged) {
      result[c * b.plane + row * b.cols + col] = value;
      return;
    }
    out[s.nhwc ? ((b.n * s.out.H + h) * s.out.W + w) * s.out.C + channel
               : ((b.n * s.out.C + channel) * s.out.H + h) * s.out.W + w] = value;
  }

  __device__ void finish(const DepthwiseShape& s, T* out) {
    if (!s.tile.staged) return;
    __syncthreads();
    store_tile_nchw(out, s.out, box.out, result);
  }
};

// Channel, column and strip of an item, the one that is contiguous in memory first; the next one is
// where the banks go on.
struct Item {
  int c, col, strip;
  __device__ Item(bool nhwc, int i, int channels, int cols) {
    if (nhwc)
      c = i % channels, i /= channels, col = i % cols, strip = i / cols;
    else
      col = i % cols, i /= cols, c = i % channels, strip = i / channels;
  }
};

template <typename T, int kSize, int kStride>
__global__ void __launch_bounds__(kDepthwiseThreads, kSize == 7 ? 2 : 4)
    conv2d_depthwise_window_kernel(const DepthwiseShape s, const T* __restrict__ src,
                                   const T* __restrict__ w, const T* __restrict__ bias,
                                   T* __restrict__ out) {
  typedef AccOf<T> A;
  constexpr int kRows = depthwise_rows(kStride);
  DepthwiseBlock<T> block(s, false, out);
  block.load(s, src, w);
  const TileBox& b = block.box.out;
  const int strips = b.rows / kRows, items = b.valid * b.cols * strips;
  for (int i = threadIdx.x; i < items; i += kDepthwiseThreads) {
    const Item item(s.nhwc, i, b.valid, b.cols);
    const int group = item.c / s.out_each, pitch = s.tile.weight_pitch;
    const A* weights =
        block.weights + (s.flip ? group * s.src_each * pitch + item.c % s.out_each * kSize * kSize
                                : item.c * pitch);
    const T* plane = block.source + group * s.src_each * block.steps.channel +
                     item.strip * kRows * kStride * block.steps.row +
                     item.col * kStride * block.steps.col;
    A sum[kRows] = {};
#pragma unroll 1
    for (int m = 0; m < s.src_each; ++m, plane += block.steps.channel) {
      A weight[kSize * kSize];
#pragma unroll
      for (int tap = 0; tap < kSize * kSize; ++tap) weight[tap] = weights[tap];
      weights += s.flip ? pitch : kSize * kSize;
      const T* at = plane;
#pragma unroll
      for (int row = 0; row < (kRows - 1) * kStride + kSize; ++row) {
        A x[kSize];
#pragma unroll
        for (int t = 0; t < kSize; ++t) x[t] = widen(at[t * block.steps.col]);
        at += block.steps.row;
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int r = row - j * kStride;
          if (r < 0 || r >= kSize) continue;
#pragma unroll
          for (int t = 0; t < kSize; ++t) sum[j] += weight[r * kSize + t] * x[t];
        }
      }
    }
    // The sums move up instead of being indexed: one copy of the activation, all in registers.
    const A offset = bias ? widen(bias[b.c0 + item.c]) : A(0);
#pragma unroll 1
    for (int j = 0; j < kRows; ++j) {
      const T value = narrow<T>(activate(sum[0] + offset, s.activation));
      block.put(s, item.c, item.strip * kRows + j, item.col, value, out);
#pragma unroll
      for (int k = 0; k + 1 < kRows; ++k) sum[k] = sum[k + 1];
    }
  }
  block.finish(s, out);
}

// Along one axis, the taps that reach an output: tap `first` at the tile's coordinate `at`, then
// every `step`-th tap, `move` further each. Of a strided gradient that is one phase.
struct Taps {
  int first, step, at, move;
};
__device__ __forceinline__ Taps taps_of(bool gathers, int i, int origin, int taps, int stride,
                                        int dil, int pad) {
  if (!gathers) return {0, 1, i * stride - pad - origin, dil};
  int period = 1;  // r and r + period are of the same phase
  while (period * dil % stride) ++period;
  int first = 0;
  while (first < period && (i + pad - first * dil) % stride) ++first;
  if (first == period) return {taps, 1, 0, 0};
  return {first, period, (i + pad - first * dil) / stride - origin, -(period * dil / stride)};
}

// A thread sums kStrip outputs below each other, so that a weight is read once for all of them; the
// phases of a gradient with stride differ from row to row and go one at a time.
template <typename T, int kStrip>
__global__ void __launch_bounds__(kDepthwiseThreads, 4)
    conv2d_depthwise_kernel(const DepthwiseShape s, bool gathers, const T* __restrict__ src,
                            const T* __restrict__ w, const T* __restrict__ bias,
                            T* __restrict__ out) {
  typedef AccOf<T> A;
  DepthwiseBlock<T> block(s, gathers, out);
  block.load(s, src, w);
  const TileBox &b = block.box.out, &from = block.box.src;
  const TileSteps steps = block.steps;
  const int strips = (b.rows + kStrip - 1) / kStrip, items = b.valid * b.cols * strips;
  for (int i = threadIdx.x; i < items; i += kDepthwiseThreads) {
    const Item item(s.nhwc, i, b.valid, b.cols);
    const int first = item.strip * kStrip, live = min(kStrip, b.rows - first);
    const Taps rows = taps_of(gathers, b.h0 + first, from.h0, s.R, s.stride_h, s.dil_h, s.top);
    const Taps cols = taps_of(gathers, b.w0 + item.col, from.w0, s.S, s.stride_w, s.dil_w, s.left);
    int below[kStrip];  // a row past the tile's last reads that one again, for nothing
#pragma unroll
    for (int j = 0; j < kStrip; ++j)
      below[j] = min(j, live - 1) * (gathers ? 1 : s.stride_h) * steps.row;
    A sum[kStrip] = {};
    const int group = item.c / s.out_each, taps = s.R * s.S;
    for (int m = 0; m < s.src_each; ++m) {
      const int k = gathers ? group * s.src_each + m : item.c;
      const int c = gathers ? item.c % s.out_each : m;
      const A* weights = block.weights + k * s.tile.weight_pitch + c * taps;
      const T* plane = block.source + (group * s.src_each + m) * steps.channel;
      const T* row = plane + rows.at * steps.row + cols.at * steps.col;
      for (int r = rows.first; r < s.R; r += rows.step, row += rows.move * steps.row) {
        const T* at = row;
#pragma unroll 4
        for (int t = cols.first; t < s.S; t += cols.step, at += cols.move * steps.col) {
          const A weight = weights[r * s.S + t];
#pragma unroll
          for (int j = 0; j < kStrip; ++j) sum[j] += weight * widen(at[below[j]]);
        }
      }
    }
    const A offset = bias ? widen(bias[b.c0 + item.c]) : A(0);
#pragma unroll 1
    for (int j = 0; j < live; ++j) {
      const T value = narrow<T>(activate(sum[0] + offset, s.activation));
      block.put(s, item.c, first + j, item.col, value, out);
#pragma unroll
      for (int l = 0; l + 1 < kStrip; ++l) sum[l] = sum[l + 1];
    }
  }
  block.finish(s, out);
}

template <typename T, int kSize>
void launch_window(const DepthwiseShape& s, const ConvCall& call, unsigned blocks) {
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kDepthwiseThreads, s.tile.shared, call.stream>>>(
        s, static_cast<const T*>(call.pass == ConvPass::kDgrad ? call.grad : call.input),
        static_cast<const T*>(call.weight), static_cast<const T*>(call.bias),
        static_cast<T*>(call.output));
  };
  if (s.stride_h == 1)
    launch(conv2d_depthwise_window_kernel<T, kSize, 1>);
  else
    launch(conv2d_depthwise_window_kernel<T, kSize, 2>);
}

}  // namespace

cudaError_t launch_conv2d_depthwise(const ConvCall& call) {
  if (call.pass == ConvPass::kWgrad) return launch_conv2d_wgrad_depthwise(call);
  DepthwiseShape s = depthwise_shape(call);
  const int64_t blocks = call.p.N * s.chunks * s.tiles_h * s.tiles_w;
  if (blocks == 0) return cudaSuccess;
  const bool dgrad = call.pass == ConvPass::kDgrad;
  const int window = depthwise_window(call);
  if (window && dgrad) {
    // Without stride: the convolution of grad with the weights backwards.
    s.flip = true;
    s.top = s.R - 1 - s.top;
    s.left = s.S - 1 - s.left;
  }
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    if constexpr (!std::is_same_v<T, double>) {
      if (window == 3) return launch_window<T, 3>(s, call, unsigned(blocks));
      if (window == 5) return launch_window<T, 5>(s, call, unsigned(blocks));
      if (window == 7) return launch_window<T, 7>(s, call, unsigned(blocks));
    }
    const auto launch = [&](auto kernel) {
      kernel<<<unsigned(blocks), kDepthwiseThreads, s.tile.shared, call.stream>>>(
          s, dgrad, static_cast<const T*>(dgrad ? call.grad : call.input),
          static_cast<const T*>(call.weight), static_cast<const T*>(call.bias),
          static_cast<T*>(call.output));
    };
    if (dgrad && s.stride_h > 1)
      launch(conv2d_depthwise_kernel<T, 1>);
    else
      launch(conv2d_depthwise_kernel<T, 4>);
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
