// Device variables by their host symbols, and the attributes of kernels.
#include <dlfcn.h>
#include <algorithm>
#include <cstring>
#include "registry.h"

static cudaError_t symbol_address(void** p, const void* host) {
  Lock lock(registry().mutex);
  auto found = registry().variables.find(host);
  if (found == registry().variables.end()) return set_error(cudaErrorInvalidSymbol);
  Variable& v = found->second;
  *p = load_module(*v.binary) ? dlsym(v.binary->module, ("global_" + c_identifier(v.name)).c_str())
                              : nullptr;
  return *p ? cudaSuccess
            : set_error(cudaErrorInvalidSymbol, "variable " + v.name + ": " + v.binary->error);
}
EXPORT cudaError_t cudaGetSymbolAddress(void** p, const void* symbol) {
  return symbol_address(p, symbol);
}
EXPORT cudaError_t cudaGetSymbolSize(size_t* n, const void* symbol) {
  auto found = registry().variables.find(symbol);
  if (found == registry().variables.end()) return set_error(cudaErrorInvalidSymbol);
  *n = found->second.size;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* source, size_t n,
                                      size_t offset, cudaMemcpyKind kind) {
  void* p;
  if (cudaError_t e = symbol_address(&p, symbol)) return e;
  return cudaMemcpy((char*)p + offset, source, n, kind);
}
EXPORT cudaError_t cudaMemcpyFromSymbol(void* target, const void* symbol, size_t n, size_t offset,
                                        cudaMemcpyKind kind) {
  void* p;
  if (cudaError_t e = symbol_address(&p, symbol)) return e;
  return cudaMemcpy(target, (char*)p + offset, n, kind);
}
EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* source, size_t n,
                                           size_t offset, cudaMemcpyKind kind, cudaStream_t s) {
  void* p;
  if (cudaError_t e = symbol_address(&p, symbol)) return e;
  return cudaMemcpyAsync((char*)p + offset, source, n, kind, s);
}
EXPORT cudaError_t cudaMemcpyFromSymbolAsync(void* target, const void* symbol, size_t n,
                                             size_t offset, cudaMemcpyKind kind, cudaStream_t s) {
  void* p;
  if (cudaError_t e = symbol_address(&p, symbol)) return e;
  return cudaMemcpyAsync(target, (char*)p + offset, n, kind, s);
}

EXPORT cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  Lock lock(registry().mutex);
  auto found = registry().functions.find(host);
  if (found == registry().functions.end()) return set_error(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const ptxcpu::KernelInfo* k = kernel_info(found->second);
  if (value < 0 || value + (k ? (int)k->static_shared : 0) > SHARED_LIMIT)
    return set_error(cudaErrorInvalidValue, found->second.name + ": cannot have " +
                                                std::to_string(value) +
                                                " bytes of dynamic shared memory (163 KiB in all)");
  found->second.dynamic_limit = std::max(value, 1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* host) {
  Lock lock(registry().mutex);
  auto found = registry().functions.find(host);
  if (found == registry().functions.end()) return set_error(cudaErrorInvalidDeviceFunction);
  const ptxcpu::KernelInfo* k = kernel_info(found->second);
  memset(a, 0, sizeof *a);
  a->sharedSizeBytes = k ? k->static_shared : 0;
  a->maxThreadsPerBlock = k ? k->max_threads : 1024;
  a->numRegs = k && k->registers[0] > 0 ? k->registers[0] : 32;
  a->ptxVersion = a->binaryVersion = 80;
  a->maxDynamicSharedSizeBytes = found->second.dynamic_limit ? found->second.dynamic_limit
                                                             : SHARED_DEFAULT - a->sharedSizeBytes;
  return cudaSuccess;
}
// Registers are unknown unless profiling, so the answer may be higher than on a device.
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                          const void* host,
                                                                          int threads,
                                                                          size_t shared, unsigned) {
  cudaFuncAttributes a;
  if (cudaError_t e = cudaFuncGetAttributes(&a, host)) return e;
  const int warps = std::max(1, (threads + 31) / 32), bytes = (int)(shared + a.sharedSizeBytes);
  *blocks = std::min(32, 64 / warps);
  *blocks = std::min(*blocks, 65536 / ((a.numRegs + 7) / 8 * 8 * 32) / warps);
  if (bytes) *blocks = std::min(*blocks, SHARED_PER_SM / (bytes + 1024));
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host,
                                                                 int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, shared, 0);
}
