// Correct kernels, and the same kernels with one bug each, chosen by -DBUG_...
#include <cstdint>
#define KERNEL extern "C" __global__ void

// Sum of 256 numbers per block: warp shuffles, then shared memory
KERNEL block_sum(const float* x, float* out) {
  __shared__ float partial[8];
  float v = x[blockIdx.x * 256 + threadIdx.x];
#ifdef BUG_WRONG_LANE
  for (int o = 8; o; o /= 2) v += __shfl_down_sync(0xffffffffu, v, o);
#else
  for (int o = 16; o; o /= 2) v += __shfl_down_sync(0xffffffffu, v, o);
#endif
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
#ifdef BUG_DIVERGENT_BARRIER
  if (threadIdx.x % 32 < 16)
    __syncthreads();
  else {
    out[blockIdx.x] = v;
    __syncthreads();
  }
#elif !defined(BUG_NO_SYNC)
  __syncthreads();
#endif
  if (threadIdx.x == 0) {
    for (int i = 1; i < 8; i++) v += partial[i];
    out[blockIdx.x] = v;
  }
}

// Each block reverses 64 float4 through shared memory with cp.async
KERNEL async_reverse(const float4* x, float4* y, int n) {
  __shared__ __align__(16) char memory[64 * 16 + 16];
#ifdef BUG_MISALIGNED
  char* tile = memory + 4;
#else
  char* tile = memory;
#endif
  const int i = blockIdx.x * 64 + threadIdx.x;
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(tile + threadIdx.x * 16);
#ifdef BUG_OUT_OF_BOUNDS
  if (i <= n)
#else
  if (i < n)
#endif
    asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(to), "l"(x + i) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
#ifndef BUG_NO_WAIT
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
  __syncthreads();
  if (i < n) y[i] = *(float4*)(tile + (63 - threadIdx.x) * 16);
}

// Neighbour exchange inside a warp through shared memory
KERNEL warp_exchange(const int* x, int* y) {
  __shared__ int tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
#ifndef BUG_NO_SYNCWARP
  __syncwarp();
#endif
  y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// A barrier some threads never reach
KERNEL missed_barrier(const float* x, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
#ifdef BUG_EARLY_RETURN
  if (threadIdx.x >= 40) return;
#endif
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// A whole-warp reduction whose last warp is incomplete
KERNEL tail_sum(const float* x, float* out, int n) {
#ifdef BUG_EXITED_LANES
  if (threadIdx.x >= n) return;
  float v = x[threadIdx.x];
#else
  float v = threadIdx.x < n ? x[threadIdx.x] : 0.f;
#endif
  for (int o = 16; o; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
  if (threadIdx.x == 0) out[0] = v;
}
