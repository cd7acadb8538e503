// Kernels of the test extension. No PyTorch headers here: they would make nvcc take minutes.
#include <cuda_runtime.h>

__constant__ float scale_factor;
__device__ float bias_value = 0.5f;

__global__ void scale_kernel(const float* x, float* y, int n, int read_too_far) {
  extern __shared__ float tile[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  tile[threadIdx.x] = i < n + read_too_far ? x[i] : 0.f;
  __syncthreads();
  if (i < n) y[i] = tile[threadIdx.x] * scale_factor + bias_value;
}

cudaError_t scale(const float* x, float* y, int n, float factor, int read_too_far, size_t shared,
                  cudaStream_t stream) {
  cudaError_t e = cudaMemcpyToSymbolAsync(scale_factor, &factor, sizeof factor, 0,
                                          cudaMemcpyHostToDevice, stream);
  if (e) return e;
  if (shared > 48 * 1024 &&
      (e = cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)shared)))
    return e;
  scale_kernel<<<(n + 127) / 128, 128, shared, stream>>>(x, y, n, read_too_far);
  return cudaGetLastError();
}

// The same through cudaLaunchKernelEx, after asking for the occupancy; does not check for errors
// itself.
int scale_ex(const float* x, float* y, int n, int read_too_far, cudaStream_t stream) {
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale_kernel, 128, 512);
  cudaLaunchConfig_t config = {};
  config.gridDim = (n + 127) / 128, config.blockDim = 128, config.dynamicSmemBytes = 512,
  config.stream = stream;
  cudaMemsetAsync(y, 0, n * sizeof(float), stream);
  cudaLaunchKernelEx(&config, scale_kernel, x, y, n, read_too_far);
  return blocks;
}
