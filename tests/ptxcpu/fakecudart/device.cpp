// Device identity, memory and errors of the fake CUDA runtime. Everything is synchronous.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "streams.h"
#undef cudaGetDeviceProperties

static const size_t TOTAL_MEMORY = 16ull << 30;

// ---------------------------------------------------------------- errors
cudaError_t set_error(cudaError_t e, const std::string& message) {
  Registry& r = registry();
  r.last_error = e;
  if (!message.empty())
    r.messages[e] = message;
  else
    r.messages.erase(e);
  return e;
}
cudaError_t take_error() {
  Registry& r = registry();
  const cudaError_t e = r.unreported;
  r.unreported = cudaSuccess;
  if (e) r.last_error = cudaSuccess;
  return e;
}
EXPORT cudaError_t cudaGetLastError() {
  Registry& r = registry();
  const cudaError_t e = r.last_error;
  r.last_error = r.unreported = cudaSuccess;
  return e;
}
EXPORT cudaError_t cudaPeekAtLastError() { return registry().last_error; }
EXPORT const char* cudaGetErrorName(cudaError_t e) {
  static thread_local char text[40];
  snprintf(text, sizeof text, e ? "cudaError(%d)" : "cudaSuccess", (int)e);
  return text;
}
EXPORT const char* cudaGetErrorString(cudaError_t e) {
  static thread_local std::string text;
  if (!e) return "no error";
  Lock lock(registry().mutex);
  auto found = registry().messages.find(e);
  text = "emulated CUDA error " + std::to_string((int)e) +
         (found == registry().messages.end() ? "" : ": " + found->second);
  return text.c_str();
}

// ---------------------------------------------------------------- memory. Device memory is host
// memory. New memory is filled with NaN bytes, and padded so that allocations never touch.
static cudaError_t allocate(void** p, size_t n, bool host) {
  if (cudaError_t e = refuse_if_unsafe("allocating memory")) return e;
  Lock lock(registry().mutex);
  *p = nullptr;
  if (!n) return cudaSuccess;
  if (n > TOTAL_MEMORY) return set_error(cudaErrorMemoryAllocation, "out of emulated memory");
  void* q = aligned_alloc(512, (n + 1023) / 512 * 512);
  if (!q) return set_error(cudaErrorMemoryAllocation, "out of host memory");
  memset(q, 0xff, n);
  *p = q;
  registry().memory[(uint64_t)q] = {n, host};
  registry().ranges.clear();
  return cudaSuccess;
}
static cudaError_t release(void* p) {
  if (cudaError_t e = refuse_if_unsafe("freeing memory")) return e;
  Lock lock(registry().mutex);
  if (!p) return cudaSuccess;
  if (!registry().memory.erase((uint64_t)p))
    return set_error(cudaErrorInvalidValue, "freeing memory that was not allocated");
  registry().ranges.clear();
  free(p);
  return cudaSuccess;
}
static std::pair<const uint64_t, Allocation>* containing(const void* p) {
  auto& memory = registry().memory;
  auto it = memory.upper_bound((uint64_t)p);
  if (it == memory.begin()) return nullptr;
  --it;
  return (uint64_t)p - it->first < it->second.size ? &*it : nullptr;
}
// Whether [p, p+n) stays inside the allocation it starts in; host pointers we do not know are fine.
static bool inside(const void* p, size_t n) {
  auto* a = containing(p);
  return !a || a->second.size - ((uint64_t)p - a->first) >= n;
}
static cudaError_t copy(void* to, const void* from, size_t n) {
  Lock lock(registry().mutex);
  if (!inside(to, n) || !inside(from, n))
    return set_error(cudaErrorInvalidValue, "copy runs over the end of an allocation");
  memmove(to, from, n);
  return take_error();
}
static cudaError_t fill(void* p, int value, size_t n) {
  Lock lock(registry().mutex);
  if (!inside(p, n))
    return set_error(cudaErrorInvalidValue, "memset runs over the end of an allocation");
  memset(p, value, n);
  return take_error();
}
static cudaError_t copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                           size_t width, size_t height) {
  for (size_t i = 0; i < height; i++)
    if (cudaError_t e = copy((char*)to + i * to_pitch, (const char*)from + i * from_pitch, width))
      return e;
  return take_error();
}

EXPORT cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n, false); }
EXPORT cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) {
  return allocate(p, n, false);
}
EXPORT cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return allocate(p, n, false); }
EXPORT cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return allocate(p, n, true); }
EXPORT cudaError_t cudaMallocHost(void** p, size_t n) { return allocate(p, n, true); }
EXPORT cudaError_t cudaFree(void* p) { return release(p); }
EXPORT cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return release(p); }
EXPORT cudaError_t cudaFreeHost(void* p) { return release(p); }
EXPORT cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  Lock lock(registry().mutex);
  registry().memory[(uint64_t)p] = {n, true};
  registry().ranges.clear();
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* p) {
  Lock lock(registry().mutex);
  registry().memory.erase((uint64_t)p);
  registry().ranges.clear();
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostGetDevicePointer(void** d, void* h, unsigned) {
  *d = h;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) {
  if (cudaError_t e = refuse_in_legacy_stream("cudaMemcpy")) return e;
  return copy(d, s, n);
}
EXPORT cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind,
                                   cudaStream_t stream) {
  return submit(stream, [=] { return copy(d, s, n); });
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n,
                                       cudaStream_t stream) {
  return submit(stream, [=] { return copy(d, s, n); });
}
EXPORT cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h,
                                cudaMemcpyKind) {
  if (cudaError_t e = refuse_in_legacy_stream("cudaMemcpy2D")) return e;
  return copy_2d(d, dp, s, sp, w, h);
}
EXPORT cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w,
                                     size_t h, cudaMemcpyKind, cudaStream_t stream) {
  return submit(stream, [=] { return copy_2d(d, dp, s, sp, w, h); });
}
EXPORT cudaError_t cudaMemset(void* p, int v, size_t n) {
  if (cudaError_t e = refuse_in_legacy_stream("cudaMemset")) return e;
  return fill(p, v, n);
}
EXPORT cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t stream) {
  return submit(stream, [=] { return fill(p, v, n); });
}
EXPORT cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  Lock lock(registry().mutex);
  size_t used = 0;
  for (auto& m : registry().memory) used += m.second.size;
  *total = TOTAL_MEMORY, *available = TOTAL_MEMORY - std::min(used, TOTAL_MEMORY);
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Lock lock(registry().mutex);
  memset(a, 0, sizeof *a);
  auto* found = containing(p);
  a->type = !found               ? cudaMemoryTypeUnregistered
            : found->second.host ? cudaMemoryTypeHost
                                 : cudaMemoryTypeDevice;
  a->devicePointer = found ? (void*)p : nullptr;
  a->hostPointer = !found || found->second.host ? (void*)p : nullptr;
  return cudaSuccess;
}

// ---------------------------------------------------------------- device identity
EXPORT cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int d) {
  return d == 0 ? cudaSuccess : set_error(cudaErrorInvalidDevice, "there is one emulated device");
}
EXPORT cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int n, int) {
  snprintf(text, n, "0000:00:00.0");
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "ptxcpu emulated sm_80");
  const char* capability = getenv("PTXCPU_CAPABILITY");  // read at each call: a test may change it
  const int arch = capability ? atoi(capability) : 80;
  p->major = arch / 10, p->minor = arch % 10;
  p->totalGlobalMem = TOTAL_MEMORY;
  p->multiProcessorCount = 108;
  p->sharedMemPerBlock = SHARED_DEFAULT, p->sharedMemPerBlockOptin = SHARED_LIMIT;
  p->sharedMemPerMultiprocessor = SHARED_PER_SM, p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048,
  p->maxBlocksPerMultiProcessor = 32;
  const int grid[3] = {2147483647, 65535, 65535}, block[3] = {1024, 1024, 64};
  memcpy(p->maxGridSize, grid, sizeof grid);
  memcpy(p->maxThreadsDim, block, sizeof block);
  p->l2CacheSize = 40 << 20, p->memoryBusWidth = 5120;
  p->memPitch = 2147483647, p->textureAlignment = 512;
  p->unifiedAddressing = p->concurrentKernels = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr attribute, int) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, 0);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *v = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *v = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *v = p.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *v = 1024; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *v = p.regsPerBlock; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxGridDimX: *v = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrL2CacheSize: *v = p.l2CacheSize; break;
    case cudaDevAttrClockRate: *v = 1410000; break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrConcurrentKernels: *v = 1; break;
    default: *v = 0;
  }
  return cudaSuccess;
}

// ---------------------------------------------------------------- the rest
EXPORT cudaError_t cudaProfilerStart() { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop() { return cudaSuccess; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** p, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* r) {
  *p = nullptr;
  if (r) *r = cudaDriverEntryPointSymbolNotFound;
  return cudaErrorNotSupported;
}
