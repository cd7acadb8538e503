// Winograd's F(2x2, 3x3) in float32: 16 products where the definition has 36.
#pragma once
#include <string>

#include "conv2d.h"

namespace cnnkern {

// A block computes 64 channels of 32 patches, a patch being 2x2 results; 4 channels are summed at a
// time.
constexpr int64_t kWinogradChannels = 64, kWinogradPatches = 32, kWinogradSlice = 4;

constexpr int64_t winograd_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A pass seen as the correlation of `summed` planes of source_h x source_w to `computed` ones of
// h x w. dgrad correlates with the kernel rotated, padded to 2 less what the forward pass padded.
struct WinogradProblem {
  int64_t summed, computed, source_h, source_w, h, w, pad_top, pad_left, patches;
};

inline WinogradProblem winograd_problem(const ConvQuery& q) {
  const ConvParams& p = q.p;
  WinogradProblem w = {p.C, p.K, p.H, p.W, p.P, p.Q, p.pad_top, p.pad_left, 0};
  if (q.pass == ConvPass::kDgrad)
    w = {p.K, p.C, p.P, p.Q, p.H, p.W, 2 - p.pad_top, 2 - p.pad_left, 0};
  w.patches = p.N * winograd_ceil(w.h, 2) * winograd_ceil(w.w, 2);
  return w;
}

inline std::string supports_conv2d_winograd(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const auto pair = [](int64_t a, int64_t b) {
    return "(" + std::to_string(a) + ", " + std::to_string(b) + ")";
  };
  if (q.dtype != DType::kFloat32) return "takes float32 only";
  if (q.pass == ConvPass::kWgrad) return "has no gradient of the weight";
  if (p.R != 3 || p.S != 3) return "needs a kernel of (3, 3), got " + pair(p.R, p.S);
  if (p.stride_h != 1 || p.stride_w != 1)
    return "needs stride (1, 1), got " + pair(p.stride_h, p.stride_w);
  if (p.dil_h != 1 || p.dil_w != 1) return "needs dilation (1, 1), got " + pair(p.dil_h, p.dil_w);
  if (p.groups != 1) return "needs groups 1, got " + std::to_string(p.groups);
  if (p.mode != PaddingMode::kZeros) return "needs padding_mode 'zeros'";
  constexpr int64_t kMost = int64_t{1} << 29;
  const WinogradProblem w = winograd_problem(q);
  const int64_t row = w.source_w * (q.nhwc ? w.summed : 1);
  const int64_t extents[] = {p.H + p.pad_top + p.pad_bottom, p.W + p.pad_left + p.pad_right, row};
  for (int64_t e : extents)
    if (e >= kMost) return "needs padded extents and rows below 2^29, got " + std::to_string(e);
  if (w.patches > kWinogradPatches * INT32_MAX)
    return "needs at most 2^36 patches, got " + std::to_string(w.patches);
  const int64_t tiles = winograd_ceil(w.computed, kWinogradChannels);
  if (tiles > 65535) return "needs at most 65535 tiles of channels, got " + std::to_string(tiles);
  return "";
}

// With fewer than 32 channels the transforms, which every block does for itself, are no longer
// small beside the products. Images of odd sides and few patches fill tiles badly: at least a
// quarter of the products has to be saved.
inline bool prefers_conv2d_winograd(const ConvQuery& q) {
  const WinogradProblem w = winograd_problem(q);
  const int64_t done = winograd_ceil(w.patches, kWinogradPatches) * kWinogradPatches * 16;
  return w.summed >= 32 && w.computed >= 32 && 4 * done <= 3 * 9 * q.p.N * w.h * w.w;
}

// The transformed weight, 16 numbers for every kernel.
inline int64_t workspace_conv2d_winograd(const ConvQuery& q) {
  const WinogradProblem w = winograd_problem(q);
  return 4 * 16 * winograd_ceil(w.summed, kWinogradSlice) * kWinogradSlice *
         winograd_ceil(w.computed, kWinogradChannels) * kWinogradChannels;
}

cudaError_t launch_conv2d_winograd(const ConvCall& call);

}  // namespace cnnkern
