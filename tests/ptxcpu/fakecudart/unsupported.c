/* CUDA runtime functions that PyTorch links to but emulation does not offer: they fail and say so.
 */
#include <stdio.h>
#include <stdlib.h>

static int unsupported(const char* name) {
  if (getenv("PTXCPU_LOG")) fprintf(stderr, "ptxcpu: %s is not supported\n", name);
  return 801; /* cudaErrorNotSupported */
}
#define UNSUPPORTED(name) \
  __attribute__((visibility("default"))) int name(void) { return unsupported(#name); }

/* Here because its further arguments, about dependencies, differ between CUDA versions. */
int ptxcpu_capture_info(void* stream, int* status, unsigned long long* id, void** graph);
__attribute__((visibility("default"))) int cudaStreamGetCaptureInfo(void* stream, int* status,
                                                                    unsigned long long* id,
                                                                    void** graph) {
  return ptxcpu_capture_info(stream, status, id, graph);
}

UNSUPPORTED(cudaDeviceEnablePeerAccess)
UNSUPPORTED(cudaDeviceGetDefaultMemPool)
UNSUPPORTED(cudaDeviceGetGraphMemAttribute)
UNSUPPORTED(cudaDeviceSetGraphMemAttribute)
UNSUPPORTED(cudaGraphAddNode)
UNSUPPORTED(cudaGraphConditionalHandleCreate)
UNSUPPORTED(cudaGraphNodeGetDependencies)
UNSUPPORTED(cudaGraphRetainUserObject)
UNSUPPORTED(cudaIpcCloseMemHandle)
UNSUPPORTED(cudaIpcGetEventHandle)
UNSUPPORTED(cudaIpcGetMemHandle)
UNSUPPORTED(cudaIpcOpenEventHandle)
UNSUPPORTED(cudaIpcOpenMemHandle)
UNSUPPORTED(cudaKernelSetAttributeForDevice)
UNSUPPORTED(cudaLibraryGetKernel)
UNSUPPORTED(cudaLibraryLoadData)
UNSUPPORTED(cudaLibraryUnload)
UNSUPPORTED(cudaMemPoolGetAttribute)
UNSUPPORTED(cudaMemPoolSetAccess)
UNSUPPORTED(cudaMemPoolSetAttribute)
UNSUPPORTED(cudaMemPoolTrimTo)
UNSUPPORTED(cudaStreamAddCallback)
UNSUPPORTED(cudaStreamBeginCaptureToGraph)
UNSUPPORTED(cudaStreamUpdateCaptureDependencies)
UNSUPPORTED(cudaUserObjectCreate)
UNSUPPORTED(cudaUserObjectRelease)
