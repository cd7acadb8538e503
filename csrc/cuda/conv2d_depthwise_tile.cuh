// Moves a tile of a dense tensor into and out of shared memory, every sector once and whole: NHWC
// by 16 bytes of channels, NCHW by the 16-byte pieces of the runs that are contiguous, be that a
// row, a plane or all planes of the tile. In shared memory: [row][col][channel], or
// [channel][row][col] with a gap after each plane.
#pragma once
#include "common.cuh"

namespace cnnkern {

// Channels c0 .. c0 + valid of image n, rows from h0 and columns from w0, either of them negative
// where they begin in the padding.
struct TileBox {
  int64_t n;
  int c0, valid, channels;  // channels: of the tile, the pitch of a pixel in NHWC
  int h0, rows, w0, cols;
  int plane;  // NCHW: elements from one channel to the next in shared memory
};

struct TilePlane {
  int C, H, W;
  PaddingMode mode;
};

template <typename T>
union Piece {
  static constexpr int kCount = 16 / sizeof(T);
  uint4 bits;
  T values[kCount];
  __device__ Piece() {}
};

template <typename T>
__device__ __forceinline__ void copy_piece(T* to, const T* from, bool inside) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
#else
  *reinterpret_cast<uint4*>(to) =
      inside ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void wait_for_pieces() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
  __syncthreads();
}

__device__ __forceinline__ int map_index(int i, int size, PaddingMode mode) {
  return i >= 0 && i < size            ? i
         : mode == PaddingMode::kZeros ? -1
                                       : int(padded_index(i, size, mode));
}

// box.channels is a power of two that divides the block's threads, so a thread keeps its channels
// and walks over pixels without dividing.
template <typename T>
__device__ void load_tile_nhwc(const T* x, const TilePlane& s, const TileBox& b, T* tile) {
  constexpr int kCount = Piece<T>::kCount;
  const bool pieces = s.C % kCount == 0 && b.c0 % kCount == 0 && b.channels % kCount == 0 &&
                      reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const int width = pieces ? kCount : 1, lanes = b.channels / width;
  const int c = int(threadIdx.x) % lanes * width, step = int(blockDim.x) / lanes;
  const int step_rows = step / b.cols, step_cols = step % b.cols;
  int row = int(threadIdx.x) / lanes / b.cols, col = int(threadIdx.x) / lanes % b.cols;
  const T* image = x + b.n * s.H * s.W * s.C + b.c0 + c;
  for (int i = threadIdx.x; i < b.rows * b.cols * lanes; i += blockDim.x) {
    const int h = map_index(b.h0 + row, s.H, s.mode), w = map_index(b.w0 + col, s.W, s.mode);
    const bool inside = h >= 0 && w >= 0 && c < b.valid;
    const T* from = inside ? image + (int64_t(h) * s.W + w) * s.C : x;
    if (pieces)
      copy_piece(tile + i * width, from, inside);
    else
      tile[i] = inside ? *from : narrow<T>(0);
    row += step_rows, col += step_cols;
    if (col >= b.cols) col -= b.cols, ++row;
  }
}

// The part of a box that lies inside an NCHW plane, cut into runs of contiguous elements.
struct Runs {
  int top, left, rows, cols;  // inside the box
  int count, length;          // runs, elements of each
  int plane;                  // elements of a channel inside the box
  int64_t first;              // element of the tensor
};

// across: whole planes are one run together.
__device__ __forceinline__ Runs runs_of(const TilePlane& s, const TileBox& b, bool across) {
  Runs r;
  r.top = max(0, -b.h0), r.left = max(0, -b.w0);
  r.rows = max(0, min(b.rows, s.H - b.h0) - r.top);
  r.cols = max(0, min(b.cols, s.W - b.w0) - r.left);
  r.plane = r.rows * r.cols;
  r.first = ((b.n * s.C + b.c0) * s.H + b.h0 + r.top) * s.W + b.w0 + r.left;
  if (r.plane == 0)
    r.count = r.length = 0;
  else if (r.cols < s.W)
    r.count = b.valid * r.rows, r.length = r.cols;
  else if (r.rows < s.H || !across)
    r.count = b.valid, r.length = r.plane;
  else
    r.count = 1, r.length = b.valid * r.plane;
  return r;
}

// Calls whole(address of 16 aligned bytes, their run, their first element there) and, at the ends
// of runs, single(address, run, element). Two pieces are a sector, which no two warps share: a run
// begins with the sector of its first element and takes an even number of pieces.
template <typename T, typename Whole, typename Single>
__device__ void walk_runs(T* tensor, const TilePlane& s, const Runs& r, const Whole& whole,
                          const Single& single) {
  constexpr int kCount = Piece<T>::kCount, kSector = 2 * kCount;
  if (r.count == 0) return;
  const int pieces = 2 * ((r.length + kSector - 2) / kSector + 1);
  const int step_runs = int(blockDim.x) / pieces, step_pieces = int(blockDim.x) % pieces;
  int run = int(threadIdx.x) / pieces, piece = int(threadIdx.x) % pieces;
  while (run < r.count) {
    const int row = r.count == 1 ? 0 : r.length == r.plane ? run * r.rows : run;
    const int64_t channel = row / r.rows;
    T* start = tensor + r.first + (channel * s.H + row % r.rows) * s.W;
    const int from = piece * kCount - int(reinterpret_cast<uintptr_t>(start) % 32 / sizeof(T));
    if (from >= 0 && from + kCount <= r.length)
      whole(start + from, run, from);
    else
      for (int e = max(from, 0); e < min(from + kCount, r.length); ++e) single(start + e, run, e);
    run += step_runs, piece += step_pieces;
    if (piece >= pieces) piece -= pieces, ++run;
  }
}

// Where in the tile an element of the runs lies, and those after it: from the `left`-th on, which
// is of the next row, they lie `gap` further.
struct TilePlace {
  int at, left, gap;

  __device__ TilePlace(const TileBox& b, const Runs& r, int element) {
    const int channel = element / r.plane, inside = element % r.plane;
    const int row = inside / r.cols, col = inside % r.cols;
    at = channel * b.plane + (r.top + row) * b.cols + r.left + col;
    left = r.cols - col;
    gap = b.cols - r.cols + (row + 1 < r.rows ? 0 : b.plane - r.rows * b.cols);
  }
  __device__ __forceinline__ int operator()(int i) const { return at + i + (i < left ? 0 : gap); }
};

// At a time every thread scatters one element of its 16 bytes. Which one it is turns by a word
// every 8 lanes, whose pieces cover all banks, so that no two lanes want the same.
template <typename T>
__device__ void scatter_piece(const T* from, const TilePlace& place, T* tile) {
  constexpr int kCount = Piece<T>::kCount, kWord = kCount < 4 ? 1 : kCount / 4;
  Piece<T> piece;
  piece.bits = __ldg(reinterpret_cast<const uint4*>(from));
  int turn = 0;
  if constexpr (kCount >= 4) {
    turn = threadIdx.x / 8 % 4;
    uint4& b = piece.bits;
    if (turn & 1) b = make_uint4(b.y, b.z, b.w, b.x);
    if (turn & 2) b = make_uint4(b.z, b.w, b.x, b.y);
  }
#pragma unroll
  for (int j = 0; j < kCount; j += kWord) {
    const int first = (j + turn * kWord) % kCount;
#pragma unroll
    for (int i = 0; i < kWord; ++i) tile[place(first + i)] = piece.values[j + i];
  }
}

template <typename T>
__device__ void load_tile_nchw(const T* x, const TilePlane& s, const TileBox& b, T* tile) {
  if (s.mode != PaddingMode::kZeros) {
    for (int i = threadIdx.x; i < b.channels * b.rows * b.cols; i += blockDim.x) {
      const int col = i % b.cols, row = i / b.cols % b.rows, c = i / b.cols / b.rows;
      const int h = map_index(b.h0 + row, s.H, s.mode), w = map_index(b.w0 + col, s.W, s.mode);
      tile[c * b.plane + row * b.cols + col] =
          h < 0 || w < 0 || c >= b.valid ? narrow<T>(0)
                                         : x[((b.n * s.C + b.c0 + c) * s.H + h) * s.W + w];
    }
    return;
  }
  const Runs r = runs_of(s, b, true);
  if (r.plane < b.rows * b.cols || b.valid < b.channels) {
    const int pieces = (b.channels * b.plane + Piece<T>::kCount - 1) / Piece<T>::kCount;
    for (int i = threadIdx.x; i < pieces; i += blockDim.x)
      reinterpret_cast<uint4*>(tile)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
  }
  const auto single = [&](const T* from, int run, int e) {
    tile[TilePlace(b, r, run * r.length + e).at] = *from;
  };
  walk_runs(
      x, s, r,
      [&](const T* from, int run, int e) {
        constexpr int kCount = Piece<T>::kCount;
        if (r.cols + 1 >= kCount)  // then at most one row ends in 16 bytes
          return scatter_piece(from, TilePlace(b, r, run * r.length + e), tile);
        for (int j = 0; j < kCount; ++j) single(from + j, run, e + j);
      },
      single);
}

// Elements that a tile of what is stored begins after 16 aligned bytes in shared memory, so that
// 16 aligned bytes there are 16 aligned bytes of the tensor: b.plane is chosen for it.
template <typename T>
__device__ int store_skew(const T* y, const TilePlane& s, const TileBox& b) {
  return int(reinterpret_cast<uintptr_t>(y + runs_of(s, b, false).first) % 16 / sizeof(T));
}

// All columns of the plane.
template <typename T>
__device__ void store_tile_nchw(T* y, const TilePlane& s, const TileBox& b, const T* tile) {
  const Runs r = runs_of(s, b, b.plane == s.H * s.W);
  walk_runs(
      y, s, r,
      [&](T* to, int run, int e) {
        // An assignment would be taken apart into one store an element, each of partial sectors.
        __stwb(reinterpret_cast<uint4*>(to),
               *reinterpret_cast<const uint4*>(tile + run * b.plane + e));
      },
      [&](T* to, int run, int e) { *to = tile[run * b.plane + e]; });
}

// Ends with a barrier.
template <typename T>
__device__ void load_tile(const T* x, bool nhwc, const TilePlane& s, const TileBox& b, T* tile) {
  if (nhwc)
    load_tile_nhwc(x, s, b, tile);
  else
    load_tile_nchw(x, s, b, tile);
  wait_for_pieces();
}

}  // namespace cnnkern
