// fprop and dgrad of 3x3 kernels by Winograd's minimal filtering F(2x2, 3x3), in one pass over the
// image (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015):
//
//     y = A^T [sum over channels (G g G^T) * (B^T d B)] A     d: 4x4 inputs, g: 3x3, y: 2x2
//
// The kernels are transformed first, into the workspace. A block transforms its patches d on the
// way into shared memory; there the sums are 16 matrix products, one for each of the 4x4 points,
// two a warp and 8 x 8 sums of each a thread; then it transforms back, a quarter of its tile at a
// time, through the same memory. Neither transform is ever written to global memory.
#include <utility>

#include "async_copy.cuh"
#include "common.cuh"
#include "conv2d_winograd.h"

namespace cnnkern {
namespace {

constexpr int kThreads = 256, kPoints = 16;
constexpr int kChannels = kWinogradChannels, kPatches = kWinogradPatches, kSlice = kWinogradSlice;
constexpr int kWeights = kPoints * kSlice * kChannels;  // floats of a stage: [point][c][k]
constexpr int kInputs = kPoints * kSlice * kPatches;    // [point][c][patch], swizzled
constexpr int kShared = 2 * (kWeights + kInputs);       // 48 KiB, as much as any device has
constexpr int kPitch = 36;  // of a row of 32 patches on the way back: 16-byte stores spread out

struct WinogradShape {
  Strides from, to;
  int C, K;  // summed over, computed
  int slices;
  int source_h, source_w, h, w, pad_top, pad_left;
  int64_t patches;
  bool pair_store;  // two neighbours of a row are one aligned access
  Activation activation;
};

struct Patch {
  int64_t n;
  int row, column;  // of its first result; row -1: there is no such patch
};
__device__ Patch patch_at(const WinogradShape& s, int64_t i) {
  if (i >= s.patches) return {0, -1, 0};
  const int across = (s.w + 1) / 2, down = (s.h + 1) / 2;
  return {i / across / down, int(i / across % down) * 2, int(i % across) * 2};
}

// A slot of patch t in a row of 32: those of 4 channels lie in different banks for 8 patches each.
__device__ __forceinline__ int swizzled(int t, int c) { return t ^ c * 8; }

// Loads the 4x4 inputs of a patch in one channel and transforms them. Two threads share a patch:
// each takes two of the four columns of B^T d B, for which it needs three of d.
//     e = columns 0 1 2:  e0 - e2 (0), e1 + e2 (1);  e = columns 1 2 3:  e1 - e0 (2), e0 - e2 (3)
template <bool kNhwc>
class PatchLoader {
 public:
  __device__ PatchLoader(const WinogradShape& s, const float* x, int thread) {
    const int lane = thread % 32, warp = thread / 32 % 4;
    right_ = thread / 128;
    // Neighbours in memory to neighbouring lanes.
    const int c = kNhwc ? lane % kSlice : warp;
    const int t = kNhwc ? warp * 8 + lane / kSlice : lane;
    const Patch at = patch_at(s, int64_t(blockIdx.x) * kPatches + t);
    const int row = at.row - s.pad_top, column = at.column - s.pad_left + right_;
    inside_ = 0;
    for (int r = 0; r < 4; ++r)
      for (int q = 0; q < 3; ++q)
        if (at.row >= 0 && unsigned(row + r) < unsigned(s.source_h) &&
            unsigned(column + q) < unsigned(s.source_w))
          inside_ |= 1u << (3 * r + q);
    row_pitch_ = unsigned(s.from.h), column_pitch_ = unsigned(s.from.w);
    from_ = x + s.from.at(at.n, c, row, column);  // read only where inside
    step_ = kSlice * s.from.c;
    left_ = s.C - c;
    const int slot = c * kPatches + swizzled(t, c);
    outer_ = (right_ ? 3 : 0) * kSlice * kPatches + slot;
    inner_ = (right_ ? 2 : 1) * kSlice * kPatches + slot;
  }

  __device__ __forceinline__ void fetch() {
    const unsigned inside = left_ > 0 ? inside_ : 0u;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float* row = advance(from_, row_pitch_, r);
#pragma unroll
      for (int q = 0; q < 3; ++q)
        if (inside & 1u << (3 * r + q))
          d_[r][q] = __ldg(kNhwc ? advance(row, column_pitch_, q) : row + q);
    }
    from_ += step_, left_ -= kSlice;
  }

  __device__ __forceinline__ void put(float* inputs) const {
    float outer[4], inner[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      outer[r] = d_[r][0] - d_[r][2];
      inner[r] = d_[r][1] + (right_ ? -d_[r][0] : d_[r][2]);
    }
    put_column(inputs + outer_, outer);
    put_column(inputs + inner_, inner);
  }

 private:
  // from + times * pitch in one instruction, where the compiler would make two of shifts and adds.
  __device__ __forceinline__ static const float* advance(const float* from, unsigned pitch,
                                                         int times) {
    if (times == 0) return from;
    const float* to;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(to) : "r"(pitch), "r"(4 * times), "l"(from));
    return to;
  }
  __device__ __forceinline__ static void put_column(float* to, const float (&e)[4]) {
    constexpr int kRow = 4 * kSlice * kPatches;
    to[0] = e[0] - e[2];
    to[kRow] = e[1] + e[2];
    to[2 * kRow] = e[2] - e[1];
    to[3 * kRow] = e[1] - e[3];
  }

  const float* from_;
  int64_t step_;
  unsigned inside_;  // bit 3r + q
  unsigned row_pitch_, column_pitch_;
  int left_, right_, outer_, inner_;
  // Stays zero where outside. Past the last channel it keeps an earlier one, which is multiplied by
  // the zeros that fill up the weight.
  float d_[4][3] = {};
};

// sum[point][i][j] of a warp's two points. Lane: channels lane%8 * 4 + {0..3} and 32 further on,
// patches lane/8 * 4 + {0..3} and 16 further on.
typedef float Sums[2][8][8];

__device__ __forceinline__ void multiply_slice(const float* weights, const float* inputs, int lane,
                                               Sums& sum) {
  weights += lane % 8 * 4;
  const float* even = inputs + lane / 8 * 4;
  const float* odd = inputs + (lane / 8 * 4 ^ 8);
#pragma unroll
  for (int c = 0; c < kSlice; ++c)
#pragma unroll
    for (int point = 0; point < 2; ++point) {
      float a[8], b[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = point * kSlice + c;
        *reinterpret_cast<float4*>(a + 4 * half) =
            *reinterpret_cast<const float4*>(weights + row * kChannels + 32 * half);
        // swizzled(), of which only the part that the lane has to do with is left to compute.
        *reinterpret_cast<float4*>(b + 4 * half) = *reinterpret_cast<const float4*>(
            (c % 2 ? odd : even) + row * kPatches + (16 * half ^ c / 2 * 16));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[point][i][j] = fmaf(a[i], b[j], sum[point][i][j]);
    }
}

// A^T m A of the 16 points that lie `pitch` apart, plus the bias, activated.
__device__ __forceinline__ void transform_back(float* m, int pitch, float bias,
                                               Activation activation, float (&y)[4]) {
  float top[4], bottom[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float m1 = m[(4 + q) * pitch], m2 = m[(8 + q) * pitch];
    top[q] = m[q * pitch] + m1 + m2;
    bottom[q] = m1 - m2 - m[(12 + q) * pitch];
  }
  y[0] = top[0] + top[1] + top[2] + bias;
  y[1] = top[1] - top[2] - top[3] + bias;
  y[2] = bottom[0] + bottom[1] + bottom[2] + bias;
  y[3] = bottom[1] - bottom[2] - bottom[3] + bias;
  if (activation == Activation::kNone) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) m[i * pitch] = y[i];  // no other thread reads these
#pragma unroll 1
  for (int i = 0; i < 4; ++i) m[i * pitch] = activate(m[i * pitch], activation);
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = m[i * pitch];
}

__device__ __forceinline__ void store(const WinogradShape& s, const Patch& at, int k,
                                      const float (&y)[4], float* to) {
  if (at.row < 0) return;
  to += s.to.at(at.n, k, at.row, at.column);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (at.row + r >= s.h) break;
    if (s.pair_store) {
      *reinterpret_cast<float2*>(to + r * s.to.h) = make_float2(y[2 * r], y[2 * r + 1]);
    } else {
      to[r * s.to.h] = y[2 * r];
      if (at.column + 1 < s.w) to[r * s.to.h + s.to.w] = y[2 * r + 1];
    }
  }
}

// Four rounds, each of which gathers all 16 points of a quarter of the tile: of 16 channels in NCHW
// and of 8 patches in NHWC, so that lanes run along the memory.
template <bool kNhwc>
__device__ __forceinline__ void write_tile(const WinogradShape& s, const Sums& sum, int thread,
                                           const float* bias, float* shared, float* y) {
  const int lane = thread % 32, warp = thread / 32, k0 = blockIdx.y * kChannels;
  constexpr int kPlane = kNhwc ? 8 * kChannels : 16 * kPitch;
  Patch* patches = reinterpret_cast<Patch*>(shared + kPoints * kPlane);
  if (thread < kPatches) patches[thread] = patch_at(s, int64_t(blockIdx.x) * kPatches + thread);
#pragma unroll
  for (int round = 0; round < 4; ++round) {
#pragma unroll
    for (int point = 0; point < 2; ++point)
#pragma unroll
      for (int e = 0; e < 2; ++e)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int fixed = 2 * round + e;
          float four[4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            four[i] = kNhwc ? sum[point][4 * half + i][fixed] : sum[point][fixed][4 * half + i];
          float* to = shared + (2 * warp + point) * kPlane +
                      (kNhwc ? (e * 4 + lane / 8) * kChannels + lane % 8 * 4 + 32 * half
                             : (e * 8 + lane % 8) * kPitch + lane / 8 * 4 + 16 * half);
          *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(four);
        }
    __syncthreads();
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      // Where sum[point][fixed] (NCHW) or sum[point][...][fixed] (NHWC) lies, as above.
      const int fixed = 2 * (round % 2) + (kNhwc ? warp / 4 : part);
      const int t = kNhwc ? warp % 4 * 4 + fixed + 16 * (round / 2) : lane;
      const int k = k0 + (kNhwc ? part * 32 + lane : warp * 4 + fixed + 32 * (round / 2));
      if (k >= s.K) continue;
      float result[4];
      float* m =
          shared + (kNhwc ? warp * kChannels + part * 32 : (part * 8 + warp) * kPitch) + lane;
      transform_back(m, kPlane, bias ? bias[k] : 0.f, s.activation, result);
      store(s, patches[t], k, result, y);
    }
    __syncthreads();
  }
}

template <bool kNhwc>
__global__ __launch_bounds__(kThreads, 1) void conv2d_winograd_kernel(WinogradShape s,
                                                                      const float* x,
                                                                      const float* weight,
                                                                      const float* bias, float* y) {
  __shared__ __align__(16) float shared[kShared];
  float *weights = shared, *inputs = shared + 2 * kWeights;
  const int thread = threadIdx.x, warp = thread / 32;
  PatchLoader<kNhwc> patch(s, x, thread);
  weight += int64_t(blockIdx.y) * s.slices * kWeights + thread * 4;
  const auto copy_weights = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kWeights; i += 4 * kThreads)
      copy16_async(weights + stage * kWeights + thread * 4 + i, weight + i);
    weight += kWeights;
  };

  Sums sum = {};
  copy_weights(0);
  patch.fetch();
  patch.put(inputs);
  wait_for_copies16();
  __syncthreads();
  int stage = 0;
#pragma unroll 1
  for (int left = s.slices; left; --left, stage ^= 1) {
    const bool more = left > 1;
    if (more) {
      copy_weights(stage ^ 1);
      patch.fetch();
    }
    multiply_slice(weights + stage * kWeights + 2 * warp * kSlice * kChannels,
                   inputs + stage * kInputs + 2 * warp * kSlice * kPatches, thread % 32, sum);
    if (more) patch.put(inputs + (stage ^ 1) * kInputs);
    wait_for_copies16();
    __syncthreads();
  }
  write_tile<kNhwc>(s, sum, thread, bias, shared, y);
}

// G g G^T of every kernel, as [64 channels][slice][point][c][k], zeros beyond C and K.
__global__ void transform_weight_kernel(const float* weight, Strides order, bool rotated, int C,
                                        int K, int slices, float* to, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int in_k = int(i % kChannels), in_c = int(i / kChannels % kSlice);
    const int64_t block = i / kChannels / kSlice;
    const int64_t k = block / slices * kChannels + in_k, c = block % slices * kSlice + in_c;
    float g[3][3], rows[4][3];
    for (int r = 0; r < 3; ++r)
      for (int q = 0; q < 3; ++q)
        g[r][q] =
            k < K && c < C ? weight[order.at(k, c, rotated ? 2 - r : r, rotated ? 2 - q : q)] : 0.f;
    for (int q = 0; q < 3; ++q) {
      const float ends = 0.5f * (g[0][q] + g[2][q]), middle = 0.5f * g[1][q];
      rows[0][q] = g[0][q], rows[1][q] = ends + middle;
      rows[2][q] = ends - middle, rows[3][q] = g[2][q];
    }
    float* u = to + block * kWeights + in_c * kChannels + in_k;
    constexpr int kPoint = kSlice * kChannels;
    for (int r = 0; r < 4; ++r) {
      const float ends = 0.5f * (rows[r][0] + rows[r][2]), middle = 0.5f * rows[r][1];
      u[(4 * r + 0) * kPoint] = rows[r][0], u[(4 * r + 1) * kPoint] = ends + middle;
      u[(4 * r + 2) * kPoint] = ends - middle, u[(4 * r + 3) * kPoint] = rows[r][2];
    }
  }
}

}  // namespace

cudaError_t launch_conv2d_winograd(const ConvCall& call) {
  const ConvParams& p = call.p;
  const WinogradProblem w = winograd_problem(call);
  if (!w.patches) return cudaSuccess;
  const bool is_dgrad = call.pass == ConvPass::kDgrad;
  WinogradShape s{};
  s.from = dense_strides(w.summed, w.source_h, w.source_w, call.nhwc);
  s.to = dense_strides(w.computed, w.h, w.w, call.nhwc);
  s.C = int(w.summed), s.K = int(w.computed);
  s.slices = int(ceil_div(w.summed, kSlice));
  s.source_h = int(w.source_h), s.source_w = int(w.source_w), s.h = int(w.h), s.w = int(w.w);
  s.pad_top = int(w.pad_top), s.pad_left = int(w.pad_left);
  s.patches = w.patches;
  s.pair_store = !call.nhwc && w.w % 2 == 0 && reinterpret_cast<uintptr_t>(call.output) % 8 == 0;
  s.activation = call.activation;

  float* transformed = static_cast<float*>(call.workspace);
  Strides order = dense_strides(p.C, 3, 3, call.weight_nhwc);
  if (is_dgrad) std::swap(order.n, order.c);
  const int64_t tiles = ceil_div(w.computed, kChannels);
  const int64_t count = tiles * kChannels * s.slices * kSlice;
  transform_weight_kernel<<<grid_for(count, 128), 128, 0, call.stream>>>(
      static_cast<const float*>(call.weight), order, is_dgrad, s.C, s.K, s.slices, transformed,
      count);

  const dim3 grid(unsigned(ceil_div(w.patches, kPatches)), unsigned(tiles));
  const auto kernel = call.nhwc ? conv2d_winograd_kernel<true> : conv2d_winograd_kernel<false>;
  kernel<<<grid, kThreads, 0, call.stream>>>(
      s, static_cast<const float*>(is_dgrad ? call.grad : call.input), transformed,
      static_cast<const float*>(call.bias), static_cast<float*>(call.output));
  return cudaGetLastError();
}

}  // namespace cnnkern
