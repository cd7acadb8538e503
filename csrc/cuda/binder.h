// What the CUDA binders share: the current stream of a tensor's device, dense operands, workspaces,
// and CUDA's errors in words. No torch kernel is called, so ops can be captured in a CUDA graph.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "check.h"
#include "copy.h"

namespace cnnkern {

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, "CUDA: ", cudaGetErrorString(error));
}

// Makes a tensor's device the current one, and knows its stream and its architecture.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& t)
      : op(op), device(t.get_device_index()), guard_(t.get_device_index()) {
    void* handle = nullptr;
    if (aoti_torch_get_current_cuda_stream(device, &handle) != AOTI_TORCH_SUCCESS)
      fail(op, "CUDA: device ", int(device), " has no current stream");
    stream = static_cast<cudaStream_t>(handle);
  }

  // Compute capability as one number: 80 for 8.0.
  int arch() const {
    int major = 0, minor = 0;
    check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check_cuda(op, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return major * 10 + minor;
  }

  void check(cudaError_t error) const { check_cuda(op, error); }

  // The tensor itself where it is dense in that layout already, else a copy. `nhwc`: 4-D only.
  Tensor dense(const Tensor& t, bool nhwc) const {
    if (is_dense(t, nhwc)) return t;
    int64_t size[4] = {1, 1, 1, 1}, from[4] = {}, to[4] = {};
    const int64_t first = 4 - t.dim();
    for (int64_t d = 0; d < t.dim(); ++d) {
      size[first + d] = t.size(d);
      from[first + d] = t.stride(d);
    }
    Tensor copy = new_output(t, sizes_of(t), nhwc);
    for (int64_t d = 0; d < t.dim(); ++d) to[first + d] = copy.stride(d);
    check(
        launch_copy(t.data_ptr(), from, copy.data_ptr(), to, size, int(t.element_size()), stream));
    return copy;
  }

  // Uninitialised device memory that lives as long as the returned tensor.
  Tensor workspace(const Tensor& like, int64_t bytes) const {
    return new_output(like, {bytes}, false, ScalarType::Byte);
  }

  const char* op;
  torch::stable::accelerator::DeviceIndex device;
  cudaStream_t stream;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace cnnkern
