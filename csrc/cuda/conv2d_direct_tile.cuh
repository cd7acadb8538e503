// How planes get into the shared memory of the direct convolutions, and out of it: widened, zeros
// outside, one order for both layouts.
#pragma once
#include "common.cuh"

namespace cnnkern {

// A tile [channels][rows][pitch] of one image; `plane` elements from channel to channel. Channels
// from `valid` on are zeros. `x` points at the image's first channel of the tile.
struct PlaneTile {
  int channels, valid, rows, pitch, plane;
  int row0, column0;
};

template <typename T>
__device__ __forceinline__ void stage_planes(const T* x, const Strides& at, const IndexMap& rows,
                                             const IndexMap& columns, const PlaneTile& t,
                                             AccOf<T>* tile) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const auto value = [&](int c, int row, int column) {
    const bool inside = c < t.valid && rows.inside(row) && columns.inside(column);
    return inside ? widen(x[c * at.c + row * at.h + column * at.w]) : AccOf<T>(0);
  };
  if (at.c == 1) {  // a warp takes a row of pixels
    for (int r = warp; r < t.rows; r += warps) {
      const int row = rows(t.row0 + r);
      for (int i = lane; i < t.pitch * t.channels; i += 32) {
        const int c = i % t.channels, column = i / t.channels;
        tile[c * t.plane + r * t.pitch + column] = value(c, row, columns(t.column0 + column));
      }
    }
    return;
  }
  for (int line = warp; line < t.channels * t.rows; line += warps) {
    const int c = line / t.rows, r = line % t.rows, row = rows(t.row0 + r);
    for (int column = lane; column < t.pitch; column += 32)
      tile[c * t.plane + r * t.pitch + column] = value(c, row, columns(t.column0 + column));
  }
}

// kCount neighbours (and what fills up 16 bytes) from an address that is a multiple of 16.
template <int kCount, typename A>
__device__ __forceinline__ void load_run(const A* from, A (&to)[(kCount + 3) / 4 * 4]) {
  struct alignas(16) Piece {
    A v[16 / sizeof(A)];
  };
  constexpr int kPiece = 16 / sizeof(A);
#pragma unroll
  for (int i = 0; i < kCount; i += kPiece) {
    const Piece piece = *reinterpret_cast<const Piece*>(from + i);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) to[i + j] = piece.v[j];
  }
}

// Calls body with the kernel's width and stride as constants.
template <typename F>
void with_window(int64_t S, int64_t stride, const F& body) {
  const auto with_width = [&](auto step) {
    switch (S) {
      case 1: return body(std::integral_constant<int, 1>{}, step);
      case 3: return body(std::integral_constant<int, 3>{}, step);
      case 5: return body(std::integral_constant<int, 5>{}, step);
      default: return body(std::integral_constant<int, 7>{}, step);
    }
  };
  if (stride == 1) return with_width(std::integral_constant<int, 1>{});
  return with_width(std::integral_constant<int, 2>{});
}

}  // namespace cnnkern
