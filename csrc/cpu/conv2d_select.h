// Which CPU algorithm computes a convolution: predicates that select and, where a name is forced, explain.
#pragma once
#include "geometry.h"

namespace cnnkern {

enum class ConvAlgo { kDirect, kDepthwise };
constexpr const char* kConvAlgoNames[] = {"direct", "depthwise"};

// Empty if the algorithm applies, else the reason why it does not. `nhwc`: all operands are channels_last.
inline std::string supports_conv2d_depthwise(const ConvParams& p, bool nhwc) {
  if (p.groups != p.C || p.K != p.C)
    return "needs one input and one output channel per group, got " + std::to_string(p.C) + " and " +
           std::to_string(p.K) + " channels in " + std::to_string(p.groups) + " groups";
  if (!nhwc) return "needs channels_last tensors";
  return "";
}

inline ConvAlgo select_conv2d(const char* op, const ConvParams& p, bool nhwc, const std::string& algo) {
  if (algo == "direct") return ConvAlgo::kDirect;
  const std::string reason = supports_conv2d_depthwise(p, nhwc);
  if (algo == "auto") return reason.empty() ? ConvAlgo::kDepthwise : ConvAlgo::kDirect;
  if (algo != "depthwise")
    fail(op, "algo must be 'auto', 'direct' or 'depthwise' on the CPU, got '", algo, "'");
  if (!reason.empty()) fail(op, "algo 'depthwise' ", reason);
  return ConvAlgo::kDepthwise;
}

}  // namespace cnnkern
