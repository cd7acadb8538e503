// A thread moves one element; neighbours in the output are neighbours in the grid, so that stores
// are whole sectors whatever the loads are.
#include "common.cuh"
#include "copy.h"

namespace cnnkern {
namespace {

// The dimensions from the outermost of the output to its innermost.
struct CopyAxes {
  int64_t size[4], from[4], to[4];
};

template <typename T>
__global__ void copy_kernel(const T* from, T* to, CopyAxes axes, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    int64_t rest = i, source = 0, target = 0;
    for (int d = 3; d >= 0; --d) {
      const int64_t at = rest % axes.size[d];
      rest /= axes.size[d];
      source += at * axes.from[d];
      target += at * axes.to[d];
    }
    to[target] = from[source];
  }
}

template <typename T>
cudaError_t launch(const void* from, void* to, const CopyAxes& axes, int64_t count,
                   cudaStream_t stream) {
  constexpr int kThreads = 256;
  copy_kernel<<<grid_for(count, kThreads), kThreads, 0, stream>>>(static_cast<const T*>(from),
                                                                  static_cast<T*>(to), axes, count);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_copy(const void* from, const int64_t* from_strides, void* to,
                        const int64_t* to_strides, const int64_t* size, int element_bytes,
                        cudaStream_t stream) {
  int order[4] = {0, 1, 2, 3};
  for (int i = 1; i < 4; ++i)
    for (int j = i; j > 0 && to_strides[order[j - 1]] < to_strides[order[j]]; --j) {
      const int swap = order[j];
      order[j] = order[j - 1], order[j - 1] = swap;
    }
  CopyAxes axes;
  int64_t count = 1;
  for (int d = 0; d < 4; ++d) {
    axes.size[d] = size[order[d]];
    axes.from[d] = from_strides[order[d]];
    axes.to[d] = to_strides[order[d]];
    count *= axes.size[d];
  }
  if (count == 0) return cudaSuccess;
  switch (element_bytes) {
    case 1: return launch<uint8_t>(from, to, axes, count, stream);
    case 2: return launch<uint16_t>(from, to, axes, count, stream);
    case 4: return launch<uint32_t>(from, to, axes, count, stream);
    default: return launch<uint64_t>(from, to, axes, count, stream);
  }
}

}  // namespace cnnkern
