// Copies a tensor of any strides into a dense one: what a binder does to an operand that no kernel
// can address.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace cnnkern {

// `size` and both strides are n, c, h, w, in elements of `element_bytes` (1, 2, 4 or 8) bytes.
cudaError_t launch_copy(const void* from, const int64_t* from_strides, void* to,
                        const int64_t* to_strides, const int64_t* size, int element_bytes,
                        cudaStream_t stream);

}  // namespace cnnkern
