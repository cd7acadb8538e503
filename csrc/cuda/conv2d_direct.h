// direct: the sum of the definition, for every geometry and type. Kernels of the common widths have
// their window in registers; everything else is one thread an element.
#pragma once
#include <algorithm>
#include <string>

#include "conv2d.h"

namespace cnnkern {

// A thread computes, or in wgrad reads, 4 neighbouring columns of 4 channels.
constexpr int64_t kDirectStrip = 4, kDirectChannels = 4, kDirectThreads = 256;
constexpr int64_t kDirectShared = 32 * 1024;  // leaves room for three blocks on every device

constexpr int64_t direct_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
// The largest part of at most `most`, all parts of `whole` being of one size.
constexpr int64_t direct_part(int64_t whole, int64_t most) {
  return direct_ceil(whole, direct_ceil(whole, most < 1 ? 1 : most));
}

// A pass as a correlation of `summed` planes to `computed` ones, both of one group. dgrad of stride
// 1 is one, of the rotated kernel.
struct DirectProblem {
  int64_t summed, computed, source_h, source_w, h, w, pad_top, pad_left;
};

inline DirectProblem direct_problem(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  if (q.pass == ConvPass::kDgrad)
    return {K, C, p.P, p.Q, p.H, p.W, (p.R - 1) * p.dil_h - p.pad_top, p.S - 1 - p.pad_left};
  return {C, K, p.H, p.W, p.P, p.Q, p.pad_top, p.pad_left};
}

// wgrad: the rows of taps whose sums a thread has room for in registers.
CNNKERN_HOST_DEVICE constexpr int direct_rows_of_taps(int64_t R, int64_t bytes) {
  return R <= (bytes == 8 ? 3 : 5) ? int(R) : 1;
}

// wgrad: the sums that a lane hands over at a time, of a row of taps of 4 channels or 2.
CNNKERN_HOST_DEVICE constexpr int direct_sums(int64_t S, int64_t bytes) {
  return int(S) * (bytes == 8 ? 2 : 4);
}

// What a block has in shared memory: planes of the source, and the weights that meet them (fprop,
// dgrad) or the gradients (wgrad). rows 0: no window in registers, the general kernel.
struct DirectTile {
  int rows, strips, images;  // of the result; wgrad: of the gradient, one image
  int quads, channels;       // 4 channels of the result each; channels of the source
  int source_rows, pitch;    // of a plane of the source
  int grad_plane, shares;    // wgrad: elements of a plane of the gradient; warps with the same taps
  int shared;                // bytes
};

inline bool has_direct_window(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const bool is_square = p.R == p.S && (p.S == 1 || p.S == 3 || p.S == 5 || p.S == 7);
  if (!is_square || p.dil_w != 1 || p.stride_w > 2) return false;
  if (q.pass == ConvPass::kDgrad && (p.stride_h != 1 || p.stride_w != 1)) return false;
  constexpr int64_t kMost = int64_t{1} << 27;
  for (int64_t e : {p.H + p.pad_top + p.pad_bottom, p.W + p.pad_left + p.pad_right, p.C, p.K, p.N,
                    p.R * p.dil_h, p.stride_h})
    if (e > kMost) return false;
  return true;
}

// fprop, dgrad: as many rows and channels of the result as there are threads for.
inline DirectTile direct_tile_result(const ConvQuery& q, const DirectProblem& d) {
  DirectTile t{};
  t.strips = int(direct_part(direct_ceil(d.w, kDirectStrip), 32));
  t.quads = int(direct_part(direct_ceil(d.computed, kDirectChannels),
                            std::min<int64_t>(8, kDirectThreads / t.strips)));
  t.rows = int(direct_part(d.h, kDirectThreads / (t.strips * t.quads)));
  t.images = int(std::min<int64_t>(q.p.N, std::max(1, 64 / (t.strips * t.quads * t.rows))));
  t.channels = int(d.summed);
  return t;
}

// wgrad: 8 warps of different taps; of the same, where there are fewer. A few strips for each lane.
inline DirectTile direct_tile_wgrad(const ConvQuery& q, const DirectProblem& d, int64_t bytes) {
  const int64_t warps = kDirectThreads / 32;
  const int64_t parts = q.p.R / direct_rows_of_taps(q.p.R, bytes);
  DirectTile t{};
  t.images = 1;
  for (int64_t most : {4, 2, 1}) {
    t.quads = int(direct_part(direct_ceil(d.computed, kDirectChannels),
                              std::max<int64_t>(1, std::min(most, warps / parts))));
    t.channels = int(direct_part(d.summed, warps / (parts * t.quads)));
    if (d.summed % t.channels == 0) break;
  }
  t.shares = int(warps / (parts * t.quads * t.channels));
  t.strips = int(direct_part(direct_ceil(d.w, kDirectStrip), 16));
  t.rows = int(direct_part(d.h, direct_ceil(8 * 32 * t.shares, t.strips)));
  return t;
}

inline DirectTile direct_tile(const ConvQuery& q) {
  const DirectProblem d = direct_problem(q);
  if (!has_direct_window(q) || q.p.N * d.h * d.w == 0) return {};
  const ConvParams& p = q.p;
  const bool is_wgrad = q.pass == ConvPass::kWgrad, is_dgrad = q.pass == ConvPass::kDgrad;
  const int64_t bytes = q.dtype == DType::kFloat64 ? 8 : 4;
  DirectTile t = is_wgrad ? direct_tile_wgrad(q, d, bytes) : direct_tile_result(q, d);
  const int64_t stride_h = is_dgrad ? 1 : p.stride_h, stride_w = is_dgrad ? 1 : p.stride_w;
  // Rows start on 16 bytes, in banks that differ.
  const int64_t span = (kDirectStrip - 1) * stride_w + p.S;
  int64_t pitch = kDirectStrip * stride_w * (t.strips - 1) + direct_ceil(span, 4) * 4;
  if (pitch % 8 == 0) pitch += 4;
  for (;;) {
    const int64_t source_rows = (t.rows - 1) * stride_h + (p.R - 1) * p.dil_h + 1;
    const int64_t grad_plane = int64_t(t.rows) * t.strips * kDirectStrip + 4;
    const int64_t beside = is_wgrad ? t.quads * kDirectChannels * grad_plane : 0;
    const int64_t each =
        t.images * source_rows * pitch + (is_wgrad ? 0 : p.R * p.S * t.quads * kDirectChannels);
    const int64_t fits = (kDirectShared / bytes - beside) / each;
    if (fits >= (is_wgrad ? t.channels : 1)) {
      if (!is_wgrad) t.channels = int(direct_part(t.channels, fits));
      t.source_rows = int(source_rows), t.pitch = int(pitch), t.grad_plane = int(grad_plane);
      // Also where sums (wgrad) and activated values change places.
      const int64_t sums = is_wgrad ? direct_sums(p.S, bytes) | 1 : 4;
      t.shared = int(bytes * std::max(kDirectThreads * sums, beside + t.channels * each));
      break;
    }
    if (t.images > 1)
      t.images /= 2;
    else if (t.rows > 1)
      t.rows = int(direct_part(t.rows, (t.rows + 1) / 2));
    else
      return {};
  }
  const int64_t blocks = direct_ceil(d.h, t.rows) * direct_ceil(d.w, t.strips * kDirectStrip) *
                         direct_ceil(p.N, t.images);
  const int64_t tiles = p.groups * direct_ceil(d.computed, t.quads * kDirectChannels);
  if (!is_wgrad && (blocks > INT32_MAX || tiles > 65535)) return {};
  return t;
}

// wgrad: the pixels are cut into units, a tile of one image each, and those into slices, as many as
// fill a device. Every slice leaves its sums in the workspace; they are added up in order.
struct DirectSlices {
  int64_t units, slices, units_each;
};

inline DirectSlices direct_slices(const ConvQuery& q, const DirectTile& t) {
  const ConvParams& p = q.p;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  DirectSlices s{p.N * p.P, 0, 0};
  int64_t blocks = direct_ceil(p.K * C * p.R * p.S, kDirectThreads);
  if (t.rows) {
    s.units = p.N * direct_ceil(p.P, t.rows) * direct_ceil(p.Q, t.strips * kDirectStrip);
    blocks = p.groups * direct_ceil(K, t.quads * kDirectChannels) * direct_ceil(C, t.channels);
  }
  const int64_t wanted = std::min(s.units, direct_ceil(512, blocks));
  s.units_each = wanted ? direct_ceil(s.units, wanted) : 0;
  s.slices = wanted ? direct_ceil(s.units, s.units_each) : 0;
  return s;
}

inline std::string supports_conv2d_direct(const ConvQuery&) { return ""; }

inline int64_t workspace_conv2d_direct(const ConvQuery& q) {
  if (q.pass != ConvPass::kWgrad) return 0;
  const ConvParams& p = q.p;
  const DirectTile t = direct_tile(q);
  return direct_slices(q, t).slices * std::max(1, t.shares) * p.K * (p.C / p.groups) * p.R * p.S *
         (q.dtype == DType::kFloat64 ? 8 : 4);
}

cudaError_t launch_conv2d_direct(const ConvCall& call);
// Both take calls whose direct_tile() has rows; wgrad takes the others, too.
cudaError_t launch_conv2d_direct_window(const ConvCall& call, const DirectTile& tile);
cudaError_t launch_conv2d_wgrad_direct(const ConvCall& call, const DirectTile& tile);

}  // namespace cnnkern
