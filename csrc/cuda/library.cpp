// What belongs to the CUDA library as a whole: its place in the dispatcher, and the probe that
// cnnkern._cuda_library calls by its C name, since the library is no Python module.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include "probe.h"

// The ops' binders register their kernels under the same key, each in its own file.
STABLE_TORCH_LIBRARY_IMPL(cnnkern, CUDA, m) {}

// Runs the probe on torch's stream of that device; returns nullptr, or what CUDA had to say.
extern "C" __attribute__((visibility("default"))) const char* cnnkern_cuda_probe(int device,
                                                                                 int* arch) {
  void *on_device = nullptr, *stream = nullptr;
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaMalloc(&on_device, sizeof(int));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS)
    error = cudaErrorInvalidResourceHandle;
  const auto torch_stream = static_cast<cudaStream_t>(stream);
  if (error == cudaSuccess)
    error = cnnkern::launch_probe(static_cast<int*>(on_device), torch_stream);
  if (error == cudaSuccess)
    error = cudaMemcpyAsync(arch, on_device, sizeof(int), cudaMemcpyDeviceToHost, torch_stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(torch_stream);
  cudaFree(on_device);
  cudaSetDevice(before);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
