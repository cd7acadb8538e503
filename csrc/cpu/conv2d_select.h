// Which CPU algorithm computes a convolution: predicates that select and, where a name is forced,
// explain.
#pragma once
#include "geometry.h"

namespace cnnkern {

enum class ConvAlgo { kDirect, kDepthwise };
constexpr const char* kConvAlgoNames[] = {"direct", "depthwise"};

// Empty if the algorithm applies, else the reason why it does not.
inline std::string supports_conv2d_depthwise(const ConvParams& p) {
  const int64_t in = p.C / p.groups, out = p.K / p.groups;
  if (in == out && (in == 1 || in == 2 || in == 4 || in == 8)) return "";
  return "needs 1, 2, 4 or 8 channels a group, as many in as out, got " + std::to_string(in) +
         " in and " + std::to_string(out) + " out";
}

// `nhwc`: the operands are channels_last, which the depthwise kernels need. Autograd hands the name
// of the forward pass on, but a gradient comes in the layout that it comes in: with the wrong one
// the gradient is computed by 'direct', where the forward pass refuses.
inline ConvAlgo select_conv2d(const char* op, const ConvParams& p, bool nhwc,
                              const std::string& algo, bool is_gradient) {
  if (algo == "direct") return ConvAlgo::kDirect;
  const std::string reason = supports_conv2d_depthwise(p);
  if (algo == "auto") return reason.empty() && nhwc ? ConvAlgo::kDepthwise : ConvAlgo::kDirect;
  if (algo != "depthwise")
    fail(op, "algo must be 'auto', 'direct' or 'depthwise' on the CPU, got '", algo, "'");
  if (!reason.empty()) fail(op, "algo 'depthwise' ", reason);
  if (!nhwc && !is_gradient) fail(op, "algo 'depthwise' needs a channels_last input");
  return nhwc ? ConvAlgo::kDepthwise : ConvAlgo::kDirect;
}

}  // namespace cnnkern
