// What the fake CUDA runtime knows: fat binaries, kernels, variables, memory and the current error.
#pragma once
#include <cuda_runtime.h>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#include "../runtime/device.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Mirrors LaunchConfig in runtime/scheduler.cpp.
struct LaunchConfig {
  uint32_t grid[3], block[3], dynamic_shared;
  int32_t order, check, workers;
  uint64_t seed;
  const ptxcpu::Range* allocations;
  uint64_t allocation_count;
  int32_t profile;
};

// One translation unit's device code. Its variables are loaded when first needed; each kernel is
// translated when first used.
struct FatBinary {
  const void* image;
  std::string ptx;         // the extracted PTX, a file in the cache
  void* module = nullptr;  // dlopen handle of the library that holds the variables
  std::string error;       // why there is no module
};
struct Function {
  std::string name;
  FatBinary* binary;
  std::string library;  // the shared object it was registered from
  const ptxcpu::KernelInfo* info = nullptr;
  std::string error;      // why the kernel could not be translated
  int dynamic_limit = 0;  // cudaFuncAttributeMaxDynamicSharedMemorySize, 0 if not set
};
struct Variable {
  std::string name;
  FatBinary* binary;
  size_t size;
};
struct Allocation {
  size_t size;
  bool host;
};

struct Registry {
  std::recursive_mutex mutex;
  std::map<const void*, Function> functions;
  std::map<const void*, Variable> variables;
  std::map<uint64_t, Allocation> memory;
  std::vector<ptxcpu::Range>
      ranges;  // `memory` and the modules' variables, sorted; rebuilt when empty
  std::vector<FatBinary*> loaded;
  cudaError_t last_error = cudaSuccess;  // for cudaGetLastError
  cudaError_t unreported = cudaSuccess;  // a kernel failure that no call has returned yet
  std::map<int, std::string> messages;   // detailed text for error codes
  uint64_t launches = 0;
};
Registry& registry();
typedef std::lock_guard<std::recursive_mutex> Lock;

const int SHARED_LIMIT = 166912, SHARED_DEFAULT = 49152, SHARED_PER_SM = 167936;

cudaError_t set_error(cudaError_t, const std::string& message = "");
cudaError_t take_error();  // reports a pending kernel failure once
bool logging();
size_t image_size(const void* fat_binary);
void* load_module(FatBinary&);  // nullptr, with binary.error set, on failure
const ptxcpu::KernelInfo* kernel_info(Function&);
std::string c_identifier(const std::string&);
