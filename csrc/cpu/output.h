// New tensors for what the CPU kernels write as a whole.
#pragma once
#include <optional>

#include "check.h"

namespace cnnkern {

// new_output, in a block of the cache (caching_allocator.h) where it is large.
Tensor new_cpu_output(const Tensor& like, const Ints& sizes, bool nhwc,
                      std::optional<ScalarType> dtype = std::nullopt);

}  // namespace cnnkern
