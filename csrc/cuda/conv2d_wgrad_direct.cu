// wgrad of direct, in two stages of a fixed order: blocks sum slices of the batch's pixels, a
// second kernel adds up the slices. The common kernels have the sums of 4 channels in registers, of
// all taps or, where they are too many, of a row of them; a warp shares its taps and divides the
// strips:
//
//     grad  [ 0 1 2 3 ] x 4 channels       3x3, stride 1: 10 16-byte loads
//     in    [ a b c d e f ] x 3 rows       feed 144 multiply-adds
#include <algorithm>

#include "conv2d_direct.h"
#include "conv2d_direct_tile.cuh"

namespace cnnkern {
namespace {

constexpr int kStrip = kDirectStrip, kQuad = kDirectChannels, kThreads = kDirectThreads;

struct WgradShape {
  DirectTile tile;
  DirectSlices slices;
  Strides grad, input;
  IndexMap grad_rows, grad_columns, rows, columns;
  int C, K;  // of a group
  int stride_h, dil_h, pad_top, pad_left, P, Q;
};

// Every step-th item, from the first, of rows of `across` items.
struct Walk {
  int row, column, row_step, column_step, across;

  __device__ Walk(int first, int step, int across)
      : row(first / max(across, 1)),
        column(first % max(across, 1)),
        row_step(step / max(across, 1)),
        column_step(step % max(across, 1)),
        across(across) {}
  __device__ __forceinline__ void next() {
    row += row_step, column += column_step;
    if (column >= across) column -= across, ++row;
  }
};

// Of an SM, as many as their sums leave registers for.
template <typename T, int kS>
constexpr int kMinBlocks = sizeof(T) == 8 || kS == 5 ? 1 : 2;

template <typename T, int kS, int kStride>
__global__ __launch_bounds__(kThreads, kMinBlocks<T, kS>) void conv2d_wgrad_window_kernel(
    WgradShape s, const T* dy, const T* x, AccOf<T>* partial) {
  typedef AccOf<T> A;
  constexpr int kRows = direct_rows_of_taps(kS, sizeof(A)), kSpan = (kStrip - 1) * kStride + kS;
  extern __shared__ uint4 shared[];
  const DirectTile& t = s.tile;
  const int plane = t.source_rows * t.pitch, across = t.quads * kQuad;
  A* grads = reinterpret_cast<A*>(shared);
  A* source = grads + across * t.grad_plane;

  const int c_tiles = (s.C + t.channels - 1) / t.channels, k_tiles = (s.K + across - 1) / across;
  const int c0 = int(blockIdx.x % c_tiles) * t.channels;
  const int k0 = int(blockIdx.x / c_tiles % k_tiles) * across;
  const int64_t group = blockIdx.x / c_tiles / k_tiles;
  const int channels = min(t.channels, s.C - c0);
  dy += (group * s.K + k0) * s.grad.c, x += (group * s.C + c0) * s.input.c;

  // A warp's part of the taps, and its share of the strips.
  constexpr int kParts = kS / kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int r0 = warp % kParts * kRows, c = warp / kParts % t.channels;
  const int quad = warp / kParts / t.channels % t.quads;
  const int share = warp / kParts / t.channels / t.quads;
  const A* own_grads = grads + quad * kQuad * t.grad_plane;
  const A* own_source = source + c * plane + r0 * s.dil_h * t.pitch;

  const int across_tiles = (s.Q + t.strips * kStrip - 1) / (t.strips * kStrip);
  const int down_tiles = (s.P + t.rows - 1) / t.rows;
  const int first = share * 32 + lane, step = t.shares * 32;
  const int64_t begin = blockIdx.y * s.slices.units_each;
  const int64_t end = min(begin + s.slices.units_each, s.slices.units);
  A sum[kQuad][kRows][kS] = {};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int column0 = int(unit % across_tiles) * t.strips * kStrip;
    const int row0 = int(unit / across_tiles % down_tiles) * t.rows;
    const int64_t n = unit / across_tiles / down_tiles;
    if (unit > begin) __syncthreads();
    stage_planes(dy + n * s.grad.n, s.grad, s.grad_rows, s.grad_columns,
                 {across, s.K - k0, t.rows, t.strips * kStrip, t.grad_plane, row0, column0}, grads);
    stage_planes(x + n * s.input.n, s.input, s.rows, s.columns,
                 {t.channels, channels, t.source_rows, t.pitch, plane,
                  row0 * s.stride_h - s.pad_top, column0 * kStride - s.pad_left},
                 source);
    __syncthreads();
    const int rows = min(t.rows, s.P - row0), columns = s.Q - column0;
    const int full = min(t.strips, columns / kStrip);
    for (Walk at(first, step, full); full && at.row < rows; at.next()) {
      const A* g = own_grads + (at.row * t.strips + at.column) * kStrip;
      const A* line = own_source + at.row * s.stride_h * t.pitch + at.column * kStrip * kStride;
      A g4[kQuad][kStrip];
#pragma unroll
      for (int k = 0; k < kQuad; ++k) load_run<kStrip>(g + k * t.grad_plane, g4[k]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        A in[(kSpan + 3) / 4 * 4];
        load_run<kSpan>(line + r * s.dil_h * t.pitch, in);
#pragma unroll
        for (int j = 0; j < kStrip; ++j)
#pragma unroll
          for (int k = 0; k < kQuad; ++k)
#pragma unroll
            for (int tap = 0; tap < kS; ++tap) sum[k][r][tap] += g4[k][j] * in[j * kStride + tap];
      }
    }
    // What is left of the rows, column by column: zeros past their end would not hide a NaN there.
    const int rest = min(t.strips * kStrip, columns) - full * kStrip;
    for (Walk at(first, step, rest); rest && at.row < rows; at.next()) {
      const int column = full * kStrip + at.column;
      const A* g = own_grads + at.row * t.strips * kStrip + column;
      const A* line = own_source + at.row * s.stride_h * t.pitch + column * kStride;
      A g1[kQuad];
#pragma unroll
      for (int k = 0; k < kQuad; ++k) g1[k] = g[k * t.grad_plane];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int tap = 0; tap < kS; ++tap) {
          const A in = line[r * s.dil_h * t.pitch + tap];
#pragma unroll
          for (int k = 0; k < kQuad; ++k) sum[k][r][tap] += g1[k] * in;
        }
    }
  }

  // The sums of a warp: the lanes write theirs, then each adds up one of them, in order.
  constexpr int kSums = direct_sums(kS, sizeof(A)), kLanePitch = kSums | 1, kAtATime = kSums / kS;
  __syncthreads();
  A* exchange = reinterpret_cast<A*>(shared) + warp * 32 * kLanePitch;
  const int64_t count = gridDim.x / (c_tiles * k_tiles) * int64_t(s.K) * s.C * kS * kS;
  partial += (int64_t(blockIdx.y) * t.shares + share) * count;
#pragma unroll
  for (int round = 0; round < kRows * kQuad / kAtATime; ++round) {
    const int r = round % kRows, first_k = round / kRows * kAtATime;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      exchange[lane * kLanePitch + i] = sum[first_k + i / kS][r][i % kS];
    __syncwarp();
    const int k = k0 + quad * kQuad + first_k + lane / kS;
    if (lane >= kSums || k >= s.K || c >= channels) continue;
    A total = 0;
    for (int l = 0; l < 32; ++l) total += exchange[l * kLanePitch + lane];
    partial[(((group * s.K + k) * s.C + c0 + c) * kS + r0 + r) * kS + lane % kS] = total;
  }
}

// Every geometry: a thread sums one element over a slice of the rows of all images.
template <typename T>
__global__ void conv2d_wgrad_direct_kernel(ConvParams p, WgradShape s, const T* dy, const T* x,
                                           AccOf<T>* partial, int64_t count) {
  typedef AccOf<T> A;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const int64_t begin = blockIdx.y * s.slices.units_each;
  const int64_t end = min(begin + s.slices.units_each, s.slices.units);
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t tap = i % p.S, r = i / p.S % p.R, k = i / p.S / p.R / C;
    const int64_t c = k / K * C + i / p.S / p.R % C;
    A sum = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / p.P, row = unit % p.P;
      const int64_t h = padded_index(row * p.stride_h - p.pad_top + r * p.dil_h, p.H, p.mode);
      if (h < 0) continue;
      for (int64_t q = 0; q < p.Q; ++q) {
        const int64_t column =
            padded_index(q * p.stride_w - p.pad_left + tap * p.dil_w, p.W, p.mode);
        if (column >= 0)
          sum += widen(dy[s.grad.at(n, k, row, q)]) * widen(x[s.input.at(n, c, h, column)]);
      }
    }
    partial[blockIdx.y * count + i] = sum;
  }
}

// 32 elements a block; 8 threads share the slices of each, and add up in order.
constexpr int kLanes = 32, kParts = 8;

template <typename T>
__global__ void sum_slices_kernel(const AccOf<T>* partial, int64_t slices, T* dw, int64_t count) {
  __shared__ AccOf<T> parts[kParts][kLanes];
  const int64_t i = int64_t(blockIdx.x) * kLanes + threadIdx.x;
  AccOf<T> sum = 0;
  if (i < count)
    for (int64_t slice = threadIdx.y; slice < slices; slice += kParts)
      sum += partial[slice * count + i];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || i >= count) return;
  for (int part = 1; part < kParts; ++part) sum += parts[part][threadIdx.x];
  dw[i] = narrow<T>(sum);
}

template <typename T>
void launch(const ConvCall& call, const DirectTile& tile) {
  typedef AccOf<T> A;
  const ConvParams& p = call.p;
  WgradShape s{};
  s.tile = tile;
  s.slices = direct_slices(call, tile);
  s.grad = dense_strides(p.K, p.P, p.Q, call.nhwc);
  s.input = dense_strides(p.C, p.H, p.W, call.nhwc);
  const T *dy = static_cast<const T*>(call.grad), *x = static_cast<const T*>(call.input);
  A* partial = static_cast<A*>(call.workspace);
  const int64_t count = p.K * (p.C / p.groups) * p.R * p.S;
  if (s.slices.slices && !tile.rows) {
    const dim3 grid(grid_for(count, kThreads), unsigned(s.slices.slices));
    conv2d_wgrad_direct_kernel<T><<<grid, kThreads, 0, call.stream>>>(p, s, dy, x, partial, count);
  } else if (s.slices.slices) {
    s.grad_rows = make_index_map(p.P, PaddingMode::kZeros);
    s.grad_columns = make_index_map(p.Q, PaddingMode::kZeros);
    s.rows = make_index_map(p.H, p.mode), s.columns = make_index_map(p.W, p.mode);
    s.C = int(p.C / p.groups), s.K = int(p.K / p.groups);
    s.stride_h = int(p.stride_h), s.dil_h = int(p.dil_h);
    s.pad_top = int(p.pad_top), s.pad_left = int(p.pad_left), s.P = int(p.P), s.Q = int(p.Q);
    const dim3 grid(
        unsigned(p.groups * ceil_div(s.K, tile.quads * kQuad) * ceil_div(s.C, tile.channels)),
        unsigned(s.slices.slices));
    const int warps = int(p.R / direct_rows_of_taps(p.R, sizeof(A))) * tile.quads * tile.channels;
    const int threads = 32 * warps * tile.shares;
    with_window(p.S, p.stride_w, [&](auto width, auto stride) {
      conv2d_wgrad_window_kernel<T, decltype(width)::value, decltype(stride)::value>
          <<<grid, threads, tile.shared, call.stream>>>(s, dy, x, partial);
    });
  }
  sum_slices_kernel<T><<<unsigned(ceil_div(count, kLanes)), dim3(kLanes, kParts), 0, call.stream>>>(
      partial, s.slices.slices * std::max(1, tile.shares), static_cast<T*>(call.output), count);
}

}  // namespace

cudaError_t launch_conv2d_wgrad_direct(const ConvCall& call, const DirectTile& tile) {
  with_device_type(call.dtype, [&](auto type) { launch<decltype(type)>(call, tile); });
  return cudaGetLastError();
}

}  // namespace cnnkern
