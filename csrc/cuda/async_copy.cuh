// 16 bytes from global to shared memory, without a detour through registers where the device can.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace cnnkern {

// Both addresses are multiples of 16.
__device__ __forceinline__ void copy16_async(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(from)
      : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}

// For this thread's own; a barrier shows them to the others.
__device__ __forceinline__ void wait_for_copies16() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

}  // namespace cnnkern
