// Runs one kernel that tells which of the architectures in this library a device uses.
#pragma once
#include <cuda_runtime_api.h>

namespace cnnkern {

// Writes __CUDA_ARCH__ of the code that ran (900: compiled for 9.0) to device memory.
cudaError_t launch_probe(int* arch, cudaStream_t stream);

}  // namespace cnnkern
