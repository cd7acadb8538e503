// fprop and dgrad on tensor cores. Both are one product: rows are pixels that are written, columns
// their channels, the sum runs over taps and channels of pixels that are read. dgrad's pixels of
// one phase of the stride read with unit stride, so no product with a hole is made. Shared memory
// holds rows of 64 bytes, 4 chunks; chunk c of row r lies at c ^ (r / 2 % 4), so the 8 rows of an
// ldmatrix, and the stores, touch all 32 banks once:
//   row 0: c0 c1 c2 c3 | row 1: c0 c1 c2 c3 | row 2: c1 c0 c3 c2 | row 3: c1 c0 c3 c2 | ...
#include "conv2d_mma.cuh"
#include "conv2d_mma.h"
#include "conv2d_pack_weight.cuh"

namespace cnnkern {
namespace {

// Along one axis, output pixel i and tap j read row i * mul + off + j * step of the source, which
// is tap first + j * every of the weight.
struct Axis {
  int extent, taps, mul, off, step, source, first, every;
};

struct Product {
  Axis h, w;
  int64_t rows;
  int summed, written;  // channels a group
  int padded_summed, padded_written;
  int taps, S;  // of the whole weight
  Strides source, output;
  PaddingMode mode;
  Activation activation;
  bool nhwc, output_in_chunks;
};

template <int Tile>
constexpr int kThreads = Tile == 128 ? 256 : 128;
template <int Tile>
constexpr int kStages = Tile == 128 ? 3 : 4;  // 48 KiB and 32 KiB

__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return row * 64 + ((chunk ^ (row >> 1 & 3)) * kChunk);
}

// What a thread copies of every step: chunks of two rows of the source and of two of the weight.
template <typename T, int Tile, bool Async>
struct Loader {
  static constexpr int kRows = Tile * 4 / kThreads<Tile>;
  const Product& s;
  const T *source[kRows], *at[kRows], *weight;
  int row[kRows], chunk[kRows], h0[kRows], w0[kRows];
  int jh = 0, jw = 0, c = 0;

  __device__ Loader(const Product& s, const T* x, const T* w, int64_t row0, int column0) : s(s) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int id = threadIdx.x + i * kThreads<Tile>;
      // Neighbouring lanes read neighbours in memory: pixels in NCHW, channels in NHWC.
      row[i] = Async || s.nhwc ? id / 4 : id % Tile;
      chunk[i] = Async || s.nhwc ? id % 4 : id / Tile;
      const int64_t m = row0 + row[i], n = m / s.w.extent;
      h0[i] = int(n % s.h.extent) * s.h.mul + s.h.off;
      w0[i] = int(m % s.w.extent) * s.w.mul + s.w.off;
      source[i] = m < s.rows ? x + n / s.h.extent * s.source.n : nullptr;
    }
    weight = w + (int64_t(column0) + threadIdx.x / 4) * s.taps * s.padded_summed +
             threadIdx.x % 4 * kChunkElements<T>;
    find_pixels();
  }

  __device__ void find_pixels() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t h = padded_index(h0[i] + jh * s.h.step, s.h.source, s.mode);
      const int64_t w = padded_index(w0[i] + jw * s.w.step, s.w.source, s.mode);
      at[i] = source[i] && h >= 0 && w >= 0 ? source[i] + h * s.source.h + w * s.source.w : nullptr;
    }
  }

  __device__ void load(char* a, char* b, const T* x) {
    const int tap = (s.h.first + jh * s.h.every) * s.S + s.w.first + jw * s.w.every;
    const T* from = weight + int64_t(tap) * s.padded_summed + c;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int at_c = c + chunk[i] * kChunkElements<T>, id = threadIdx.x + i * kThreads<Tile>;
      const int count = at[i] ? s.summed - at_c : 0;
      char* to = a + chunk_offset(row[i], chunk[i]);
      if constexpr (Async)
        copy_chunk_async(to, count > 0 ? at[i] + at_c : x, count > 0);
      else
        gather_chunk(to, at[i] + at_c * s.source.c, s.source.c, count);
      copy_chunk_async(b + chunk_offset(id / 4, id % 4),
                       from + int64_t(i) * (kThreads<Tile> / 4) * s.taps * s.padded_summed, true);
    }
    c += 4 * kChunkElements<T>;
    if (c < s.padded_summed) return;
    c = 0;
    if (++jw == s.w.taps) jw = 0, ++jh;
    find_pixels();
  }
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

// The tile of the output lies in shared memory as in global memory, [pixel][channel] in NHWC and
// [channel][pixel] in NCHW, so that a store is neighbours, 16 bytes of them where that is aligned.
template <typename Unit, typename T, int Tile>
__device__ void store_tile(const Product& s, const T* tile, int pitch, T* y, int64_t row0,
                           int column0) {
  constexpr int kUnit = int(sizeof(Unit) / sizeof(T)), kLanes = Tile / kUnit;
  static_assert(kThreads<Tile> % kLanes == 0);
  const int columns = s.written - column0, first = threadIdx.x % kLanes * kUnit;
  const auto pixel = [&](int64_t m) {
    const int64_t n = m / s.w.extent;
    return y + n / s.h.extent * s.output.n + n % s.h.extent * s.output.h +
           m % s.w.extent * s.output.w + column0 * s.output.c;
  };
  T* plane = pixel(row0 + first);
  for (int line = threadIdx.x / kLanes; line < Tile; line += kThreads<Tile> / kLanes) {
    const int row = s.nhwc ? line : first, column = s.nhwc ? first : line;
    if (row0 + row >= s.rows || column >= columns) continue;
    T* to = s.nhwc ? pixel(row0 + row) + column : plane + column * s.output.c;
    *reinterpret_cast<Unit*>(to) = *reinterpret_cast<const Unit*>(tile + line * pitch + first);
  }
}

template <typename T, int Tile, bool Async>
__global__ void __launch_bounds__(kThreads<Tile>, Tile == 128 ? 2 : 4)
    conv2d_mma_kernel(Product s, const T* x, const T* w, const T* bias, T* y) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr int kWarpM = Tile / 2, kWarpN = 32, kWarpsN = Tile / kWarpN;
  constexpr int kBytes = Tile * 64, kS = kStages<Tile>;
  __shared__ alignas(128) char shared[kS * 2 * kBytes];
  const int64_t row0 = int64_t(blockIdx.x) * Tile;
  const int column0 = blockIdx.y * Tile, group = blockIdx.z;
  x += group * s.summed * s.source.c;
  Loader<T, Tile, Async> loader(s, x, w, row0, group * s.padded_written + column0);
  const int steps = s.h.taps * s.w.taps * (s.padded_summed / (4 * kChunkElements<T>));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int m0 = warp / kWarpsN * kWarpM, n0 = warp % kWarpsN * kWarpN;
  float sum[kWarpM / 16][kWarpN / 8][4] = {};

  for (int i = 0; i < kS - 1; ++i) {
    char* stage = shared + i * 2 * kBytes;
    if (i < steps) loader.load(stage, stage + kBytes, x);
    commit_copies();
  }
  for (int i = 0; i < steps; ++i) {
    wait_for_copies<kS - 2>();
    __syncthreads();
    if (i + kS - 1 < steps) {
      char* next = shared + (i + kS - 1) % kS * 2 * kBytes;
      loader.load(next, next + kBytes, x);
    }
    commit_copies();
    const char *a = shared + i % kS * 2 * kBytes, *b = a + kBytes;
#pragma unroll
    for (int chunk = 0; chunk < 4; chunk += 2) {
      uint32_t fa[kWarpM / 16][4], fb[kWarpN / 16][4];
#pragma unroll
      for (int m = 0; m < kWarpM / 16; ++m) {
        load_matrices(fa[m], a + chunk_offset(m0 + m * 16 + lane % 16, chunk + lane / 16));
        prepare_operand<T>(fa[m]);
      }
#pragma unroll
      for (int n = 0; n < kWarpN / 16; ++n) {
        load_matrices(
            fb[n], b + chunk_offset(n0 + n * 16 + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2));
        prepare_operand<T>(fb[n]);
      }
#pragma unroll
      for (int m = 0; m < kWarpM / 16; ++m)
#pragma unroll
        for (int n = 0; n < kWarpN / 8; ++n)
          multiply_add<T>(sum[m][n], fa[m], fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]);
    }
  }

  wait_for_copies<0>();
  __syncthreads();
  T* tile = reinterpret_cast<T*>(shared);
  // Lanes hold 8 rows x 4 pairs of columns. At these pitches they touch each bank once.
  static_assert(Tile * (Tile + 8) * sizeof(T) <= sizeof(shared));
  const int pitch = Tile + (s.nhwc ? 8 : kChunkElements<T>);
#pragma unroll
  for (int n = 0; n < kWarpN / 8; ++n) {
    const int column = n0 + n * 8 + lane % 4 * 2, k = column0 + column;
    float add[2];
#pragma unroll
    for (int e = 0; e < 2; ++e)
      add[e] = bias && k + e < s.written ? widen(bias[group * s.written + k + e]) : 0.f;
#pragma unroll
    for (int i = 0; i < kWarpM / 8; ++i) {
      const int row = m0 + i * 8 + lane / 4;
      Pair<T> two;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        two.v[e] = narrow<T>(activate(sum[i / 2][n][i % 2 * 2 + e] + add[e], s.activation));
      if (s.nhwc)
        *reinterpret_cast<Pair<T>*>(tile + row * pitch + column) = two;
      else
        tile[column * pitch + row] = two.v[0], tile[(column + 1) * pitch + row] = two.v[1];
    }
  }
  __syncthreads();
  y += group * s.written * s.output.c;
  if (s.output_in_chunks)
    store_tile<uint4, T, Tile>(s, tile, pitch, y, row0, column0);
  else
    store_tile<T, T, Tile>(s, tile, pitch, y, row0, column0);
#endif
}

Axis fprop_axis(int64_t P, int64_t R, int64_t H, int64_t stride, int64_t pad, int64_t dil) {
  return {int(P), int(R), int(stride), int(-pad), int(dil), int(H), 0, 1};
}

// The pixels h = h0 + i * stride of a phase, whose taps are every stride / gcd-th that lands on a
// pixel of the gradient. `h0` < stride.
Axis dgrad_axis(int64_t H, int64_t R, int64_t P, int64_t stride, int64_t pad, int64_t dil,
                int64_t h0) {
  Axis a{int(H > h0 ? (H - h0 - 1) / stride + 1 : 0), 0, 1, 0, 0, int(P), 0, 1};
  int64_t r = 0;
  while (r < R && r < stride && (h0 + pad - r * dil) % stride) ++r;
  if (r >= R || r >= stride) return a;
  int64_t every = 1;
  while (every * dil % stride) ++every;
  a.taps = int((R - r - 1) / every + 1);
  a.off = int((h0 + pad - r * dil) / stride);
  a.step = int(-(every * dil / stride));
  a.first = int(r), a.every = int(every);
  return a;
}

template <typename T, int Tile>
void launch_product(const Product& s, int64_t groups, bool async, const T* x, const T* w,
                    const T* bias, T* y, cudaStream_t stream) {
  if (s.rows == 0) return;
  const dim3 grid(unsigned(ceil_div(s.rows, Tile)), unsigned(s.padded_written / Tile),
                  unsigned(groups));
  const auto kernel = async ? conv2d_mma_kernel<T, Tile, true> : conv2d_mma_kernel<T, Tile, false>;
  kernel<<<grid, kThreads<Tile>, 0, stream>>>(s, x, w, bias, y);
}

template <typename T>
void launch(const ConvCall& call) {
  const ConvParams& p = call.p;
  const bool dgrad = call.pass == ConvPass::kDgrad;
  const MmaShape shape = mma_shape(call);
  const int tile = mma_tile(call);
  const T* x = static_cast<const T*>(dgrad ? call.grad : call.input);
  const Strides output =
      dgrad ? dense_strides(p.C, p.H, p.W, call.nhwc) : dense_strides(p.K, p.P, p.Q, call.nhwc);
  const int64_t read = shape.summed * p.groups, made = shape.written * p.groups;
  Product s{};
  s.summed = int(shape.summed), s.written = int(shape.written);
  s.padded_summed = int(ceil_div(s.summed, mma_step(call)) * mma_step(call));
  s.padded_written = int(ceil_div(s.written, tile) * tile);
  s.taps = int(p.R * p.S), s.S = int(p.S);
  s.source =
      dgrad ? dense_strides(p.K, p.P, p.Q, call.nhwc) : dense_strides(p.C, p.H, p.W, call.nhwc);
  s.mode = dgrad ? PaddingMode::kZeros : p.mode;
  s.activation = call.activation;
  s.nhwc = call.nhwc;
  const bool apart = dgrad && p.stride_h * p.stride_w != 1;  // the pixels of a phase
  s.output_in_chunks = call.nhwc ? in_chunks(call.output, made, s.written, call.dtype)
                                 : !apart && in_chunks(call.output, output.c, 0, call.dtype);
  const bool async = call.nhwc && in_chunks(x, read, s.summed, call.dtype);
  if (p.N == 0) return;

  T* w = static_cast<T*>(call.workspace);
  const Strides from = dense_strides(p.C / p.groups, p.R, p.S, call.weight_nhwc);
  // [group, written channel, tap, summed channel]
  pack_weight(static_cast<const T*>(call.weight), w,
              {s.summed, s.padded_summed, dgrad ? from.n : from.c},
              {s.written, s.padded_written, dgrad ? from.c : from.n}, s.taps, from.w, p.groups,
              p.K / p.groups * from.n, true, call.stream);

  const auto run = [&](int64_t images, int64_t base) {
    s.rows = images * s.h.extent * s.w.extent;
    T* y = static_cast<T*>(call.output) + base;
    const T* bias = static_cast<const T*>(call.bias);
    if constexpr (!std::is_same_v<T, float>)
      if (tile == 128)
        return launch_product<T, 128>(s, p.groups, async, x, w, bias, y, call.stream);
    launch_product<T, 64>(s, p.groups, async, x, w, bias, y, call.stream);
  };
  s.output = output;
  if (!dgrad) {
    s.h = fprop_axis(p.P, p.R, p.H, p.stride_h, p.pad_top, p.dil_h);
    s.w = fprop_axis(p.Q, p.S, p.W, p.stride_w, p.pad_left, p.dil_w);
    return run(p.N, 0);
  }
  s.output.h *= p.stride_h, s.output.w *= p.stride_w;
  for (int64_t h = 0; h < p.stride_h && h < p.H; ++h)
    for (int64_t v = 0; v < p.stride_w && v < p.W; ++v) {
      s.h = dgrad_axis(p.H, p.R, p.P, p.stride_h, p.pad_top, p.dil_h, h);
      s.w = dgrad_axis(p.W, p.S, p.Q, p.stride_w, p.pad_left, p.dil_w, v);
      run(p.N, h * output.h + v * output.w);
    }
}

}  // namespace

cudaError_t launch_conv2d_mma(const ConvCall& call) {
  if (call.pass == ConvPass::kWgrad) return launch_conv2d_mma_wgrad(call);
  switch (call.dtype) {
    case DType::kFloat16: launch<__half>(call); break;
    case DType::kBFloat16: launch<__nv_bfloat16>(call); break;
    default: launch<float>(call);
  }
  return cudaGetLastError();
}

}  // namespace cnnkern
