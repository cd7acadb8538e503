// Moves by saved position, which may be any. A scatter is done by blocks that own a piece of the
// plane in shared memory and look through all positions of it, so that each element is written to
// memory once. Where positions repeat, the last window overwrites, or all are added in the order of
// the windows: the result is that of a loop over the windows, on every run.
#include <climits>

#include "common.cuh"
#include "pool2d.h"

namespace cnnkern {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 32;  // of an NHWC image, a whole sector of every type

// A piece: positions [begin, begin + count) of the channels [c, c + width) of an image.
struct Pieces {
  int64_t images, C, plane, pooled, positions, position_pieces, channel_pieces, count;
};
struct Piece {
  int64_t image, c, begin;
  int width, count;
};

Pieces cut(const IndexCall& call, int capacity) {
  const int64_t width = call.C < kChannels ? call.C : kChannels;
  const int64_t positions = capacity / width;
  const int64_t position_pieces = ceil_div(call.plane, positions),
                channel_pieces = ceil_div(call.C, width);
  return {
      call.images, call.C,          call.plane,     call.pooled,
      positions,   position_pieces, channel_pieces, call.images * position_pieces * channel_pieces};
}

__device__ __forceinline__ Piece piece_at(const Pieces& s, int64_t i) {
  const int64_t width = s.C < kChannels ? s.C : kChannels;
  Piece piece;
  piece.c = i % s.channel_pieces * width, i /= s.channel_pieces;
  piece.begin = i % s.position_pieces * s.positions;
  piece.image = i / s.position_pieces;
  piece.width = int(min(width, s.C - piece.c));
  piece.count = int(min(s.positions, s.plane - piece.begin));
  return piece;
}

constexpr int kLastCapacity = 8192;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_last_kernel(Pieces s, const T* from, const int64_t* at, T* to) {
  __shared__ int last[kLastCapacity];
  for (int64_t i = blockIdx.x; i < s.count; i += gridDim.x) {
    const Piece piece = piece_at(s, i);
    const uint32_t width = piece.width;
    const int64_t windows = piece.image * s.pooled * s.C + piece.c;
    for (int j = threadIdx.x; j < piece.count * piece.width; j += kThreads) last[j] = -1;
    __syncthreads();
    const int64_t items = s.pooled * piece.width;
    for (int64_t j = threadIdx.x; j < items; j += kThreads) {
      const int64_t window = s.C == 1 ? j : j / width, c = s.C == 1 ? 0 : j % width;
      const int64_t place = at[windows + window * s.C + c] - piece.begin;
      if (place >= 0 && place < piece.count) atomicMax(&last[place * width + c], int(window));
    }
    __syncthreads();
    for (int j = threadIdx.x; j < piece.count * piece.width; j += kThreads) {
      const int place = j / width, c = j % width, window = last[j];
      to[(piece.image * s.plane + piece.begin + place) * s.C + piece.c + c] =
          window < 0 ? narrow<T>(0) : from[windows + window * s.C + c];
    }
    __syncthreads();  // the next piece overwrites this one
  }
}

template <typename A>
constexpr int kAddCapacity = sizeof(A) == 8 ? 2048 : 4096;

// Of the threads that add to one element at a time the lowest goes first.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_add_kernel(Pieces s, const T* from, const int64_t* at, T* to) {
  typedef AccOf<T> A;
  __shared__ A sum[kAddCapacity<A>];
  __shared__ int turn[kAddCapacity<A>];
  for (int64_t i = blockIdx.x; i < s.count; i += gridDim.x) {
    const Piece piece = piece_at(s, i);
    const uint32_t width = piece.width;
    const int64_t windows = piece.image * s.pooled * s.C + piece.c;
    for (int j = threadIdx.x; j < piece.count * piece.width; j += kThreads)
      sum[j] = 0, turn[j] = INT_MAX;
    __syncthreads();
    const int64_t items = s.pooled * piece.width;
    for (int64_t base = 0; base < items; base += kThreads) {
      const int64_t j = base + threadIdx.x;
      int mine = -1;
      A value = 0;
      if (j < items) {
        const int64_t window = s.C == 1 ? j : j / width, c = s.C == 1 ? 0 : j % width;
        const int64_t source = windows + window * s.C + c, place = at[source] - piece.begin;
        if (place >= 0 && place < piece.count) {
          mine = int(place * width + c);
          value = widen(from[source]);
        }
      }
      while (__syncthreads_or(mine >= 0)) {
        if (mine >= 0) atomicMin(&turn[mine], int(threadIdx.x));
        __syncthreads();
        const bool first = mine >= 0 && turn[mine] == int(threadIdx.x);
        __syncthreads();
        if (first) {
          sum[mine] += value;
          turn[mine] = INT_MAX;
          mine = -1;
        }
      }
    }
    for (int j = threadIdx.x; j < piece.count * piece.width; j += kThreads) {
      const int place = j / width, c = j % width;
      to[(piece.image * s.plane + piece.begin + place) * s.C + piece.c + c] = narrow<T>(sum[j]);
    }
    __syncthreads();  // the next piece overwrites this one
  }
}

// Where tap `offset` of window i lies in the plane; -1: outside.
__device__ __forceinline__ int64_t position(const PoolParams& p, int64_t i, uint8_t offset) {
  const uint32_t S = uint32_t(p.S), Q = uint32_t(p.Q), window = uint32_t(i);
  const int64_t r = offset / S, s = offset % S;
  const int64_t h = window / Q * p.stride_h - p.pad_h + r * p.dil_h;
  const int64_t w = window % Q * p.stride_w - p.pad_w + s * p.dil_w;
  const bool inside = r < p.R && h >= 0 && h < p.H && w >= 0 && w < p.W;
  return inside ? h * p.W + w : -1;
}

template <typename T, typename I>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(PoolParams p, int64_t images, int64_t plane, int64_t pooled, uint32_t C,
                  const T* from, const I* at, T* to) {
  const int64_t items = pooled * C, step = int64_t(gridDim.x) * kThreads;
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first_window = first / C, window_step = step / C;  // the only divisions
  const uint32_t first_c = uint32_t(first % C), c_step = uint32_t(step % C);
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    int64_t window = first_window;
    uint32_t c = first_c;
    for (int64_t j = first; j < items; j += step) {
      const I code = at[image * items + j];
      int64_t place;
      if constexpr (sizeof(I) == 1)
        place = position(p, window, code);
      else
        place = code;
      to[image * items + j] =
          place >= 0 && place < plane ? from[(image * plane + place) * C + c] : narrow<T>(0);
      window += window_step, c += c_step;
      if (c >= C) c -= C, ++window;
    }
  }
}

template <typename T>
void launch_move(const IndexCall& call) {
  const T* from = static_cast<const T*>(call.from);
  T* to = static_cast<T*>(call.to);
  const auto* at = static_cast<const int64_t*>(call.at);
  if (call.move == IndexMove::kGather) {
    const int64_t items = call.pooled * call.C;
    const dim3 grid(grid_for(items, kThreads), unsigned(call.images < 65535 ? call.images : 65535));
    if (items == 0) return;
    if (call.saved == PoolSaved::kOffsets)
      gather_kernel<T, uint8_t><<<grid, kThreads, 0, call.stream>>>(
          call.p, call.images, call.plane, call.pooled, uint32_t(call.C), from,
          static_cast<const uint8_t*>(call.at), to);
    else
      gather_kernel<T, int64_t><<<grid, kThreads, 0, call.stream>>>(
          call.p, call.images, call.plane, call.pooled, uint32_t(call.C), from, at, to);
    return;
  }
  const bool add = call.move == IndexMove::kScatterAdd;
  const Pieces pieces = cut(call, add ? kAddCapacity<AccOf<T>> : kLastCapacity);
  if (pieces.count == 0) return;
  const auto kernel = add ? scatter_add_kernel<T> : scatter_last_kernel<T>;
  kernel<<<grid_for(pieces.count, 1), kThreads, 0, call.stream>>>(pieces, from, at, to);
}

}  // namespace

cudaError_t launch_move_by_index(const IndexCall& call) {
  if (call.images == 0 || call.C == 0) return cudaSuccess;
  with_device_type(call.dtype, [&](auto type) { launch_move<decltype(type)>(call); });
  return cudaGetLastError();
}

}  // namespace cnnkern
