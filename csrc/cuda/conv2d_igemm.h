// Implicit GEMM on CUDA cores, in true float32: every geometry; 16-bit types are widened to it.
#pragma once
#include <algorithm>
#include <string>

#include "conv2d.h"

namespace cnnkern {

// Pixels and channels of a block's tile of the output. Square, so one number; 16-bit types, which
// tensor cores serve wherever there are any, have the small one alone.
constexpr int64_t kIgemmLarge = 128, kIgemmSmall = 64;
// Of the reduction, how much is in shared memory at a time; channels that are loaded together.
constexpr int64_t kIgemmSlice = 8, kIgemmChunk = 4;

constexpr int64_t igemm_tiles(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

// The GEMM of a pass: [rows x reduction] * [reduction x columns], `batches` of them.
struct IgemmShape {
  int64_t rows, columns, reduction, batches;
};

inline IgemmShape igemm_shape(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const int64_t phases = p.stride_h * p.stride_w;
  switch (q.pass) {
    case ConvPass::kFprop: return {p.N * p.P * p.Q, K, C * p.R * p.S, p.groups};
    // The output is cut into phases of equal taps: (h mod stride_h, w mod stride_w).
    case ConvPass::kDgrad:
      return {p.N * igemm_tiles(p.H, p.stride_h) * igemm_tiles(p.W, p.stride_w), C,
              igemm_tiles(K * p.R * p.S, phases), p.groups * phases};
    default:
      return {K, p.R * p.S * igemm_tiles(C, kIgemmChunk) * kIgemmChunk, p.N * p.P * p.Q, p.groups};
  }
}

// The large tile where it is filled and there are enough of them for the 108 to 148 SMs of an A100
// to a B200: its loads cost half as much per product. wgrad makes blocks by splitting instead.
inline int64_t igemm_tile(const ConvQuery& q) {
  const IgemmShape s = igemm_shape(q);
  if (q.dtype != DType::kFloat32 || s.columns <= kIgemmSmall) return kIgemmSmall;
  if (q.pass == ConvPass::kWgrad) return s.rows <= kIgemmSmall ? kIgemmSmall : kIgemmLarge;
  return igemm_tiles(s.rows, kIgemmLarge) * igemm_tiles(s.columns, kIgemmLarge) * s.batches < 128
             ? kIgemmSmall
             : kIgemmLarge;
}

// wgrad: into how many parts its pixels are split. Four blocks an SM, but at least 128 pixels each
// and less than an int counts.
inline int64_t igemm_splits(const ConvQuery& q) {
  const IgemmShape s = igemm_shape(q);
  const int64_t tile = igemm_tile(q);
  const int64_t blocks = igemm_tiles(s.rows, tile) * igemm_tiles(s.columns, tile) * s.batches;
  const int64_t wanted = igemm_tiles(4 * 128, blocks ? blocks : 1);
  const int64_t most = igemm_tiles(s.reduction, 128), least = igemm_tiles(s.reduction, 1 << 30);
  return std::max({std::min(wanted, most), least, int64_t{1}});
}

inline std::string supports_conv2d_igemm(const ConvQuery& q) {
  const ConvParams& p = q.p;
  constexpr int64_t kMost = int64_t{1} << 30;
  if (q.dtype == DType::kFloat64) return "takes float32, float16 and bfloat16, got float64";
  if (p.H + p.pad_top + p.pad_bottom >= kMost || p.W + p.pad_left + p.pad_right >= kMost)
    return "needs padded extents below 2^30, got " +
           std::to_string(p.H + p.pad_top + p.pad_bottom) + " x " +
           std::to_string(p.W + p.pad_left + p.pad_right);
  if (q.pass == ConvPass::kDgrad && p.stride_h * p.stride_w > 65535)
    return "needs stride_h * stride_w <= 65535, got " + std::to_string(p.stride_h * p.stride_w);
  const IgemmShape s = igemm_shape(q);
  const int64_t blocks = p.groups * igemm_tiles(s.columns, kIgemmSmall);
  if (q.pass != ConvPass::kWgrad && blocks > 65535)
    return "needs at most 65535 tiles of channels, got " + std::to_string(blocks);
  const bool is_dgrad = q.pass == ConvPass::kDgrad;
  const int64_t row = is_dgrad ? p.Q * p.K : p.W * p.C, plane = is_dgrad ? p.P * p.Q : p.H * p.W;
  const int64_t tap = igemm_tiles(p.C / p.groups, kIgemmLarge) * kIgemmLarge *
                      igemm_tiles(p.K / p.groups, kIgemmLarge) * kIgemmLarge;
  for (const int64_t pitch : {row, plane, tap})
    if (q.pass != ConvPass::kWgrad && pitch > INT32_MAX)
      return "needs rows, planes and taps of below 2^31 elements, got " + std::to_string(pitch);
  if (q.pass == ConvPass::kWgrad && (p.C * p.H * p.W > INT32_MAX || p.K * p.P * p.Q > INT32_MAX))
    return "needs images of below 2^31 elements, got " + std::to_string(p.C * p.H * p.W) + " and " +
           std::to_string(p.K * p.P * p.Q);
  if (q.pass == ConvPass::kWgrad && s.columns > INT32_MAX - kIgemmLarge)
    return "needs filters of below 2^31 elements, got " + std::to_string(s.columns);
  if (q.pass == ConvPass::kWgrad && p.groups > 65535)
    return "needs at most 65535 groups, got " + std::to_string(p.groups);
  return "";
}

// Reductions run in slices of 8 channels of one tap, and a tile has 64 channels: below half of
// either, more than half of the products are with zeros, and 'direct' does fewer.
inline bool prefers_conv2d_igemm(const ConvQuery& q) {
  const IgemmShape s = igemm_shape(q);
  const int64_t C = q.p.C / q.p.groups, K = q.p.K / q.p.groups;
  if (q.pass == ConvPass::kWgrad)
    return s.rows >= 16 && C * q.p.R * q.p.S >= 32 && s.reduction >= 64;
  const int64_t slice = q.pass == ConvPass::kFprop ? C : K;
  return slice >= 4 && s.columns >= 32 && s.rows >= 32;
}

// fprop, dgrad: the weight, packed. wgrad: the partial sums of each split.
inline int64_t workspace_conv2d_igemm(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups, tile = igemm_tile(q);
  if (q.pass == ConvPass::kWgrad) return 4 * igemm_splits(q) * p.K * igemm_shape(q).columns;
  const int64_t reduced = q.pass == ConvPass::kFprop ? C : K;
  const int64_t columns = q.pass == ConvPass::kFprop ? K : C;
  return 4 * p.groups * p.R * p.S * igemm_tiles(reduced, kIgemmSlice) * kIgemmSlice *
         igemm_tiles(columns, tile) * tile;
}

cudaError_t launch_conv2d_igemm(const ConvCall& call);
cudaError_t launch_conv2d_wgrad_igemm(const ConvCall& call);

}  // namespace cnnkern
