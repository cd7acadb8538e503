// Convolution as a matrix product on tensor cores, with no matrix of patches in memory: float16 and
// bfloat16 in m16n8k16, float32 rounded to tf32 in m16n8k8, when algo asks for it.
#pragma once
#include <algorithm>
#include <string>

#include "conv2d.h"

namespace cnnkern {

constexpr int64_t mma_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Channels a group of what is written (fprop: K, dgrad: C) and of what is summed over.
struct MmaShape {
  int64_t rows, written, summed;
};

inline MmaShape mma_shape(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  if (q.pass == ConvPass::kDgrad) return {p.N * p.H * p.W / (p.stride_h * p.stride_w), C, K};
  return {p.N * p.P * p.Q, K, C};
}

// The large tile only where it leaves enough blocks for a whole device; the small one fits twice.
inline int mma_tile(const ConvQuery& q) {
  const MmaShape s = mma_shape(q);
  const int64_t blocks = mma_ceil(s.rows, 128) * mma_ceil(s.written, 128) * q.p.groups;
  return q.dtype != DType::kFloat32 && s.written > 64 && blocks >= 64 ? 128 : 64;
}

// Elements of one step along the sum: 64 bytes of a row.
inline int64_t mma_step(const ConvQuery& q) { return q.dtype == DType::kFloat32 ? 16 : 32; }

constexpr int64_t kMmaWgradTile = 64;

// Slices of wgrad's sum over pixels: enough blocks for a device, each long enough to be worth it.
// Only the geometry decides, so the order of the sum does not change from device to device.
inline int64_t mma_wgrad_splits(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const int64_t tiles = mma_ceil(p.K / p.groups, kMmaWgradTile) * p.groups * p.R * p.S *
                        mma_ceil(p.C / p.groups, kMmaWgradTile);
  const int64_t steps = mma_ceil(p.N * p.P * p.Q, mma_step(q));
  return std::max<int64_t>(1, std::min({mma_ceil(432, tiles), steps / 8, 65535 / p.groups}));
}

inline std::string supports_conv2d_mma(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const auto got = [](const char* name, int64_t value) {
    return std::string(name) + " " + std::to_string(value);
  };
  if (q.arch < 80) return "needs compute capability 8.0 or later, got " + got("sm", q.arch);
  if (q.dtype == DType::kFloat64) return "needs input of 16 or 32 bits, got float64";
  if (p.groups > 1 && (p.C / p.groups < 16 || p.K / p.groups < 16))
    return "needs groups of at least 16 channels, got " + got("input", p.C / p.groups) + " and " +
           got("output", p.K / p.groups);
  if (p.groups > 65535) return "needs at most 65535 groups, got " + got("groups", p.groups);
  constexpr int64_t kLimit = int64_t{1} << 29;
  const int64_t extents[] = {p.H,        p.W,        p.P * p.stride_h,    p.Q * p.stride_w,
                             p.pad_left, p.pad_top,  p.R * p.dil_h,       p.S * p.dil_w,
                             p.C,        p.stride_h, p.pad_right + p.P,   p.pad_bottom + p.Q,
                             p.K,        p.stride_w, p.K * p.R * p.S / 8, p.C * p.R * p.S / 8};
  for (int64_t e : extents)
    if (e >= kLimit) return "needs extents below 2^29, got " + std::to_string(e);
  if (p.R * p.S * mma_ceil(p.C / p.groups, kMmaWgradTile) > 65535)
    return "needs at most 65535 tiles of the weight, got " + got("taps", p.R * p.S) + " for " +
           got("channels", p.C);
  if (q.pass == ConvPass::kDgrad && p.stride_h * p.stride_w > 64)
    return "needs a stride of at most 64 phases, got " + got("stride", p.stride_h * p.stride_w);
  return "";
}

// float32 is never rounded to tf32 unless asked for.
inline bool prefers_conv2d_mma(const ConvQuery& q) {
  return (q.dtype != DType::kFloat32 || q.allow_tf32) && q.p.C / q.p.groups >= 16 &&
         q.p.K / q.p.groups >= 16;
}

// fprop, dgrad: the weight in the order of the sum, filled up with zeros to whole tiles, so that it
// is always read in 16 bytes. wgrad: a float32 sum for every slice.
inline int64_t workspace_conv2d_mma(const ConvQuery& q) {
  const ConvParams& p = q.p;
  if (q.pass == ConvPass::kWgrad)
    return mma_wgrad_splits(q) * p.K * (p.C / p.groups) * p.R * p.S * 4;
  const MmaShape s = mma_shape(q);
  const int tile = mma_tile(q);
  return p.groups * mma_ceil(s.written, tile) * tile * p.R * p.S * mma_ceil(s.summed, mma_step(q)) *
         64;
}

cudaError_t launch_conv2d_mma(const ConvCall& call);
cudaError_t launch_conv2d_mma_wgrad(const ConvCall& call);

}  // namespace cnnkern
