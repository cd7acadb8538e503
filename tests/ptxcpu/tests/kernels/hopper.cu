// Compiled for compute_90: stmatrix and mbarrier
#include <cstdint>
extern "C" __global__ void stmatrix_x4(const uint32_t* in, uint16_t* out) {
  __shared__ __align__(16) uint16_t tile[4 * 64];
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(tile + threadIdx.x * 8);
  const uint32_t* r = in + threadIdx.x * 4;
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
  __syncwarp();
  for (int i = threadIdx.x; i < 256; i += 32) out[i] = tile[i];
}
extern "C" __global__ void stmatrix_x2_trans(const uint32_t* in, uint16_t* out) {
  __shared__ __align__(16) uint16_t tile[4 * 64];
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(tile + threadIdx.x * 8);
  const uint32_t* r = in + threadIdx.x * 4;
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0],{%1,%2};" ::"r"(address),
               "r"(r[0]), "r"(r[1])
               : "memory");
  __syncwarp();
  for (int i = threadIdx.x; i < 128; i += 32) out[i] = tile[i];
}
extern "C" __global__ void mbarrier_handover(const int* in,
                                             int* out) {  // 64 threads, warp 0 produces
  __shared__ __align__(8) uint64_t barrier;
  __shared__ int tile[32];
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(&barrier);
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0],32;" ::"r"(address) : "memory");
  __syncthreads();
  for (int round = 0; round < 2; round++) {
    if (threadIdx.x < 32) {
      tile[threadIdx.x] = in[threadIdx.x] + round;
      asm volatile("{.reg .b64 s; mbarrier.arrive.shared.b64 s,[%0];}" ::"r"(address) : "memory");
    } else {
      uint32_t done = 0;
      while (!done)
        asm volatile(
            "{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p,[%1],%2; selp.u32 %0,1,0,p;}"
            : "=r"(done)
            : "r"(address), "r"(round)
            : "memory");
      out[round * 32 + threadIdx.x - 32] = tile[63 - threadIdx.x];
    }
    __syncthreads();
  }
}
