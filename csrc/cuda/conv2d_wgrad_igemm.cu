// wgrad as an implicit GEMM in float32: [K x pixels] * [pixels x (c, r, s)], the pixels cut into
// parts of a length that the geometry alone decides. Each part's sums go to the workspace, and a
// second kernel adds them up in order. A thread loads at one pixel of each slice of 8, whose
// coordinates it steps along without a division; where a column of the product lies relative to
// the pixel is a table in shared memory. Rows and columns past the end load the first instead and
// are never stored.
#include <algorithm>

#include "conv2d_igemm.h"
#include "igemm_tile.cuh"

namespace cnnkern {
namespace {

struct WgradShape {
  Strides grad, input;
  IndexMap rows, columns;  // of the input
  int64_t pixels, part;    // of all images; of one part
  int P, Q, stride_h, stride_w, pad_top, pad_left, dil_h, dil_w;
  int K, C, R, S;  // of a group
  int tiles_across;
};

// Column j of the product, in the order of the input's memory: neighbours are loaded together.
struct Tap {
  int c, r, s;
};
template <bool kNhwc>
__device__ __forceinline__ Tap tap_of(const WgradShape& s, int64_t j) {
  if (kNhwc) return {int(j % s.C), int(j / s.C / s.S), int(j / s.C % s.S)};
  return {int(j / s.S / s.R), int(j / s.S % s.R), int(j % s.S)};
}

struct __align__(16) Column {
  int h, w, offset, unused;
};

template <int kTile, typename T, bool kNhwc>
__global__ __launch_bounds__(
    Igemm<kTile>::kThreads,
    Igemm<kTile>::kMinBlocks) void conv2d_wgrad_igemm_kernel(WgradShape s, const T* dy, const T* x,
                                                             float* partial) {
  typedef Igemm<kTile> G;
  constexpr int kPer = G::kThreads / kSlice;  // threads at one pixel
  __shared__ __align__(16) float rows[2][kSlice * G::kPitch];
  __shared__ __align__(16) float columns[2][kSlice * G::kPitch];
  __shared__ Column table[kTile];

  const int thread = threadIdx.x, group = blockIdx.z;
  const int64_t count = int64_t(s.C) * s.R * s.S;
  const int k0 = int(blockIdx.x / s.tiles_across) * kTile;
  const int64_t j0 = int64_t(blockIdx.x % s.tiles_across) * kTile;
  for (int j = thread; j < kTile; j += G::kThreads) {
    const Tap t = tap_of<kNhwc>(s, j0 + j < count ? j0 + j : 0);
    table[j] = {t.r * s.dil_h - s.pad_top, t.s * s.dil_w - s.pad_left, int(t.c * s.input.c), 0};
  }
  __syncthreads();

  // Lanes run along the memory: over pixels in NCHW, over channels in NHWC.
  const int slot = kNhwc ? thread / kPer : thread % kSlice;
  const int first = kNhwc ? thread % kPer : thread / kSlice;
  const int64_t begin = blockIdx.y * s.part;
  const int64_t end = begin + s.part < s.pixels ? begin + s.part : s.pixels;
  int64_t m = begin + slot;
  int q = int(m % s.Q), p = int(m / s.Q % s.P);
  int64_t n = m / s.Q / s.P;
  const int dq = kSlice % s.Q, dp = kSlice / s.Q % s.P, dn = kSlice / s.Q / s.P;
  dy += (int64_t(group) * s.K + k0) * s.grad.c;
  x += int64_t(group) * s.C * s.input.c;
  const int last = s.K - k0 - 1;
  const int row_pitch = int(s.input.h), column_pitch = int(s.input.w), grad_pitch = int(s.grad.c);

  float loaded_rows[G::kLoads], loaded_columns[G::kLoads];
  const auto fetch = [&] {
    const bool is_pixel = m < end;
    const T* grad = dy + s.grad.at(n, 0, p, q);
    const T* image = x + n * s.input.n;
    const int h = p * s.stride_h, w = q * s.stride_w;
#pragma unroll
    for (int i = 0; i < G::kLoads; ++i) {
      const int k = min(first + i * kPer, last);
      loaded_rows[i] = is_pixel ? widen(grad[k * grad_pitch]) : 0.f;
      const Column c = table[first + i * kPer];
      const int row = s.rows(h + c.h), column = s.columns(w + c.w);
      const bool inside = is_pixel && s.rows.inside(row) && s.columns.inside(column);
      loaded_columns[i] =
          inside ? widen(image[c.offset + row * row_pitch + column * column_pitch]) : 0.f;
    }
  };
  const auto next_slice = [&] {
    m += kSlice, q += dq, p += dp, n += dn;
    if (q >= s.Q) q -= s.Q, ++p;
    if (p >= s.P) p -= s.P, ++n;
  };
  const auto put = [&](int stage) {
#pragma unroll
    for (int i = 0; i < G::kLoads; ++i) {
      const int at = slot * G::kPitch + first + i * kPer;
      rows[stage][at] = loaded_rows[i], columns[stage][at] = loaded_columns[i];
    }
  };

  const ThreadPlace<kTile> place(thread);
  float sum[kThreadRows][kThreadColumns] = {};
  int64_t steps = (end - begin + kSlice - 1) / kSlice;  // no part is empty
  fetch();
  put(0);
  __syncthreads();
  for (int stage = 0; steps; stage ^= 1) {
    const bool more = --steps;
    if (more) {
      next_slice();
      fetch();
    }
    multiply_slice<G::kPitch>(rows[stage] + place.row, columns[stage] + place.column, sum);
    if (more) put(stage ^ 1);
    __syncthreads();
  }

  partial += ((int64_t(blockIdx.y) * gridDim.z + group) * s.K + k0) * count + j0;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = place.row_of(i);
    if (r > last) continue;
#pragma unroll
    for (int j = 0; j < kThreadColumns; ++j)
      if (j0 + place.column_of(j) < count) partial[r * count + place.column_of(j)] = sum[i][j];
  }
}

template <typename T, bool kNhwc>
__global__ void sum_parts_kernel(WgradShape s, const float* partial, int64_t parts, T* dw,
                                 int64_t count) {
  const int64_t columns = int64_t(s.C) * s.R * s.S;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    float sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * count + i];
    const Tap t = tap_of<kNhwc>(s, i % columns);
    dw[((i / columns * s.C + t.c) * s.R + t.r) * s.S + t.s] = narrow<T>(sum);
  }
}

template <int kTile, typename T, bool kNhwc>
void launch(const ConvCall& call) {
  const ConvParams& p = call.p;
  const IgemmShape gemm = igemm_shape(call);
  const int64_t parts = igemm_splits(call);
  WgradShape s{};
  s.grad = dense_strides(p.K, p.P, p.Q, kNhwc);
  s.input = dense_strides(p.C, p.H, p.W, kNhwc);
  s.rows = make_index_map(p.H, p.mode), s.columns = make_index_map(p.W, p.mode);
  s.pixels = gemm.reduction;
  s.part = std::max<int64_t>(ceil_div(ceil_div(s.pixels, parts), kIgemmSlice), 1) * kIgemmSlice;
  s.P = int(p.P), s.Q = int(p.Q);
  s.stride_h = int(p.stride_h), s.stride_w = int(p.stride_w);
  s.pad_top = int(p.pad_top), s.pad_left = int(p.pad_left);
  s.dil_h = int(p.dil_h), s.dil_w = int(p.dil_w);
  s.K = int(gemm.rows), s.C = int(p.C / p.groups), s.R = int(p.R), s.S = int(p.S);
  s.tiles_across = int(ceil_div(gemm.columns, kTile));
  const int64_t used = ceil_div(s.pixels, s.part);  // rounding up may leave fewer
  float* partial = static_cast<float*>(call.workspace);
  const dim3 grid(unsigned(ceil_div(s.K, kTile) * s.tiles_across), unsigned(used),
                  unsigned(p.groups));
  if (used)
    conv2d_wgrad_igemm_kernel<kTile, T, kNhwc><<<grid, Igemm<kTile>::kThreads, 0, call.stream>>>(
        s, static_cast<const T*>(call.grad), static_cast<const T*>(call.input), partial);
  const int64_t count = p.K * gemm.columns;
  sum_parts_kernel<T, kNhwc><<<grid_for(count, 128), 128, 0, call.stream>>>(
      s, partial, used, static_cast<T*>(call.output), count);
}

template <int kTile, typename T>
void launch_layout(const ConvCall& call) {
  if (call.nhwc)
    launch<kTile, T, true>(call);
  else
    launch<kTile, T, false>(call);
}

}  // namespace

cudaError_t launch_conv2d_wgrad_igemm(const ConvCall& call) {
  if (!(call.p.K * igemm_shape(call).columns)) return cudaSuccess;
  switch (call.dtype) {
    case DType::kFloat16: launch_layout<kIgemmSmall, __half>(call); break;
    case DType::kBFloat16: launch_layout<kIgemmSmall, __nv_bfloat16>(call); break;
    default:
      if (igemm_tile(call) == kIgemmLarge)
        launch_layout<kIgemmLarge, float>(call);
      else
        launch_layout<kIgemmSmall, float>(call);
  }
  return cudaGetLastError();
}

}  // namespace cnnkern
