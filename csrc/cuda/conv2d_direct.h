// The general convolution kernels: every geometry, type and layout.
#pragma once
#include <string>

#include "conv2d.h"

namespace cnnkern {

inline std::string supports_conv2d_direct(const ConvQuery&) { return ""; }

cudaError_t launch_conv2d_direct(const ConvCall& call);

}  // namespace cnnkern
