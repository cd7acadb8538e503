// Gradient of a depthwise or grouped weight, in two stages of fixed order. A block walks over tiles
// of the batch, each read once, with all taps of a channel in a thread's registers; its sums go to
// a workspace [split][K][tap], and a second kernel adds up the splits.
#include "conv2d_depthwise_shape.cuh"

namespace cnnkern {
namespace {

extern __shared__ __align__(16) unsigned char depthwise_memory[];

constexpr int kReduced = 8;  // taps reduced at a time; depthwise_fit counts on it

// Which threads share an output channel: in NHWC those at a distance of `channels`, which makes
// lanes neighbours in memory; in NCHW `threads` consecutive ones.
struct Team {
  int channels, threads, channel, member;
  bool nhwc;

  __device__ Team(bool is_nhwc, int count) : nhwc(is_nhwc) {
    channels = 1;
    while (channels < count) channels *= 2;
    threads = kDepthwiseThreads / channels;
    channel = nhwc ? int(threadIdx.x) % channels : int(threadIdx.x) / threads;
    member = nhwc ? int(threadIdx.x) / channels : int(threadIdx.x) % threads;
  }

  // Sums values[0 .. count) over each team, warps first; calls body(channel, i, sum).
  template <typename A, typename F>
  __device__ void reduce(A (&values)[kReduced], int count, A* shared, const F& body) const {
    const int low = nhwc ? channels : 1, high = nhwc ? 32 : min(threads, 32);
#pragma unroll
    for (int i = 0; i < kReduced; ++i)
      for (int step = low; step < high; step *= 2)
        values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
    __syncthreads();  // the last reduction has been read
#pragma unroll
    for (int i = 0; i < kReduced; ++i) shared[i * kDepthwiseThreads + threadIdx.x] = values[i];
    __syncthreads();
    const int distance = nhwc ? max(channels, 32) : 32;
    const int parts = nhwc ? kDepthwiseThreads / distance : max(1, threads / 32);
    for (int j = threadIdx.x; j < channels * count; j += kDepthwiseThreads) {
      const int c = j % channels, i = j / channels;
      const A* at = shared + i * kDepthwiseThreads + (nhwc ? c : c * threads);
      A sum = at[0];
      for (int part = 1; part < parts; ++part) sum += at[part * distance];
      body(c, i, sum);
    }
  }
};

// The tiles of one split, one after the other.
template <typename T, typename F>
__device__ void for_tiles(const DepthwiseShape& s, int64_t N, int64_t splits, const T* dy,
                          const T* x, T* source, T* grad, const F& body) {
  const int64_t tiles = N * s.tiles_h * s.tiles_w, split = blockIdx.x / s.chunks;
  const int chunk = int(blockIdx.x % s.chunks);
  for (int64_t i = tiles * split / splits; i < tiles * (split + 1) / splits; ++i) {
    const int64_t n = i / s.tiles_w / s.tiles_h;
    DepthwiseBoxes box =
        depthwise_boxes(s, n, chunk, int(i / s.tiles_w % s.tiles_h), int(i % s.tiles_w), false);
    if (s.nhwc)
      while (box.out.channels & (box.out.channels - 1)) ++box.out.channels;
    __syncthreads();  // the last tile has been read
    load_tile(dy, s.nhwc, s.out, box.out, grad);
    load_tile(x, s.nhwc, s.src, box.src, source);
    body(box);
  }
}

template <typename T>
struct WgradMemory {
  AccOf<T>*sums, *reduced;  // sums: [channel][tap]
  T *source, *grad;

  __device__ WgradMemory(const DepthwiseShape& s) {
    reduced = reinterpret_cast<AccOf<T>*>(depthwise_memory);
    sums = reduced + kReduced * kDepthwiseThreads;
    const int count =
        kReduced * kDepthwiseThreads + s.tile.groups * s.multiplier * s.tile.weight_pitch;
    source =
        reinterpret_cast<T*>(depthwise_memory + (count * int(sizeof(AccOf<T>)) + 15) / 16 * 16);
    const int bytes = s.tile.src_channels * s.tile.src_plane * int(sizeof(T));
    grad = source + (bytes + 15) / 16 * 16 / int(sizeof(T));
  }
};

// A strip of gradients slides past the rows of the input, each of which is read once for all the
// windows that it is in: sum[r][t] += grad[p] * x[p*stride + r][t].
template <typename T, int kSize, int kStride>
__global__ void __launch_bounds__(kDepthwiseThreads, kSize == 3 && sizeof(T) == 2 ? 3 : 2)
    conv2d_wgrad_depthwise_window_kernel(const DepthwiseShape s, int64_t N, int64_t splits,
                                         const T* __restrict__ dy, const T* __restrict__ x,
                                         AccOf<T>* __restrict__ partial) {
  typedef AccOf<T> A;
  constexpr int kLive = (kSize + kStride - 1) / kStride;  // gradients that one row meets
  constexpr int kStrip = 8;
  const WgradMemory<T> memory(s);
  const int count = s.tile.groups * s.multiplier;
  const Team team(s.nhwc, count);
  A sum[kSize * kSize] = {};
  for_tiles(s, N, splits, dy, x, memory.source, memory.grad, [&](const DepthwiseBoxes& box) {
    if (team.channel >= box.out.valid) return;
    const TileSteps gs = tile_steps(s.nhwc, box.out), xs = tile_steps(s.nhwc, box.src);
    const int rows = min(box.out.rows, s.out.H - box.out.h0);
    const int cols = min(box.out.cols, s.out.W - box.out.w0);
    const int strips = (rows + kStrip - 1) / kStrip;
    for (int i = team.member; i < cols * strips; i += team.threads) {
      const int col = i % cols, first = i / cols * kStrip, last = min(rows, first + kStrip) - first;
      const T* g = memory.grad + team.channel * gs.channel + first * gs.row + col * gs.col;
      const T* at = memory.source + team.channel / s.multiplier * xs.channel +
                    first * kStride * xs.row + col * kStride * xs.col;
      A live[kLive] = {};  // live[j]: of row p - j
      for (int p = 0; p < last + kLive - 1; ++p) {
#pragma unroll
        for (int j = kLive - 1; j > 0; --j) live[j] = live[j - 1];
        live[0] = p < last ? widen(g[p * gs.row]) : A(0);
#pragma unroll
        for (int phase = 0; phase < kStride; ++phase, at += xs.row) {
          if (kStride > 1 && p * kStride + phase >= (last - 1) * kStride + kSize) break;
          A row[kSize];
#pragma unroll
          for (int t = 0; t < kSize; ++t) row[t] = widen(at[t * xs.col]);
#pragma unroll
          for (int j = 0; j < kLive; ++j) {
            const int r = phase + j * kStride;
            // Beyond the strip there is no product, not one with zero: x may be a NaN.
            if (r >= kSize || unsigned(p - j) >= unsigned(last)) continue;
#pragma unroll
            for (int t = 0; t < kSize; ++t) sum[r * kSize + t] += live[j] * row[t];
          }
        }
      }
    }
  });
  const int64_t split = blockIdx.x / s.chunks, k0 = int64_t(blockIdx.x % s.chunks) * count;
#pragma unroll
  for (int tap = 0; tap < kSize * kSize; tap += kReduced) {
    A values[kReduced];
#pragma unroll
    for (int i = 0; i < kReduced; ++i)
      values[i] = tap + i < kSize * kSize ? sum[min(tap + i, kSize * kSize - 1)] : A(0);
    const int taps = min(kReduced, kSize * kSize - tap);
    team.reduce(values, taps, memory.reduced, [&](int c, int i, A total) {
      if (c < count) memory.sums[c * s.tile.weight_pitch + tap + i] = total;
    });
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * kSize * kSize; i += kDepthwiseThreads) {
    const int c = i / (kSize * kSize), tap = i % (kSize * kSize);
    if (k0 + c < s.out.C)
      partial[(split * s.out.C + k0) * kSize * kSize + i] =
          memory.sums[c * s.tile.weight_pitch + tap];
  }
}

// Any window: up to 8 taps of a row at a time, the tile staying where it is; the sums of all taps
// wait in shared memory.
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    conv2d_wgrad_depthwise_kernel(const DepthwiseShape s, int64_t N, int64_t splits,
                                  const T* __restrict__ dy, const T* __restrict__ x,
                                  AccOf<T>* __restrict__ partial) {
  typedef AccOf<T> A;
  const WgradMemory<T> memory(s);
  const int count = s.tile.groups * s.multiplier, taps = s.depth * s.R * s.S;
  const Team team(s.nhwc, count);
  for (int i = threadIdx.x; i < count * s.tile.weight_pitch; i += kDepthwiseThreads)
    memory.sums[i] = 0;
  for_tiles(s, N, splits, dy, x, memory.source, memory.grad, [&](const DepthwiseBoxes& box) {
    const TileSteps gs = tile_steps(s.nhwc, box.out), xs = tile_steps(s.nhwc, box.src);
    const int rows = min(box.out.rows, s.out.H - box.out.h0);
    const int cols = min(box.out.cols, s.out.W - box.out.w0);
    const T* g = memory.grad + team.channel * gs.channel;
    const T* group = memory.source + team.channel / s.multiplier * s.depth * xs.channel;
    for (int cr = 0; cr < s.depth * s.R; ++cr)
      for (int t0 = 0; t0 < s.S; t0 += kReduced) {
        const int r = cr % s.R;
        const T* plane = group + cr / s.R * xs.channel;
        const int here = min(kReduced, s.S - t0);
        A values[kReduced] = {};
        if (team.channel < box.out.valid)
          for (int i = team.member; i < cols * rows; i += team.threads) {
            const int col = i % cols, row = i / cols;
            const A d = widen(g[row * gs.row + col * gs.col]);
            const T* at = plane + (row * s.stride_h + r * s.dil_h) * xs.row +
                          (col * s.stride_w + t0 * s.dil_w) * xs.col;
#pragma unroll
            for (int j = 0; j < kReduced; ++j)
              if (j < here) values[j] += d * widen(at[j * s.dil_w * xs.col]);
          }
        team.reduce(values, here, memory.reduced, [&](int c, int i, A total) {
          if (c < count) memory.sums[c * s.tile.weight_pitch + cr * s.S + t0 + i] += total;
        });
      }
  });
  __syncthreads();
  const int64_t split = blockIdx.x / s.chunks, k0 = int64_t(blockIdx.x % s.chunks) * count;
  for (int i = threadIdx.x; i < count * taps; i += kDepthwiseThreads)
    if (k0 + i / taps < s.out.C)
      partial[(split * s.out.C + k0) * taps + i] =
          memory.sums[i / taps * s.tile.weight_pitch + i % taps];
}

template <typename T>
__global__ void conv2d_wgrad_depthwise_sum_kernel(const AccOf<T>* __restrict__ partial,
                                                  int64_t splits, int64_t count,
                                                  T* __restrict__ dw) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  AccOf<T> sum = 0;
#pragma unroll 8
  for (int64_t split = 0; split < splits; ++split) sum += partial[split * count + i];
  dw[i] = narrow<T>(sum);
}

}  // namespace

cudaError_t launch_conv2d_wgrad_depthwise(const ConvCall& call) {
  const ConvParams& p = call.p;
  const DepthwiseShape s = depthwise_shape(call);
  const int64_t splits = depthwise_splits(call, s.tile);
  const int64_t count = p.K * s.depth * p.R * p.S;
  const int window = depthwise_window(call);
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    AccOf<T>* partial = static_cast<AccOf<T>*>(call.workspace);
    const auto launch = [&](auto kernel) {
      kernel<<<unsigned(splits * s.chunks), kDepthwiseThreads, s.tile.shared, call.stream>>>(
          s, p.N, splits, static_cast<const T*>(call.grad), static_cast<const T*>(call.input),
          partial);
    };
    const bool twice = s.stride_h == 2;
    if constexpr (std::is_same_v<T, double>) {
      launch(conv2d_wgrad_depthwise_kernel<T>);
    } else {
      switch (window) {
        case 3:
          twice ? launch(conv2d_wgrad_depthwise_window_kernel<T, 3, 2>)
                : launch(conv2d_wgrad_depthwise_window_kernel<T, 3, 1>);
          break;
        case 5:
          twice ? launch(conv2d_wgrad_depthwise_window_kernel<T, 5, 2>)
                : launch(conv2d_wgrad_depthwise_window_kernel<T, 5, 1>);
          break;
        case 7:
          twice ? launch(conv2d_wgrad_depthwise_window_kernel<T, 7, 2>)
                : launch(conv2d_wgrad_depthwise_window_kernel<T, 7, 1>);
          break;
        default: launch(conv2d_wgrad_depthwise_kernel<T>);
      }
    }
    constexpr int kThreads = 128;
    conv2d_wgrad_depthwise_sum_kernel<T>
        <<<unsigned(ceil_div(count, kThreads)), kThreads, 0, call.stream>>>(
            partial, splits, count, static_cast<T*>(call.output));
  });
  return cudaGetLastError();
}

}  // namespace cnnkern
