// Kernels with memory behaviour that can be counted by hand; see test_report.py.
#define KERNEL extern "C" __global__ void
KERNEL copy_contiguous(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i] * 2.f + 1.f;
}
KERNEL copy_strided(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i * 8] * 2.f + 1.f;
}
template <int PITCH>
__device__ void transpose(const float* x, float* y) {
  __shared__ float tile[32][PITCH];
  for (int r = 0; r < 32; r++) tile[r][threadIdx.x] = x[r * 32 + threadIdx.x];
  __syncthreads();
  for (int r = 0; r < 32; r++) y[r * 32 + threadIdx.x] = tile[threadIdx.x][r];
}
KERNEL transpose_conflicts(const float* x, float* y) { transpose<32>(x, y); }
KERNEL transpose_padded(const float* x, float* y) { transpose<33>(x, y); }
