/* libcuda.so.1: PyTorch resolves these symbols when it initialises. The driver API itself is not
   emulated: what goes through it, such as a statically linked CUDA runtime, bypasses the fake
   runtime and fails here. */
#include <stdio.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))
enum { SUCCESS = 0, NOT_SUPPORTED = 801 };

static int unsupported(const char* name) {
  if (getenv("PTXCPU_LOG")) fprintf(stderr, "ptxcpu: driver function %s is not supported\n", name);
  return NOT_SUPPORTED;
}
#define UNSUPPORTED(name) \
  EXPORT int name(void) { return unsupported(#name); }

static int explain(void) {
  static int done;
  if (!done++)
    fprintf(stderr,
            "ptxcpu: the CUDA driver API is not emulated. Code linked with -cudart static (the "
            "default of nvcc "
            "and CMake) ends up here; link with -cudart shared.\n");
  return NOT_SUPPORTED;
}
EXPORT int cuInit(unsigned flags) {
  (void)flags;
  return explain();
}
EXPORT int cuGetProcAddress_v2(const char* name, void** p, int version, unsigned long long flags,
                               void* status) {
  (void)name, (void)version, (void)flags, (void)status;
  *p = 0;
  return explain();
}
EXPORT int cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}
EXPORT int cuDeviceGetCount(int* count) {
  *count = 1;
  return SUCCESS;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  (void)device;
  *flags = 0, *active = 1;
  return SUCCESS;
}
EXPORT int cuCtxGetCurrent(void** context) {
  *context = (void*)1;
  return SUCCESS;
}
EXPORT int cuGetErrorString(int error, const char** text) {
  (void)error;
  *text = "CUDA driver API not emulated";
  return SUCCESS;
}
EXPORT int cuGetErrorName(int error, const char** text) {
  (void)error;
  *text = "CUDA_ERROR_NOT_SUPPORTED";
  return SUCCESS;
}

UNSUPPORTED(cuCtxFromGreenCtx)
UNSUPPORTED(cuCtxPopCurrent)
UNSUPPORTED(cuCtxPushCurrent)
UNSUPPORTED(cuCtxSetCurrent)
UNSUPPORTED(cuDeviceGetAttribute)
UNSUPPORTED(cuDeviceGetDevResource)
UNSUPPORTED(cuDeviceGetUuid)
UNSUPPORTED(cuDevicePrimaryCtxRetain)
UNSUPPORTED(cuFuncSetCacheConfig)
UNSUPPORTED(cuGreenCtxCreate)
UNSUPPORTED(cuGreenCtxDestroy)
UNSUPPORTED(cuGreenCtxStreamCreate)
UNSUPPORTED(cuLaunchCooperativeKernel)
UNSUPPORTED(cuLinkAddData_v2)
UNSUPPORTED(cuMemAddressFree)
UNSUPPORTED(cuMemAddressReserve)
UNSUPPORTED(cuMemCreate)
UNSUPPORTED(cuMemExportToShareableHandle)
UNSUPPORTED(cuMemGetAddressRange)
UNSUPPORTED(cuMemGetAddressRange_v2)
UNSUPPORTED(cuMemGetAllocationGranularity)
UNSUPPORTED(cuMemGetAllocationPropertiesFromHandle)
UNSUPPORTED(cuMemImportFromShareableHandle)
UNSUPPORTED(cuMemMap)
UNSUPPORTED(cuMemRelease)
UNSUPPORTED(cuMemRetainAllocationHandle)
UNSUPPORTED(cuMemSetAccess)
UNSUPPORTED(cuMemUnmap)
UNSUPPORTED(cuMemsetD32Async)
UNSUPPORTED(cuMulticastAddDevice)
UNSUPPORTED(cuMulticastBindMem)
UNSUPPORTED(cuMulticastCreate)
UNSUPPORTED(cuMulticastUnbind)
UNSUPPORTED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
UNSUPPORTED(cuPointerGetAttribute)
UNSUPPORTED(cuStreamWriteValue32)
UNSUPPORTED(cuTensorMapEncodeTiled)
