// wgrad as an implicit GEMM in float32: [K x pixels] * [pixels x (r, s, c)], the pixels cut into
// parts of a length that the geometry alone decides. Each part's sums go to the workspace, and a
// second kernel adds them up in order. The columns come in chunks of 4 channels of one tap: a
// thread loads whole chunks at one pixel of each slice of 8, so it looks at the borders once a
// chunk, and it steps along the pixels without a division. What lies past K or C is loaded as
// zeros.
#include <algorithm>

#include "conv2d_igemm.h"
#include "conv2d_sum_parts.cuh"
#include "igemm_tile.cuh"

namespace cnnkern {
namespace {

struct WgradShape {
  IndexMap rows, columns;           // of the input
  int64_t pixels, part;             // of all images; of one part
  int64_t image_pitch, grad_pitch;  // from one image to the next
  // Bytes to the pixel a slice further on, within an image and across its end: there the gradient's
  // other channels lie between in NCHW, and nothing in NHWC.
  int64_t image_step, image_step_across, grad_step, grad_step_across;
  int channel_pitch, row_pitch, tap_pitch;  // of the input
  int grad_channel_pitch, grad_pixel_pitch;
  int P, Q, stride_h, stride_w, pad_top, pad_left, dil_h, dil_w;
  int size;                  // of an element, in bytes
  int K, C, R, S;            // of a group
  int chunks, tiles_across;  // of C; of all columns
  int dp, dq;                // a slice of pixels further on, but for whole images
};

// Where a chunk's channels lie in NCHW, from the group's first. Past the last it is the last again:
// what such a channel adds up to is not stored, so the loop need not tell it apart.
__device__ __forceinline__ int4 plane_offsets(int first, int channels, int pitch) {
  const auto at = [&](int i) { return min(first + i, channels - 1) * pitch; };
  return {at(0), at(1), at(2), at(3)};
}

template <typename T>
__device__ __forceinline__ const T* move(const T* from, int64_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(from) + bytes);
}

template <int kTile, typename T, Gather kGather>
__global__ __launch_bounds__(
    Igemm<kTile>::kThreads,
    Igemm<kTile>::kMinBlocks) void conv2d_wgrad_igemm_kernel(WgradShape s, const T* dy, const T* x,
                                                             float* partial) {
  typedef Igemm<kTile> G;
  constexpr bool kNhwc = is_nhwc(kGather);
  constexpr int kPer = G::kThreads / kSlice;   // threads at one pixel
  constexpr int kChunks = G::kLoads / kChunk;  // of a thread, per operand and slice
  // A thread's chunks are neighbours that share a tap, or lie where those of all lanes are whole
  // sectors; from one to the next, columns.
  constexpr int kTaps = kGather == Gather::kPlaneChunks ? 1 : kChunks;
  constexpr int kStep = kTaps < kChunks ? kChunk : kPer * kChunk;
  constexpr int kColumns = kSlice * G::kPitch, kStage = 2 * kColumns;
  __shared__ __align__(16) float tiles[2 * kStage];  // of each stage the rows, then the columns
  // In NCHW, of each chunk; there are no registers for it.
  __shared__ int4 row_offsets[kPer][kChunks], column_offsets[kPer][kChunks];

  // Lanes run along the memory: over pixels in NCHW, over channels in NHWC.
  const int thread = threadIdx.x, group = blockIdx.z;
  const int slot = kNhwc ? thread / kPer : thread % kSlice;
  const int lane = kNhwc ? thread % kPer : thread / kSlice;
  const int first = lane * (kChunk * kChunks / kTaps);
  const int k0 = int(blockIdx.x / s.tiles_across) * kTile;
  const int j0 = int(blockIdx.x % s.tiles_across) * kTile;

  // Where the chunks lie relative to the pixel, and how many channels they have.
  int tap_h[kTaps], tap_w[kTaps], offset[kTaps], channels[kTaps];
#pragma unroll
  for (int v = 0; v < kTaps; ++v) {
    const int chunk = (j0 + first + v * kStep) / kChunk;
    const int tap = chunk / s.chunks, c = chunk % s.chunks * kChunk;
    tap_h[v] = tap / s.S * s.dil_h - s.pad_top, tap_w[v] = tap % s.S * s.dil_w - s.pad_left;
    offset[v] = c;
    channels[v] = tap < s.R * s.S ? s.C - c : 0;
    for (int u = v; u < kChunks && !kNhwc && slot == 0; u += kTaps) {
      row_offsets[lane][u] = plane_offsets(k0 + first + u * kStep, s.K, s.grad_channel_pitch);
      column_offsets[lane][u] = plane_offsets(c + (u - v) * kChunk, s.C, s.channel_pitch);
    }
  }
  if (!kNhwc) __syncthreads();

  const int64_t begin = blockIdx.y * s.part;
  const int length = int(begin + s.part < s.pixels ? s.part : s.pixels - begin);  // never 0
  const int64_t n = (begin + slot) / s.Q / s.P;
  int left = length - slot;
  int q = int((begin + slot) % s.Q), p = int((begin + slot) / s.Q % s.P);
  const int rows_left = s.K - k0 - first;
  const T* image = x + n * s.image_pitch + int64_t(group) * s.C * s.channel_pitch;
  const T* grad = dy + n * s.grad_pitch + (int64_t(p) * s.Q + q) * s.grad_pixel_pitch +
                  (int64_t(group) * s.K + (kNhwc ? k0 + first : 0)) * s.grad_channel_pitch;

  float loaded_rows[G::kLoads], loaded_columns[G::kLoads];
  bool has_rows[kChunks], has_columns[kTaps];  // in NCHW; zeros if not
  const auto fetch = [&] {
    const int rows_here = left > 0 ? rows_left : 0;
    const int h = p * s.stride_h, w = q * s.stride_w;
#pragma unroll
    for (int v = 0; v < kChunks; ++v) {
      float* to = loaded_rows + v * kChunk;
      has_rows[v] = rows_here > v * kStep;
      if constexpr (kNhwc)
        load_chunk<kGather>(grad + v * kStep, 1, rows_here - v * kStep, to);
      else if (has_rows[v])
        load_planes(grad, row_offsets[lane][v], s.size, to);
    }
#pragma unroll
    for (int v = 0; v < kTaps; ++v) {
      const int row = s.rows(h + tap_h[v]), column = s.columns(w + tap_w[v]);
      const bool inside = left > 0 && s.rows.inside(row) && s.columns.inside(column);
      has_columns[v] = inside && channels[v] > 0;
      if constexpr (kNhwc) {
        load_chunk<kGather>(image + (offset[v] + row * s.row_pitch + column * s.tap_pitch), 1,
                            inside ? channels[v] : 0, loaded_columns + v * kChunk);
      } else if (has_columns[v]) {
        const T* source = advance(image, row * s.row_pitch + column * s.tap_pitch, s.size);
#pragma unroll
        for (int u = v; u < kChunks; u += kTaps)
          load_planes(source, column_offsets[lane][u], s.size, loaded_columns + u * kChunk);
      }
    }
  };
  const auto put = [&](float* tile) {
#pragma unroll
    for (int v = 0; v < kChunks; ++v) {
      const int at = slot * G::kPitch + first + v * kStep;
      store_chunk(tile + at, loaded_rows + v * kChunk, kNhwc || has_rows[v]);
      store_chunk(tile + kColumns + at, loaded_columns + v * kChunk,
                  kNhwc || has_columns[v % kTaps]);
    }
  };
  const auto next_slice = [&] {
    left -= kSlice, q += s.dq;
    const bool next_row = q >= s.Q;
    q = min(unsigned(q), unsigned(q - s.Q)), p += next_row ? s.dp + 1 : s.dp;
    const bool across = p >= s.P;
    p = min(unsigned(p), unsigned(p - s.P));
    image = move(image, across ? s.image_step_across : s.image_step);
    grad = move(grad, !kNhwc && across ? s.grad_step_across : s.grad_step);
  };

  const ThreadPlace<kTile> place(thread);
  float sum[kThreadRows][kThreadColumns] = {};
  fetch();
  put(tiles);
  __syncthreads();
  int steps = (length + kSlice - 1) / kSlice;
  for (int stage = 0; steps; stage ^= kStage) {
    // One past the end is loaded as zeros, where a branch costs more.
    const bool more = --steps || !kNhwc;
    if (more) {
      next_slice();
      fetch();
    }
    const float* tile = tiles + stage;
    multiply_slice<G::kPitch>(tile + place.row, tile + kColumns + place.column, sum);
    if (more) put(tiles + (stage ^ kStage));
    __syncthreads();
  }

  const int count = s.R * s.S * s.chunks * kChunk;
  partial += ((int64_t(blockIdx.y) * gridDim.z + group) * s.K + k0) * count + j0;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = place.row_of(i);
    if (k0 + r >= s.K) continue;
#pragma unroll
    for (int j = 0; j < kThreadColumns; j += kChunk)
      if (j0 + place.column_of(j) < count)
        store_chunk(partial + int64_t(r) * count + place.column_of(j), sum[i] + j, true);
  }
}

WgradShape make_wgrad_shape(const ConvCall& call, int tile) {
  const ConvParams& p = call.p;
  const IgemmShape gemm = igemm_shape(call);
  const Strides grad = dense_strides(p.K, p.P, p.Q, call.nhwc);
  const Strides input = dense_strides(p.C, p.H, p.W, call.nhwc);
  WgradShape s{};
  s.rows = make_index_map(p.H, p.mode), s.columns = make_index_map(p.W, p.mode);
  s.pixels = gemm.reduction;
  s.part = std::max<int64_t>(ceil_div(ceil_div(s.pixels, igemm_splits(call)), kSlice), 1) * kSlice;
  s.image_pitch = input.n, s.grad_pitch = grad.n;
  s.channel_pitch = int(input.c), s.row_pitch = int(input.h), s.tap_pitch = int(input.w);
  s.grad_channel_pitch = int(grad.c), s.grad_pixel_pitch = int(grad.w);
  s.size = call.dtype == DType::kFloat32 ? 4 : 2;
  s.P = int(p.P), s.Q = int(p.Q);
  s.stride_h = int(p.stride_h), s.stride_w = int(p.stride_w);
  s.pad_top = int(p.pad_top), s.pad_left = int(p.pad_left);
  s.dil_h = int(p.dil_h), s.dil_w = int(p.dil_w);
  s.K = int(gemm.rows), s.C = int(p.C / p.groups), s.R = int(p.R), s.S = int(p.S);
  s.chunks = int(ceil_div(s.C, kChunk)), s.tiles_across = int(ceil_div(gemm.columns, tile));
  const int64_t grad_skip = grad.n - p.P * p.Q * grad.w;
  if (!s.pixels) return s;
  s.dp = kSlice / s.Q % s.P, s.dq = kSlice % s.Q;
  const int images = kSlice / s.Q / s.P;
  s.image_step = images * input.n * s.size;
  s.grad_step = (kSlice * grad.w + images * grad_skip) * s.size;
  s.image_step_across = s.image_step + input.n * s.size;
  s.grad_step_across = s.grad_step + grad_skip * s.size;
  return s;
}

// Whether all channels come in whole chunks, aligned where a chunk is one load.
bool comes_in_chunks(const ConvCall& call, int tile) {
  const int64_t C = call.p.C / call.p.groups, K = call.p.K / call.p.groups;
  const int channels = call.nhwc || tile == kIgemmLarge ? kChunk : 2 * kChunk;
  const size_t bytes = call.dtype == DType::kFloat32 ? 16 : 8;
  return C % channels == 0 && K % channels == 0 &&
         (!call.nhwc || (is_aligned(call.grad, bytes) && is_aligned(call.input, bytes)));
}

template <int kTile, typename T>
void launch(const ConvCall& call) {
  const WgradShape s = make_wgrad_shape(call, kTile);
  const int64_t parts = ceil_div(s.pixels, s.part);  // rounding up may leave fewer than planned
  float* partial = static_cast<float*>(call.workspace);
  const auto run = [&](auto kernel) {
    const dim3 grid(unsigned(ceil_div(s.K, kTile) * s.tiles_across), unsigned(parts),
                    unsigned(call.p.groups));
    kernel<<<grid, Igemm<kTile>::kThreads, 0, call.stream>>>(
        s, static_cast<const T*>(call.grad), static_cast<const T*>(call.input), partial);
  };
  if (!parts) {  // no pixels, so the sums are zeros
  } else if (kTile == kIgemmLarge || comes_in_chunks(call, kTile)) {
    run(call.nhwc ? conv2d_wgrad_igemm_kernel<kTile, T, Gather::kPixelChunks>
                  : conv2d_wgrad_igemm_kernel<kTile, T, Gather::kPlaneChunks>);
  } else if constexpr (kTile == kIgemmSmall) {
    run(call.nhwc ? conv2d_wgrad_igemm_kernel<kTile, T, Gather::kPixels>
                  : conv2d_wgrad_igemm_kernel<kTile, T, Gather::kPlanes>);
  }
  const int64_t columns = igemm_shape(call).columns, taps = call.p.R * call.p.S;
  sum_parts(partial, parts, call.p.K * columns, call.p.K, s.C, s.chunks * kChunk, taps,
            static_cast<T*>(call.output), call.stream);
}

}  // namespace

cudaError_t launch_conv2d_wgrad_igemm(const ConvCall& call) {
  if (!(call.p.K * igemm_shape(call).columns)) return cudaSuccess;
  switch (call.dtype) {
    case DType::kFloat16: launch<kIgemmSmall, __half>(call); break;
    case DType::kBFloat16: launch<kIgemmSmall, __nv_bfloat16>(call); break;
    default:
      if (igemm_tile(call) == kIgemmLarge && comes_in_chunks(call, kIgemmLarge))
        launch<kIgemmLarge, float>(call);
      else
        launch<kIgemmSmall, float>(call);
  }
  return cudaGetLastError();
}

}  // namespace cnnkern
