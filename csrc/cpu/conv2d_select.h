// Which CPU algorithm computes a convolution: predicates that select and, where a name is forced,
// explain.
#pragma once
#include <algorithm>

#include "geometry.h"
#include "isa.h"

namespace cnnkern {

enum class ConvAlgo { kDirect, kChwn, kIgemm, kDepthwise, kWinograd, kDots };
constexpr const char* kConvAlgoNames[] = {"direct",    "chwn",     "igemm",
                                          "depthwise", "winograd", "dots"};

// 1, 2, 4 or 8 channels a group, as many in as out: lanes are channels of all groups.
inline bool has_narrow_groups(const ConvParams& p) {
  const int64_t in = p.C / p.groups, out = p.K / p.groups;
  return in == out && (in == 1 || in == 2 || in == 4 || in == 8);
}

// Empty if the algorithm applies, else the reason why it does not.
inline std::string supports_conv2d_depthwise(const ConvParams& p, DType dtype, ConvPass pass) {
  const int64_t in = p.C / p.groups, out = p.K / p.groups;
  if (in == 1 && out == 1) return "";
  if (has_narrow_groups(p))
    return dtype == DType::kFloat32 || (pass == ConvPass::kWgrad && dtype != DType::kFloat64)
               ? ""
               : "needs float32 tensors for more than one channel a group";
  return "needs 1, 2, 4 or 8 channels a group, as many in as out, got " + std::to_string(in) +
         " in and " + std::to_string(out) + " out";
}
inline std::string supports_conv2d_winograd(const ConvParams& p) {
  auto pair = [](int64_t a, int64_t b) { return std::to_string(a) + " and " + std::to_string(b); };
  if (p.R != 3 || p.S != 3) return "needs a 3x3 kernel, got " + pair(p.R, p.S);
  if (p.stride_h != 1 || p.stride_w != 1)
    return "needs stride 1, got " + pair(p.stride_h, p.stride_w);
  if (p.groups != 1) return "needs groups 1, got " + std::to_string(p.groups);
  return "";
}
inline std::string supports_conv2d_chwn(const ConvParams& p) {
  if (p.stride_h == 1 && p.stride_w == 1) return "";
  return "needs stride 1, got " + std::to_string(p.stride_h) + " and " + std::to_string(p.stride_w);
}

inline std::string supports_conv2d_dots(DType dtype) {
  if (dtype != DType::kBFloat16) return "needs bfloat16 tensors";
  const Isa isa = current_isa();
  return isa >= Isa::kAvx512Bf16 ? "" : std::string("needs avx512_bf16, not ") + isa_name(isa);
}

// Where each pays; measured on a 2-core Zen 4. In float64 'auto' keeps the last digits.
// Rows of a dilated kernel's phases are gathered and scattered, and the last tiles of each may be
// mostly empty: that takes more channels, some tiles, and those filled. Measured on a Sapphire
// Rapids.
inline bool prefers_conv2d_winograd(const ConvParams& p, DType dtype) {
  constexpr int64_t kTile = 4, kChannels = 64, kTiles = 32;
  if (!supports_conv2d_winograd(p).empty() || dtype == DType::kFloat64) return false;
  if (p.dil_h == 1 && p.dil_w == 1) return p.C >= 12 && p.K >= 12 && p.P >= kTile && p.Q >= kTile;
  auto tiles = [](int64_t size, int64_t phases) {
    return std::min(phases, size) * ((size + phases * kTile - 1) / (phases * kTile));
  };
  const int64_t count = tiles(p.P, p.dil_h) * tiles(p.Q, p.dil_w);
  return p.C >= kChannels && p.K >= kChannels && p.N * count >= kTiles &&
         4 * count * kTile * kTile <= 9 * p.P * p.Q;
}
// Groups of NCHW tensors have columns as lanes: short rows leave most of them idle.
inline bool prefers_conv2d_depthwise(const ConvParams& p, DType dtype, bool nhwc, ConvPass pass) {
  return supports_conv2d_depthwise(p, dtype, pass).empty() &&
         (nhwc || p.C == p.groups || std::min(p.W, p.Q) >= 12);
}
// Lanes of an input gradient by igemm are its channels or, where these are few, the columns of all
// taps, which conv2d_col2im.inc sums up.
inline bool sums_columns(const ConvParams& p) {
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  return p.R * p.S > 1 && (C < 16 || (C == 16 && K >= 64));
}
inline bool prefers_conv2d_igemm(const ConvParams& p, bool nhwc, ConvPass pass) {
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  if (pass == ConvPass::kWgrad) return K >= 16;
  if (pass == ConvPass::kFprop) return K >= 16 && (C >= 6 || nhwc);
  // As many products as outweigh that a column goes through memory; measured on an Ice Lake.
  return C >= 16 ? K >= 6 : sums_columns(p) && K >= std::max<int64_t>(32, C * (nhwc ? 4 : 8));
}
// So few that what surrounds the products counts.
inline bool has_few_products(const ConvParams& p) {
  return p.C / p.groups * (p.K / p.groups) * p.R * p.S <= 4096;
}
// Many images too small to fill the other algorithms' vectors. It keeps the bits of the algorithm
// that computes an image alone.
inline bool is_small_conv2d(const ConvParams& p) {
  constexpr int64_t kRow = 32;
  return supports_conv2d_chwn(p).empty() && std::max(p.W, p.Q) <= kRow && has_few_products(p);
}
inline bool suits_conv2d_chwn(const ConvParams& p) {
  constexpr int64_t kImages = 32;
  return p.N >= kImages && is_small_conv2d(p);
}
inline bool prefers_conv2d_chwn(const ConvParams& p, bool nhwc, ConvPass pass) {
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  if (!suits_conv2d_chwn(p)) return false;
  const bool grey = C == 1 && K >= 4;
  if (pass == ConvPass::kWgrad || grey) return !prefers_conv2d_igemm(p, nhwc, pass);
  const bool by_columns = pass == ConvPass::kDgrad && C < 16 && prefers_conv2d_igemm(p, nhwc, pass);
  return std::min(C, K) >= 4 && !by_columns;
}

// Of bfloat16, where its pairs are multiplied at twice the rate of float32, or tiles at 16 times
// that. Lanes are the channels that the pass computes, so a few of them leave most lanes idle;
// Winograd in float32 arithmetic is ahead only of pairs, only forwards and backwards to the input,
// and only where its tiles are many.
inline bool prefers_conv2d_dots(const ConvParams& p, bool nhwc, ConvPass pass) {
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const bool tiles = current_isa() == Isa::kAmxBf16;
  // Phases of a depthwise gradient have too few taps to pay for a copy each (processors with tiles
  // copy none: see conv2d_amx.h); the weight gradient has the lanes of one group alone.
  if (nhwc && has_narrow_groups(p) && p.C >= 16)
    return pass == ConvPass::kFprop ||
           (pass == ConvPass::kDgrad && (C > 1 || tiles || (p.stride_h == 1 && p.stride_w == 1)));
  const int64_t lanes = pass == ConvPass::kDgrad ? C : K;
  const int64_t reduced = pass == ConvPass::kFprop ? C : pass == ConvPass::kDgrad ? K : p.P * p.Q;
  if (tiles) {  // chwn, which keeps the bits of others, has what has few products in registers
    const bool by_columns = pass == ConvPass::kDgrad && prefers_conv2d_igemm(p, nhwc, pass);
    return !has_narrow_groups(p) && (lanes >= 12 || pass == ConvPass::kWgrad ||
                                     (lanes >= 3 && (by_columns || !is_small_conv2d(p))));
  }
  if (lanes < 12 && (lanes < 6 || reduced < 6)) return false;
  if (lanes < 12 && pass != ConvPass::kWgrad && is_small_conv2d(p)) return false;  // chwn, direct
  const bool by_winograd = prefers_conv2d_winograd(p, DType::kBFloat16);
  return !by_winograd || pass == ConvPass::kWgrad || std::min(p.P / p.dil_h, p.Q / p.dil_w) < 28;
}

inline ConvAlgo select_conv2d(const char* op, const ConvParams& p, DType dtype, bool nhwc,
                              const std::string& algo, ConvPass pass) {
  const std::string depthwise = supports_conv2d_depthwise(p, dtype, pass);
  const std::string winograd = supports_conv2d_winograd(p), dots = supports_conv2d_dots(dtype);
  const std::string chwn = supports_conv2d_chwn(p);
  if (algo == "auto") {
    if (dots.empty() && prefers_conv2d_dots(p, nhwc, pass)) return ConvAlgo::kDots;
    if (prefers_conv2d_depthwise(p, dtype, nhwc, pass)) return ConvAlgo::kDepthwise;
    if (prefers_conv2d_winograd(p, dtype)) return ConvAlgo::kWinograd;
    if (prefers_conv2d_chwn(p, nhwc, pass)) return ConvAlgo::kChwn;
    return prefers_conv2d_igemm(p, nhwc, pass) ? ConvAlgo::kIgemm : ConvAlgo::kDirect;
  }
  if (algo == "direct") return ConvAlgo::kDirect;
  if (algo == "igemm") return ConvAlgo::kIgemm;
  if (algo == "winograd") {
    if (!winograd.empty()) fail(op, "algo 'winograd' ", winograd);
    return ConvAlgo::kWinograd;
  }
  if (algo == "dots") {
    if (!dots.empty()) fail(op, "algo 'dots' ", dots);
    return ConvAlgo::kDots;
  }
  if (algo == "chwn") {
    if (!chwn.empty()) fail(op, "algo 'chwn' ", chwn);
    return ConvAlgo::kChwn;
  }
  if (algo != "depthwise")
    fail(op,
         "algo must be 'auto', 'direct', 'chwn', 'igemm', 'depthwise', 'winograd' or 'dots' on the "
         "CPU, got '",
         algo, "'");
  if (!depthwise.empty()) fail(op, "algo 'depthwise' ", depthwise);
  return ConvAlgo::kDepthwise;
}

// Where conv2d takes another algorithm for speed, direct and chwn still win with few products: they
// pool what they have in registers or the L2 cache, and both have the same sums, which they hand on
// unrounded. Groups alone in their lanes have few products, too, and win all the same, but for
// planes of 16-bit types, which go through memory twice more.
inline ConvAlgo select_conv2d_block(const char* op, const ConvParams& p, DType dtype, bool nhwc,
                                    const std::string& algo) {
  const ConvAlgo chosen = select_conv2d(op, p, dtype, nhwc, algo, ConvPass::kFprop);
  const bool narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  const bool by_groups =
      chosen == ConvAlgo::kDepthwise || (chosen == ConvAlgo::kDots && has_narrow_groups(p));
  if (algo != "auto" || (by_groups && (nhwc || !narrow))) return chosen;
  if (suits_conv2d_chwn(p)) return ConvAlgo::kChwn;
  return has_few_products(p) ? ConvAlgo::kDirect : chosen;
}

}  // namespace cnnkern
