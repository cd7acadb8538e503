// Which CUDA algorithm computes a convolution: the table of predicates, the rule that picks from
// it, and the reasons it gives. Host code without torch or a GPU, so cnnkern._C can ask it, too.
#pragma once
#include "conv2d_depthwise.h"
#include "conv2d_direct.h"
#include "conv2d_igemm.h"
#include "conv2d_mma.h"
#include "conv2d_winograd.h"
#include "geometry.h"

namespace cnnkern {

struct ConvAlgorithm {
  const char* name;
  std::string (*supports)(const ConvQuery&);  // empty: it applies; else the reason why not
  bool (*prefers)(const ConvQuery&);          // 'auto' takes the first that applies and prefers
  int64_t (*workspace)(const ConvQuery&);     // bytes; nullptr: none
};

// In order of preference; the last applies to everything.
constexpr ConvAlgorithm kCudaConvAlgorithms[] = {
    // One channel a group has nothing to multiply matrices of: it takes the time of its bytes, and
    // this moves each once. A single channel with many filters is no such case.
    {"depthwise", supports_conv2d_depthwise,
     [](const ConvQuery& q) { return q.p.groups == q.p.C && q.p.K <= 4 * q.p.C; },
     workspace_conv2d_depthwise},
    // With a few channels a group a matrix tile is mostly zeros, and one group alone is part of a
    // sector; several groups a tile are read whole, in either layout. Of its loop 28 % are FMA, 5
    // TFLOP/s of an A100's 19.5. Tensor cores give 312 and keep 1/8 of it with 16 channels a group
    // (a tile is 64 wide, a step 32 deep), which is more, and 1/32 with 8, which is about as much.
    {"grouped", supports_conv2d_grouped,
     [](const ConvQuery& q) {
       const bool fills_mma = prefers_conv2d_mma(q) && supports_conv2d_mma(q).empty();
       return q.p.C <= 16 * q.p.groups && !fills_mma;
     },
     workspace_conv2d_depthwise},
    {"mma", supports_conv2d_mma, prefers_conv2d_mma, workspace_conv2d_mma},
    {"winograd", supports_conv2d_winograd, prefers_conv2d_winograd, workspace_conv2d_winograd},
    {"igemm", supports_conv2d_igemm, prefers_conv2d_igemm, workspace_conv2d_igemm},
    {"direct", supports_conv2d_direct, [](const ConvQuery&) { return true; },
     workspace_conv2d_direct},
};

// A forced algorithm that does not apply is refused in the forward pass. Autograd hands its name on
// to the gradients; those that it has no kernel for are computed by what 'auto' picks.
inline const ConvAlgorithm& select_cuda_conv2d(const char* op, ConvQuery query,
                                               const std::string& algo) {
  query.allow_tf32 = algo == "auto_tf32";
  if (algo != "auto" && algo != "auto_tf32") {
    const ConvAlgorithm* forced = nullptr;
    std::string names;
    for (const ConvAlgorithm& a : kCudaConvAlgorithms) {
      if (algo == a.name) forced = &a;
      names += std::string(", '") + a.name + "'";
    }
    if (!forced)
      fail(op, "algo must be one of 'auto', 'auto_tf32'", names, " on CUDA, got '", algo, "'");
    const std::string reason = forced->supports(query);
    if (reason.empty()) return *forced;
    if (query.pass == ConvPass::kFprop) fail(op, "algo '", algo, "' ", reason);
  }
  for (const ConvAlgorithm& a : kCudaConvAlgorithms)
    if (a.prefers(query) && a.supports(query).empty()) return a;
  fail(op, "no CUDA algorithm applies");
}

}  // namespace cnnkern
