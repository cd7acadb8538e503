// Which CPU algorithm computes a convolution: predicates that select and, where a name is forced,
// explain.
#pragma once
#include "geometry.h"

namespace cnnkern {

enum class ConvAlgo { kDirect, kDepthwise };
constexpr const char* kConvAlgoNames[] = {"direct", "depthwise"};

// Empty if the algorithm applies, else the reason why it does not.
inline std::string supports_conv2d_depthwise(const ConvParams& p, bool nhwc) {
  const int64_t in = p.C / p.groups, out = p.K / p.groups;
  if (in == 1 && out == 1) return "";
  if (in == out && (in == 2 || in == 4 || in == 8))
    return nhwc ? "" : "needs channels_last tensors for more than one channel a group";
  return "needs 1, 2, 4 or 8 channels a group, as many in as out, got " + std::to_string(in) +
         " in and " + std::to_string(out) + " out";
}

// Autograd hands the name of the forward pass on, but a gradient comes in the layout that it comes
// in: with one that does not do it is computed by 'direct', where the forward pass refuses.
inline ConvAlgo select_conv2d(const char* op, const ConvParams& p, bool nhwc,
                              const std::string& algo, bool is_gradient) {
  if (algo == "direct") return ConvAlgo::kDirect;
  if (algo != "auto" && algo != "depthwise")
    fail(op, "algo must be 'auto', 'direct' or 'depthwise' on the CPU, got '", algo, "'");
  const std::string reason = supports_conv2d_depthwise(p, nhwc);
  if (reason.empty()) return ConvAlgo::kDepthwise;
  const std::string never = supports_conv2d_depthwise(p, true);
  if (algo == "depthwise" && (!is_gradient || !never.empty()))
    fail(op, "algo 'depthwise' ", reason);
  return ConvAlgo::kDirect;
}

}  // namespace cnnkern
