// New tensors for what the CPU kernels write as a whole.
#pragma once
#include <optional>

#include "check.h"

namespace cnnkern {

// A dense tensor in that layout; in a block of the cache (caching_allocator.h) where it is large.
Tensor new_cpu_output(const Tensor& like, const Ints& sizes, bool nhwc,
                      std::optional<ScalarType> dtype = std::nullopt);

// Tests only: fills each new tensor with 0xff, NaN if it has floats, so that what is not written
// is seen.
void poison_outputs(bool on);

}  // namespace cnnkern
