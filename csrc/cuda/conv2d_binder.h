// How a binder runs a convolution: conv2d's own, and the fused block's.
#pragma once
#include "binder.h"
#include "conv2d.h"

namespace cnnkern {

// Selects the algorithm, gives it its workspace, launches it. Nothing to do for an empty output.
void run_conv2d(const OnDevice& on, const Tensor& like, ConvCall call, const std::string& algo);

}  // namespace cnnkern
