// fprop and dgrad as one implicit GEMM in float32: [pixels x (tap, channel)] * [(tap, channel) x
// channels]. The reduction runs in slices of 8 channels of a single tap, so a pixel's address is
// worked out once a tap and a 1x1 kernel has no index arithmetic at all; the weight is packed in
// that order first. dgrad gathers, too: pixels of one phase (h mod stride, w mod stride) have the
// same taps. Two stages of shared memory; the pixels are the rows of the tile in NHWC and its
// columns in NCHW, so that neighbouring lanes store neighbours in memory.
#include "conv2d_igemm.h"
#include "conv2d_pack_weight.cuh"
#include "igemm_tile.cuh"

namespace cnnkern {
namespace {

// One of the two axes of a convolution. Output i of phase f reads, at its tap t, input
// i * step + offset + t * tap_step; t is the weight's tap first_tap + t * tap_skip.
struct Axis {
  int64_t extent;                           // of the output
  int stride, pad, dilation, taps, common;  // common: gcd(stride, dilation)
};

struct PhaseAxis {
  int extent, step, offset, taps, first_tap, tap_skip, tap_step;
};

__device__ PhaseAxis fprop_axis(const Axis& a) {
  return {int(a.extent), a.stride, -a.pad, a.taps, 0, 1, a.dilation};
}

// The taps whose window starts on the stride's grid: every (stride / common)-th, from the first.
__device__ PhaseAxis dgrad_axis(const Axis& a, int phase) {
  PhaseAxis f{};
  f.extent = a.extent > phase ? int((a.extent - phase + a.stride - 1) / a.stride) : 0;
  f.step = 1;
  f.tap_skip = a.stride / a.common;
  f.tap_step = -(a.dilation / a.common);
  for (int r = 0; r < a.taps && r < f.tap_skip; ++r) {
    const int64_t at = int64_t(phase) + a.pad - int64_t(r) * a.dilation;
    if (at % a.stride) continue;
    f.first_tap = r;
    f.offset = int(at / a.stride);
    f.taps = (a.taps - r + f.tap_skip - 1) / f.tap_skip;
    break;
  }
  return f;
}

struct GatherShape {
  Strides to;
  IndexMap rows, columns;  // of the source
  Axis h, w;
  int64_t N, image_pitch;
  int channel_pitch, row_pitch, pixel_pitch;  // of the source
  int weight_pitch;   // of the packed weight: channels of the output, whole tiles
  int C, K;           // channels of a group: summed over, and computed
  int slices, tiles;  // of C, of K
  bool is_dgrad;
  bool vector_store;  // 4 neighbours of the output are one aligned access
  Activation activation;
};

// Of the tile: where it goes, -1 if it is none, and where its window starts in the source. In
// shared memory, because it is looked at once a tap and registers are short.
struct __align__(16) Pixel {
  int64_t destination, image;
  int row, column;
};

template <int kTile, typename T, Gather kGather>
__global__ __launch_bounds__(Igemm<kTile>::kThreads,
                             Igemm<kTile>::kMinBlocks) void conv2d_igemm_kernel(GatherShape s,
                                                                                const T* x,
                                                                                const float* weight,
                                                                                const T* bias,
                                                                                T* y) {
  typedef Igemm<kTile> G;
  constexpr bool kNhwc = is_nhwc(kGather);
  constexpr int kParts = kSlice / G::kLoads;  // threads that share a pixel
  __shared__ __align__(16) float pixels[2][kSlice * G::kPitch];
  __shared__ __align__(16) float channels[2][kSlice * G::kPitch];
  __shared__ Pixel table[kTile];
  __shared__ PhaseAxis axes[2];

  const int thread = threadIdx.x;
  const int group = blockIdx.y / s.tiles, k0 = int(blockIdx.y % s.tiles) * kTile;
  const int phase_h = blockIdx.z / s.w.stride, phase_w = blockIdx.z % s.w.stride;
  if (thread == 0) {
    axes[0] = s.is_dgrad ? dgrad_axis(s.h, phase_h) : fprop_axis(s.h);
    axes[1] = s.is_dgrad ? dgrad_axis(s.w, phase_w) : fprop_axis(s.w);
  }
  __syncthreads();
  const PhaseAxis &h = axes[0], &w = axes[1];

  // The pixel that this thread loads, and the first of its channels within a slice.
  const int pixel = kNhwc ? thread / kParts : thread % kTile;
  const int part = (kNhwc ? thread % kParts : thread / kTile) * G::kLoads;
  const int64_t plane = int64_t(h.extent) * w.extent;
  if (int64_t(blockIdx.x) * kTile >= s.N * plane) return;  // the same for the whole block
  if (part == 0) {
    const int64_t m = int64_t(blockIdx.x) * kTile + pixel;
    Pixel to{-1, 0, 0, 0};
    if (m < s.N * plane) {
      const int64_t n = m / plane, rest = m % plane;
      const int i = int(rest / w.extent), j = int(rest % w.extent);
      to.row = i * h.step + h.offset, to.column = j * w.step + w.offset;
      to.image = n * s.image_pitch;
      to.destination = s.is_dgrad ? s.to.at(n, 0, int64_t(i) * s.h.stride + phase_h,
                                            int64_t(j) * s.w.stride + phase_w)
                                  : s.to.at(n, 0, i, j);
    }
    table[pixel] = to;
  }
  __syncthreads();

  constexpr int kQuads = kTile / 4;  // 4 channels of the packed weight a load
  const int slice_pitch = kSlice * s.weight_pitch, tap_pitch = s.slices * slice_pitch;
  x += (int64_t(group) * s.C + part) * s.channel_pitch;
  weight += int64_t(group) * s.h.taps * s.w.taps * tap_pitch + thread / kQuads * s.weight_pitch +
            k0 + thread % kQuads * 4;

  const T* source = x;
  const float* tap_weight = weight;
  int left = 0, slice = 0, tap_h = 0, tap_w = 0;
  const auto seek_tap = [&] {
    const Pixel from = table[pixel];
    const int i = s.rows(from.row + tap_h * h.tap_step);
    const int j = s.columns(from.column + tap_w * w.tap_step);
    const bool inside = from.destination >= 0 && s.rows.inside(i) && s.columns.inside(j);
    left = inside ? s.C - part : 0;
    source = x + from.image + int64_t(i) * s.row_pitch + int64_t(j) * s.pixel_pitch;
    const int tap =
        (h.first_tap + tap_h * h.tap_skip) * s.w.taps + w.first_tap + tap_w * w.tap_skip;
    tap_weight = weight + int64_t(tap) * tap_pitch;
  };
  const auto next_slice = [&] {
    left -= kSlice, source += kNhwc ? kSlice : int64_t(s.channel_pitch) * kSlice,
        tap_weight += slice_pitch;
    if (++slice < s.slices) return;
    slice = 0;
    if (++tap_w == w.taps) tap_w = 0, ++tap_h;
    seek_tap();
  };

  float loaded[G::kLoads];
  float4 loaded_weight[G::kLoads / 4];
  const auto fetch = [&] {
#pragma unroll
    for (int v = 0; v < G::kLoads; v += kChunk)
      load_chunk<kGather>(source + (kNhwc ? v : int64_t(s.channel_pitch) * v), s.channel_pitch,
                          left - v, loaded + v);
#pragma unroll
    for (int v = 0; v < G::kLoads / 4; ++v)
      loaded_weight[v] = *reinterpret_cast<const float4*>(tap_weight + v * (G::kThreads / kQuads) *
                                                                           s.weight_pitch);
  };
  const auto put = [&](int stage) {
#pragma unroll
    for (int i = 0; i < G::kLoads; ++i) pixels[stage][(part + i) * G::kPitch + pixel] = loaded[i];
#pragma unroll
    for (int v = 0; v < G::kLoads / 4; ++v)
      *reinterpret_cast<float4*>(
          &channels[stage][(thread / kQuads + v * (G::kThreads / kQuads)) * G::kPitch +
                           thread % kQuads * 4]) = loaded_weight[v];
  };

  const ThreadPlace<kTile> place(thread);
  float sum[kThreadRows][kThreadColumns] = {};
  int64_t steps = int64_t(h.taps) * w.taps * s.slices;
  if (steps) {
    seek_tap();
    fetch();
    put(0);
  }
  __syncthreads();
  for (int stage = 0; steps; stage ^= 1) {
    const bool more = --steps;
    if (more) {
      next_slice();
      fetch();
    }
    const float *rows = (kNhwc ? pixels : channels)[stage] + place.row,
                *columns = (kNhwc ? channels : pixels)[stage] + place.column;
    multiply_slice<G::kPitch>(rows, columns, sum);
    if (more) put(stage ^ 1);
    __syncthreads();
  }

  // Bias, activation, and 4 neighbours at a time to memory.
  float* own = &pixels[0][0] + thread;  // the tiles are done with
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = place.row_of(i);
    if (!kNhwc && k0 + r >= s.K) continue;
#pragma unroll
    for (int j = 0; j < kThreadColumns; ++j) {
      const int k = k0 + (kNhwc ? place.column_of(j) : r);
      if (bias && k < s.K) sum[i][j] += widen(bias[int64_t(group) * s.K + k]);
    }
    if (s.activation != Activation::kNone) {  // one copy of its code a row
#pragma unroll
      for (int j = 0; j < kThreadColumns; ++j) own[j * G::kThreads] = sum[i][j];
#pragma unroll 1
      for (int j = 0; j < kThreadColumns; ++j)
        own[j * G::kThreads] = activate(own[j * G::kThreads], s.activation);
#pragma unroll
      for (int j = 0; j < kThreadColumns; ++j) sum[i][j] = own[j * G::kThreads];
    }
#pragma unroll
    for (int j = 0; j < kThreadColumns; j += 4) {
      const int c = place.column_of(j);
      const int k = k0 + (kNhwc ? c : r);
      T* out = y + (int64_t(group) * s.K + k) * s.to.c;
      if (s.vector_store) {
        const int64_t at = table[kNhwc ? r : c].destination;
        if (at < 0 || k >= s.K) continue;
        Vector4<T> four;
#pragma unroll
        for (int e = 0; e < 4; ++e) four.v[e] = narrow<T>(sum[i][j + e]);
        *reinterpret_cast<Vector4<T>*>(out + at) = four;
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t at = table[kNhwc ? r : c + e].destination;
          if (at < 0 || (kNhwc && k + e >= s.K)) continue;
          out[at + (kNhwc ? e * s.to.c : 0)] = narrow<T>(sum[i][j + e]);
        }
      }
    }
  }
}

int gcd(int64_t a, int64_t b) { return int(b ? gcd(b, a % b) : a); }

GatherShape make_gather_shape(const ConvCall& call, int64_t tile) {
  const ConvParams& p = call.p;
  GatherShape s{};
  s.is_dgrad = call.pass == ConvPass::kDgrad;
  const Strides input = dense_strides(p.C, p.H, p.W, call.nhwc);
  const Strides output = dense_strides(p.K, p.P, p.Q, call.nhwc);
  const Strides& from = s.is_dgrad ? output : input;
  s.to = s.is_dgrad ? input : output;
  s.image_pitch = from.n, s.channel_pitch = int(from.c);
  s.row_pitch = int(from.h), s.pixel_pitch = int(from.w);
  s.rows = make_index_map(s.is_dgrad ? p.P : p.H, p.mode);
  s.columns = make_index_map(s.is_dgrad ? p.Q : p.W, p.mode);
  s.h = {s.is_dgrad ? p.H : p.P, int(p.stride_h), int(p.pad_top),
         int(p.dil_h),           int(p.R),        gcd(p.stride_h, p.dil_h)};
  s.w = {s.is_dgrad ? p.W : p.Q, int(p.stride_w), int(p.pad_left),
         int(p.dil_w),           int(p.S),        gcd(p.stride_w, p.dil_w)};
  s.N = p.N;
  s.C = int((s.is_dgrad ? p.K : p.C) / p.groups), s.K = int((s.is_dgrad ? p.C : p.K) / p.groups);
  s.slices = int(igemm_tiles(s.C, kIgemmSlice)), s.tiles = int(igemm_tiles(s.K, tile));
  s.weight_pitch = int(s.tiles * tile);
  const bool is_strided = s.is_dgrad && p.stride_h * p.stride_w != 1;
  s.vector_store = call.nhwc ? s.K % 4 == 0 : s.h.extent * s.w.extent % 4 == 0 && !is_strided;
  s.vector_store &= is_aligned(call.output, call.dtype == DType::kFloat32 ? 16 : 8);
  s.activation = call.activation;
  return s;
}

// Whether the channels summed over come in whole chunks, aligned where one is one load.
bool comes_in_chunks(const ConvCall& call) {
  const bool is_dgrad = call.pass == ConvPass::kDgrad;
  const size_t bytes = call.dtype == DType::kFloat32 ? 16 : 8;
  return (is_dgrad ? call.p.K : call.p.C) / call.p.groups % kChunk == 0 &&
         (!call.nhwc || is_aligned(is_dgrad ? call.grad : call.input, bytes));
}

template <int kTile, typename T>
void launch(const ConvCall& call) {
  const ConvParams& p = call.p;
  const GatherShape s = make_gather_shape(call, kTile);
  // [groups, taps, C in whole slices, K in whole tiles]; in dgrad the two trade places.
  const Strides order = dense_strides(p.C / p.groups, p.R, p.S, call.weight_nhwc);
  float* packed = static_cast<float*>(call.workspace);
  pack_weight(static_cast<const T*>(call.weight), packed,
              {s.K, s.weight_pitch, s.is_dgrad ? order.c : order.n},
              {s.C, s.slices * kIgemmSlice, s.is_dgrad ? order.n : order.c}, p.R * p.S, order.w,
              p.groups, p.K / p.groups * order.n, false, call.stream);

  const T* from = static_cast<const T*>(s.is_dgrad ? call.grad : call.input);
  const int64_t pixels = igemm_shape(call).rows;
  const dim3 grid(unsigned(ceil_div(pixels, kTile)), unsigned(p.groups * s.tiles),
                  unsigned(s.is_dgrad ? p.stride_h * p.stride_w : 1));
  const auto run = [&](auto kernel) {
    kernel<<<grid, Igemm<kTile>::kThreads, 0, call.stream>>>(
        s, from, packed, static_cast<const T*>(call.bias), static_cast<T*>(call.output));
  };
  if (kTile == kIgemmLarge || comes_in_chunks(call))
    run(call.nhwc ? conv2d_igemm_kernel<kTile, T, Gather::kPixelChunks>
                  : conv2d_igemm_kernel<kTile, T, Gather::kPlaneChunks>);
  else if constexpr (kTile == kIgemmSmall)
    run(call.nhwc ? conv2d_igemm_kernel<kTile, T, Gather::kPixels>
                  : conv2d_igemm_kernel<kTile, T, Gather::kPlanes>);
}

}  // namespace

cudaError_t launch_conv2d_igemm(const ConvCall& call) {
  if (call.pass == ConvPass::kWgrad) return launch_conv2d_wgrad_igemm(call);
  const ConvParams& p = call.p;
  const bool is_empty =
      call.pass == ConvPass::kFprop ? !(p.N * p.K * p.P * p.Q) : !(p.N * p.C * p.H * p.W);
  if (is_empty) return cudaSuccess;
  switch (call.dtype) {
    case DType::kFloat16: launch<kIgemmSmall, __half>(call); break;
    case DType::kBFloat16: launch<kIgemmSmall, __nv_bfloat16>(call); break;
    default:
      if (igemm_tile(call) == kIgemmLarge && comes_in_chunks(call))
        launch<kIgemmLarge, float>(call);
      else
        launch<kIgemmSmall, float>(call);
  }
  return cudaGetLastError();
}

}  // namespace cnnkern
