// The geometry of a depthwise or grouped pass as its kernels see it, and which part
// a block computes.
#pragma once
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_tile.cuh"

namespace cnnkern {

struct DepthwiseShape {
  TilePlane src, out;  // what is read with a halo; what has a tile a block
  int R, S, stride_h, stride_w, dil_h, dil_w;
  int top, left;                 // padding
  int depth;                     // input channels of a group
  int multiplier;                // output channels of a group
  int src_each, out_each;        // one of the two, the other
  bool nhwc, weight_nhwc, flip;  // flip: the weights run backwards
  Activation activation;
  DepthwiseTile tile;
  int tiles_h, tiles_w, chunks;
};

inline DepthwiseShape depthwise_shape(const ConvCall& call) {
  const ConvParams& p = call.p;
  const bool dgrad = call.pass == ConvPass::kDgrad;
  const int depth = int(p.C / p.groups), M = int(p.K / p.groups);
  const TilePlane x{int(p.C), int(p.H), int(p.W), p.mode};
  const TilePlane y{int(p.K), int(p.P), int(p.Q), PaddingMode::kZeros};
  DepthwiseShape s{dgrad ? y : x,
                   dgrad ? x : y,
                   int(p.R),
                   int(p.S),
                   int(p.stride_h),
                   int(p.stride_w),
                   int(p.dil_h),
                   int(p.dil_w),
                   int(p.pad_top),
                   int(p.pad_left),
                   depth,
                   M,
                   dgrad ? M : depth,
                   dgrad ? depth : M,
                   call.nhwc,
                   call.weight_nhwc,
                   false,
                   call.activation,
                   depthwise_tile(call),
                   0,
                   0,
                   0};
  s.tiles_h = int(ceil_div(s.out.H, s.tile.rows));
  s.tiles_w = int(ceil_div(s.out.W, s.tile.cols));
  s.chunks = int(ceil_div(p.groups, s.tile.groups));
  return s;
}

__device__ __forceinline__ int floor_div(int a, int b) {
  return a >= 0 ? a / b : -((b - 1 - a) / b);
}

// Tile `tile` of image n for the groups of `chunk`, as it is written and as it is read.
struct DepthwiseBoxes {
  TileBox out, src;
};
__device__ __forceinline__ DepthwiseBoxes depthwise_boxes(const DepthwiseShape& s, int64_t n,
                                                          int chunk, int tile_h, int tile_w,
                                                          bool gathers) {
  const int group = chunk * s.tile.groups;
  const int groups = min(s.tile.groups, s.src.C / s.src_each - group);
  const int h = tile_h * s.tile.rows, w = tile_w * s.tile.cols;
  DepthwiseBoxes b;
  b.out = {n, group * s.out_each, groups * s.out_each, s.tile.groups * s.out_each, h, s.tile.rows,
           w, s.tile.cols,        s.tile.out_plane};
  // What gathers reads grad[(i + pad - r*dil) / stride]: from the first that is not below.
  const int h0 =
      gathers ? -floor_div(-(h + s.top - (s.R - 1) * s.dil_h), s.stride_h) : h * s.stride_h - s.top;
  const int w0 = gathers ? -floor_div(-(w + s.left - (s.S - 1) * s.dil_w), s.stride_w)
                         : w * s.stride_w - s.left;
  b.src = {n,  group * s.src_each, groups * s.src_each, s.tile.src_channels, h0, s.tile.src_rows,
           w0, s.tile.src_cols,    s.tile.src_plane};
  return b;
}

// Steps through a tile in shared memory, in elements.
struct TileSteps {
  int channel, row, col;
};
__device__ __forceinline__ TileSteps tile_steps(bool nhwc, const TileBox& b) {
  if (nhwc) return {1, b.cols * b.channels, b.channels};
  return {b.plane, b.cols, 1};
}

}  // namespace cnnkern
