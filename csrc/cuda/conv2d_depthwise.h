// Depthwise convolution, one input channel a group, and grouped, a few: which tile of several
// groups a block works on. Its input with the halo goes through shared memory once, so the tile is
// chosen for the bytes that it makes move.
#pragma once
#include <algorithm>
#include <string>

#include "conv2d.h"

namespace cnnkern {

constexpr int kDepthwiseThreads = 256;
constexpr int kDepthwiseShared = 48 * 1024;  // what a block may use on every architecture

struct DepthwiseTile {
  int groups = 0;            // 0: no tile fits
  int rows = 0, cols = 0;    // of the output; of grad for the weight's gradient
  int src_rows, src_cols;    // what they read
  int src_channels;          // in shared memory, a power of two in NHWC
  int src_plane, out_plane;  // NCHW: elements from one channel to the next in shared memory
  bool staged;               // NCHW: the output leaves through shared memory, in whole sectors
  int weight_pitch;          // odd, so that neighbouring channels lie in different banks
  int shared;                // bytes
};

// Rows a thread slides over; the kernels are compiled for it.
CNNKERN_HOST_DEVICE constexpr int depthwise_rows(int64_t stride) { return stride == 1 ? 8 : 4; }

// 3, 5 or 7 squared without dilation, stride 1 or 2: the window lives in registers. The gradient of
// the input has one for stride 1 alone; its phases are gathered. That of the weight has as many
// windows as channels in a group, too many for registers but for one.
inline int depthwise_window(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const bool square = p.R == p.S && (p.R == 3 || p.R == 5 || p.R == 7) && p.dil_h == 1 &&
                      p.dil_w == 1 && p.stride_h == p.stride_w && p.stride_h <= 2;
  if (!square || q.dtype == DType::kFloat64) return 0;
  if (q.pass == ConvPass::kDgrad && p.stride_h != 1) return 0;
  if (q.pass == ConvPass::kWgrad && p.groups != p.C) return 0;
  return int(p.R);
}

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

inline int64_t power_of_two(int64_t x) {
  int64_t y = 1;
  while (y < x) y *= 2;
  return y;
}

inline int64_t depthwise_extent(const ConvQuery& q, int64_t out, int64_t taps, int64_t stride,
                                int64_t dil) {
  if (q.pass == ConvPass::kDgrad) return (out - 1 + (taps - 1) * dil) / stride + 1;
  return (out - 1) * stride + (taps - 1) * dil + 1;
}

// Elements from one channel to the next of a tile in shared memory: a multiple of `step` more than
// `like`, and such that lanes of the next channel find the banks where the `span` of this one ends.
inline int64_t depthwise_plane(int64_t elements, int64_t span, int64_t banks, int64_t like,
                               int64_t step) {
  const int64_t least = elements + ((like - elements) & (step - 1));
  return least + round_up((span - least) & (banks - 1), step);
}

// The tile of `groups` groups and `cols` columns, as many rows as fit; false: none does.
inline bool depthwise_fit(const ConvQuery& q, int64_t groups, int64_t cols, DepthwiseTile* t) {
  const ConvParams& p = q.p;
  const bool dgrad = q.pass == ConvPass::kDgrad, wgrad = q.pass == ConvPass::kWgrad;
  const int64_t Cg = p.C / p.groups, Kg = p.K / p.groups;
  const int64_t out_cols = dgrad ? p.W : p.Q;
  int64_t out_rows = dgrad ? p.H : p.P;
  if (out_rows < 1) out_rows = 1;  // an empty gradient still has a tile
  const int64_t bytes = q.dtype == DType::kFloat64 ? 8 : q.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t acc = bytes == 8 ? 8 : 4, taps = Cg * p.R * p.S, pitch = taps | 1;
  const int64_t round = depthwise_window(q) && !wgrad ? depthwise_rows(p.stride_h) : 1;
  const int64_t src = groups * (dgrad ? Kg : Cg), out = groups * (dgrad ? Cg : Kg);
  const int64_t src_channels = q.nhwc ? power_of_two(src) : src;
  int64_t src_cols = depthwise_extent(q, cols, p.S, p.stride_w, p.dil_w);
  const bool staged = !q.nhwc && !wgrad && cols == out_cols;
  const int64_t weights =
      round_up((wgrad ? out * pitch + kDepthwiseThreads * 8 : groups * Kg * pitch) * acc, 16);
  const int64_t grad_channels = q.nhwc ? power_of_two(out) : out;
  if (src_channels > kDepthwiseThreads || grad_channels > kDepthwiseThreads) return false;
  // Lanes that share a channel, see Item and Team, and what they span of the source.
  const int64_t lanes = wgrad ? std::min(kDepthwiseThreads / power_of_two(out), cols) : cols;
  int64_t span = dgrad ? (lanes - 1) / p.stride_w + 1 : lanes * p.stride_w;
  if (bytes == 2)
    span = round_up(span, 2) + 2;  // two a word: an odd tap reaches into one more
  else if (p.stride_w % 2 == 0)
    span |= 1;  // lanes two columns apart leave the odd banks to the next channel
  const int64_t banks = 128 / bytes, piece = 16 / bytes, image = dgrad ? p.H * p.W : p.P * p.Q;
  // Nor do the lanes that begin the next strip want a bank twice, if 3 columns of zeros are enough.
  for (int64_t wide = src_cols; staged && round > 1 && wide < src_cols + 4; ++wide)
    if ((wide * round * p.stride_h - out * span) % banks == 0) {
      src_cols = wide;
      break;
    }
  int64_t src_plane, out_plane;
  const auto shared = [&](int64_t rows) {
    src_plane = src_cols * depthwise_extent(q, rows, p.R, p.stride_h, p.dil_h);
    out_plane = rows * cols;
    if (staged && rows >= out_rows && image % piece) {
      out_plane = image;  // whole planes in one run, or each would begin and end within 16 bytes
    } else if (!q.nhwc) {
      const int64_t step = staged ? piece : 1;
      out_plane = depthwise_plane(out_plane, lanes, banks, staged ? image : 0, step);
    }
    if (!q.nhwc) src_plane = depthwise_plane(src_plane, span, banks, 0, 1);
    int64_t second = 0;
    if (wgrad) second = grad_channels * out_plane * bytes;
    if (staged) second = out * out_plane * bytes + 16;
    return weights + round_up(src_channels * src_plane * bytes, 16) + round_up(second, 16);
  };
  if (src_cols > kDepthwiseShared || taps > kDepthwiseShared ||
      depthwise_extent(q, 1, p.R, p.stride_h, p.dil_h) > kDepthwiseShared)
    return false;
  int64_t most = 0;
  for (int64_t step = 1024; step; step /= 2)
    if (shared((most + step) * round) <= kDepthwiseShared) most += step;
  if (!most) return false;
  const int64_t splits = (out_rows + most * round - 1) / (most * round);
  int64_t rows = round_up((out_rows + splits - 1) / splits, round);
  while (rows && shared(rows) > kDepthwiseShared) rows -= round;  // fewer may have wider gaps
  if (!rows) return false;
  *t = {int(groups),      int(rows),
        int(cols),        int(depthwise_extent(q, rows, p.R, p.stride_h, p.dil_h)),
        int(src_cols),    int(src_channels),
        int(src_plane),   int(out_plane),
        staged,           int(pitch),
        int(shared(rows))};
  return true;
}

// Least halo for the bytes of output; ties go to more channels, whose loads are longer.
inline DepthwiseTile depthwise_tile(const ConvQuery& q) {
  const ConvParams& p = q.p;
  const bool dgrad = q.pass == ConvPass::kDgrad;
  const int64_t out_cols = dgrad ? p.W : p.Q, size = q.dtype == DType::kFloat64   ? 8
                                                     : q.dtype == DType::kFloat32 ? 4
                                                                                  : 2;
  const int64_t src_h = dgrad ? p.P : p.H, src_w = dgrad ? p.Q : p.W;
  DepthwiseTile best, t;
  double least = 0;
  const int64_t Cg = p.C / p.groups;
  int64_t most_groups = 1;
  while (2 * most_groups * Cg <= (q.nhwc ? 128 / size : 16)) most_groups *= 2;
  for (int64_t groups = most_groups; groups >= 1; groups /= 2) {
    if (groups > 1 && groups >= 2 * p.groups) continue;
    for (int64_t split = 1; split <= 8; ++split) {
      const int64_t cols = out_cols < 1 ? 1 : (out_cols + split - 1) / split;
      if (!depthwise_fit(q, groups, cols, &t)) continue;
      // Only what lies inside the plane is read; runs below a sector cost a sector, and parts of
      // rows cost one at their ends.
      const double rows = double(t.src_rows < src_h ? t.src_rows : src_h);
      const double columns = double(t.src_cols < src_w ? t.src_cols : src_w);
      const double run = q.nhwc ? double(groups * Cg * size) : 256.0;
      double cost = rows * columns / (double(t.rows) * cols) * (run < 32 ? 32 / run : 1);
      if (!q.nhwc && cols < out_cols) cost *= 1 + 32 / (columns * double(size));
      if (run < 64) cost += 0.1;
      if (t.shared > kDepthwiseShared * 2 / 3) cost += 0.05;
      if (double(t.rows) * cols * groups * Cg < 4 * kDepthwiseThreads) cost += 0.2;
      if (best.groups == 0 || cost < least - 1e-9) best = t, least = cost;
      if (cols <= 8) break;
    }
  }
  return best;
}

inline std::string supports_conv2d_tile(const ConvQuery& q) {
  const ConvParams& p = q.p;
  constexpr int64_t kMost = int64_t{1} << 28;
  const int64_t largest[] = {p.H,           p.W,           p.P,        p.Q,         p.K,
                             p.N,           p.pad_left,    p.pad_top,  p.pad_right, p.pad_bottom,
                             p.R * p.dil_h, p.S * p.dil_w, p.stride_h, p.stride_w};
  for (int64_t x : largest)
    if (x > kMost) return "needs extents up to 2^28, got " + std::to_string(x);
  if (!depthwise_tile(q).groups)
    return "needs a window that fits into " + std::to_string(kDepthwiseShared) +
           " bytes of shared memory, got kernel (" + std::to_string(p.R) + ", " +
           std::to_string(p.S) + ") with dilation (" + std::to_string(p.dil_h) + ", " +
           std::to_string(p.dil_w) + ")";
  return "";
}

inline std::string supports_conv2d_depthwise(const ConvQuery& q) {
  if (q.p.groups != q.p.C)
    return "needs groups equal to the input's channels, got groups " + std::to_string(q.p.groups) +
           " for " + std::to_string(q.p.C) + " channels";
  return supports_conv2d_tile(q);
}

inline std::string supports_conv2d_grouped(const ConvQuery& q) {
  const int64_t Cg = q.p.C / q.p.groups, Kg = q.p.K / q.p.groups;
  if (q.p.groups < 2 || Cg < 2 || Cg > 16 || Kg > 64)
    return "needs 2 to 16 input and at most 64 output channels a group, and 2 groups, got " +
           std::to_string(Cg) + " and " + std::to_string(Kg) + " and " +
           std::to_string(q.p.groups) + " groups";
  return supports_conv2d_tile(q);
}

// Blocks that share the sum over batch and plane: enough to fill a large device.
inline int64_t depthwise_splits(const ConvQuery& q, const DepthwiseTile& t) {
  const ConvParams& p = q.p;
  const int64_t chunks = (p.groups + t.groups - 1) / t.groups;
  const int64_t tiles = p.N * ((p.P + t.rows - 1) / t.rows) * ((p.Q + t.cols - 1) / t.cols);
  const int64_t wanted = (1024 + chunks - 1) / chunks;
  return tiles < 1 ? 1 : tiles < wanted ? tiles : wanted;
}

inline int64_t workspace_conv2d_depthwise(const ConvQuery& q) {
  if (q.pass != ConvPass::kWgrad) return 0;
  const int64_t acc = q.dtype == DType::kFloat64 ? 8 : 4;
  return depthwise_splits(q, depthwise_tile(q)) * q.p.K * (q.p.C / q.p.groups) * q.p.R * q.p.S *
         acc;
}

cudaError_t launch_conv2d_depthwise(const ConvCall& call);
cudaError_t launch_conv2d_wgrad_depthwise(const ConvCall& call);

}  // namespace cnnkern
