// The part of the driver API that loads and launches kernels of a file, as AOTInductor's packages
// do. The rest of the driver API is in driver_stub.c, and refuses.
#include <cuda.h>
#include <cstring>
#include <fstream>
#include <iterator>
#include "registry.h"
#undef cuModuleLoad
#undef cuModuleLoadData

// Modules live for ever: a graph may still launch kernels of one that is unloaded.
struct Module {
  std::string image;
  FatBinary binary;
};

static CUresult load(CUmodule* module, std::string image) {
  const uint32_t fat_binary = 0xBA55ED50;
  if (image.size() < 16 || memcmp(image.data(), &fat_binary, 4) != 0) {
    set_error(cudaErrorNoKernelImageForDevice, "a cubin has no PTX: load a fat binary");
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  Module* made = new Module{std::move(image), {}};
  made->binary.image = made->image.data();
  *module = (CUmodule)made;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoad(CUmodule* module, const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  return load(module, {std::istreambuf_iterator<char>(file), {}});
}
EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return load(module, std::string((const char*)image, image_size(image)));
}
EXPORT CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Lock lock(registry().mutex);
  char* key = new char;  // an address of its own, as that of a kernel's stub is
  Function& f = registry().functions[key];
  f.name = name;
  f.binary = &((Module*)module)->binary;
  if (!kernel_info(f)) return CUDA_ERROR_NOT_FOUND;
  *function = (CUfunction)key;
  return CUDA_SUCCESS;
}
// Attributes and errors have the numbers that the runtime gives them.
EXPORT CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
  return (CUresult)cudaFuncSetAttribute((const void*)f, (cudaFuncAttribute)attribute, value);
}
EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                               unsigned by, unsigned bz, unsigned shared, CUstream stream,
                               void** args, void** extra) {
  if (extra) return CUDA_ERROR_NOT_SUPPORTED;
  return (CUresult)cudaLaunchKernel((const void*)f, {gx, gy, gz}, {bx, by, bz}, args, shared,
                                    stream);
}
EXPORT CUresult cuGetErrorString(CUresult e, const char** text) {
  *text = cudaGetErrorString((cudaError_t)e);
  return CUDA_SUCCESS;
}
