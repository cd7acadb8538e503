// One thread writes the architecture that its own code was compiled for: a device between two
// listed ones runs the lower, or the PTX, and a benchmark should say which.
#include "probe.h"

namespace cnnkern {

__global__ void probe_kernel(int* arch) {
#ifdef __CUDA_ARCH__
  *arch = __CUDA_ARCH__;
#endif
}

cudaError_t launch_probe(int* arch, cudaStream_t stream) {
  probe_kernel<<<1, 1, 0, stream>>>(arch);
  return cudaGetLastError();
}

}  // namespace cnnkern
