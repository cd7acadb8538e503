// Registration of device code, translation on demand, and kernel launches.
#include <dlfcn.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include "streams.h"

Registry& registry() {
  static Registry* r = new Registry;  // never destroyed: libraries unregister late
  return *r;
}

static int environment_int(const char* name, int fallback) {
  const char* v = getenv(name);
  return v && *v ? atoi(v) : fallback;
}

bool logging() { return environment_int("PTXCPU_LOG", 0); }

std::string c_identifier(const std::string& name) {
  std::string result;
  char code[8];
  for (unsigned char c : name) {
    if (isalnum(c) || c == '_')
      result += (char)c;
    else
      snprintf(code, sizeof code, "_%02x", c), result += code;
  }
  return result;
}

// ---------------------------------------------------------------- registration (called by nvcc's
// generated code)
struct FatBinaryWrapper {
  int magic, version;
  const void* image;
  void* file;
};

EXPORT void** __cudaRegisterFatBinary(void* wrapper) {
  FatBinary* b = new FatBinary;
  b->image = ((FatBinaryWrapper*)wrapper)->image;
  return (void**)b;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 1; }

EXPORT void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int,
                                   uint3*, uint3*, dim3*, dim3*, int*) {
  Lock lock(registry().mutex);
  Dl_info where;
  Function f;
  f.name = name;
  f.binary = (FatBinary*)handle;
  if (dladdr(host, &where)) f.library = where.dli_fname;
  registry().functions[host] = f;
}
EXPORT void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t size,
                              int, int) {
  Lock lock(registry().mutex);
  registry().variables[host] = {name, (FatBinary*)handle, size};
}

// ---------------------------------------------------------------- translation
// A fat binary starts with {u32 magic, u16 version, u16 header size, u64 payload size}.
size_t image_size(const void* image) {
  const unsigned char* p = (const unsigned char*)image;
  uint16_t header;
  uint64_t payload;
  memcpy(&header, p + 6, 2);
  memcpy(&payload, p + 8, 8);
  return header + payload;
}

static std::string read_all(FILE* f) {
  std::string text;
  char chunk[4096];
  for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;) text.append(chunk, n);
  return text;
}

// Runs `python -m ptxcpu translate` and loads the library it prints last; the line before that is
// the PTX file.
static void* translate(const std::string& arguments, std::string& error,
                       std::string* ptx = nullptr) {
  const char *python = getenv("PTXCPU_PYTHON"), *home = getenv("PTXCPU_HOME");
  if (!python || !home) {
    error = "PTXCPU_PYTHON and PTXCPU_HOME are not set; start with python -m ptxcpu run";
    return nullptr;
  }
  const std::string command = std::string("exec env -u LD_PRELOAD PYTHONPATH='") + home + "' '" +
                              python + "' -m ptxcpu translate " +
                              (getenv("PTXCPU_REPORT") ? "--profile " : "") + arguments + " 2>&1";
  const time_t start = time(nullptr);
  FILE* pipe = popen(command.c_str(), "r");
  std::string output = read_all(pipe);
  const int status = pclose(pipe);
  if (time(nullptr) - start > 5)
    fprintf(stderr, "ptxcpu: translated %s in %ld s (kept in the cache)\n", arguments.c_str(),
            (long)(time(nullptr) - start));
  while (!output.empty() && output.back() == '\n') output.pop_back();
  if (status) {
    error = output;
    return nullptr;
  }
  const size_t last = output.rfind('\n');
  if (ptx)
    *ptx = output.substr(output.rfind('\n', last - 1) + 1, last - output.rfind('\n', last - 1) - 1);
  void* library = dlopen(output.substr(last + 1).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) error = dlerror();
  return library;
}

void* load_module(FatBinary& b) {
  if (b.module || !b.error.empty()) return b.module;
  const char* folder = getenv("TMPDIR");
  std::string path = std::string(folder && *folder ? folder : P_tmpdir) + "/ptxcpu-XXXXXX";
  const int file = mkstemp(&path[0]);
  const size_t size = image_size(b.image);
  if (file < 0 || write(file, b.image, size) != (ssize_t)size) {
    b.error = "cannot write a temporary file";
    return nullptr;
  }
  close(file);
  b.module = translate("'" + path + "'", b.error, &b.ptx);
  unlink(path.c_str());
  if (b.module) registry().loaded.push_back(&b), registry().ranges.clear();
  return b.module;
}

const ptxcpu::KernelInfo* kernel_info(Function& f) {
  if (f.info || !f.error.empty() || !load_module(*f.binary)) return f.info;
  if (void* library = translate("--kernel '" + f.name + "' '" + f.binary->ptx + "'", f.error))
    f.info = (const ptxcpu::KernelInfo*)dlsym(library, ("info_" + c_identifier(f.name)).c_str());
  return f.info;
}

// ---------------------------------------------------------------- launch
static const std::vector<ptxcpu::Range>& allocation_ranges() {
  Registry& r = registry();
  if (r.ranges.empty()) {
    for (auto& m : r.memory) r.ranges.push_back({m.first, m.second.size});
    for (FatBinary* b : r.loaded)
      for (auto g = (const ptxcpu::Range*)dlsym(b->module, "module_globals"); g && g->size; g++)
        r.ranges.push_back(*g);
    std::sort(r.ranges.begin(), r.ranges.end(),
              [](const ptxcpu::Range& a, const ptxcpu::Range& b) { return a.base < b.base; });
  }
  return r.ranges;
}

static cudaError_t error_code(const std::string& message) {
  if (message.compare(0, 8, "deadlock") == 0) return cudaErrorLaunchTimeout;
  if (message.compare(0, 13, "out-of-bounds") == 0) return cudaErrorIllegalAddress;
  if (message.compare(0, 10, "misaligned") == 0) return cudaErrorMisalignedAddress;
  if (message.compare(0, 13, "device assert") == 0) return cudaErrorAssert;
  return cudaErrorLaunchFailure;
}

static std::string describe(dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

static cudaError_t check_configuration(Function& f, dim3 grid, dim3 block, size_t shared) {
  const ptxcpu::KernelInfo& k = *f.info;
  const uint64_t threads = (uint64_t)block.x * block.y * block.z;
  const bool grid_ok =
      grid.x && grid.y && grid.z && grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535;
  if (!grid_ok || !threads || threads > 1024 || block.z > 64)
    return set_error(cudaErrorInvalidConfiguration,
                     f.name + ": invalid grid " + describe(grid) + " or block " + describe(block));
  if (threads > k.max_threads)
    return set_error(cudaErrorInvalidValue, f.name + ": " + std::to_string(threads) +
                                                " threads exceed __launch_bounds__(" +
                                                std::to_string(k.max_threads) + ")");
  const size_t limit = f.dynamic_limit
                           ? f.dynamic_limit
                           : SHARED_DEFAULT - std::min<size_t>(SHARED_DEFAULT, k.static_shared);
  if (shared > limit || shared + k.static_shared > (size_t)SHARED_LIMIT)
    return set_error(cudaErrorInvalidValue,
                     f.name + ": " + std::to_string(shared) +
                         " bytes of dynamic shared memory exceed the limit of " +
                         std::to_string(limit) +
                         " (more than 48 KiB needs cudaFuncSetAttribute; 163 KiB in all)");
  return cudaSuccess;
}

static void append_report(const char* path, const char* json) {
  FILE* f = fopen(path, "a");
  if (!f) {
    fprintf(stderr, "ptxcpu: cannot write %s\n", path);
    return;
  }
  fprintf(f, "%s\n", json);
  fclose(f);
}

Work library_kernel(const Function&, void** args);  // of PyTorch's own; empty: not one we know

// A launch with its own copy of the arguments.
struct Launch {
  Function* function;
  dim3 grid, block;
  size_t shared;
  std::vector<unsigned char> params;
};

static cudaError_t run(const Launch& launch) {
  Lock lock(registry().mutex);
  Function& f = *launch.function;
  const auto& ranges = allocation_ranges();
  const char* report = getenv("PTXCPU_REPORT");
  const dim3 &grid = launch.grid, &block = launch.block;
  LaunchConfig c = {{grid.x, grid.y, grid.z},
                    {block.x, block.y, block.z},
                    (uint32_t)launch.shared,
                    environment_int("PTXCPU_ORDER", 0),
                    environment_int("PTXCPU_CHECK", 1),
                    environment_int("PTXCPU_THREADS", 2),
                    (uint64_t)environment_int("PTXCPU_SEED", 1) + registry().launches++,
                    ranges.data(),
                    ranges.size(),
                    report != nullptr};
  if (logging())
    fprintf(stderr, "ptxcpu: launch %s grid %s block %s shared %zu\n", f.name.c_str(),
            describe(grid).c_str(), describe(block).c_str(), launch.shared);
  auto start = (int (*)(const ptxcpu::KernelInfo*, const LaunchConfig*, void*))dlsym(
      f.binary->module, "ptxcpu_launch");
  auto text = [&](const char* symbol) {
    return ((const char* (*)())dlsym(f.binary->module, symbol))();
  };
  std::vector<unsigned char> params = launch.params;
  if (start(f.info, &c, params.data())) {
    const std::string message = text("ptxcpu_error");
    return set_error(error_code(message), "kernel " + f.name + ": " + message);
  }
  if (report) append_report(report, text("ptxcpu_profile"));
  return cudaSuccess;
}

// A failure is printed at once, returned here and by cudaGetLastError, and, if nobody asked before,
// by the next synchronising call. After that the process may go on, unlike on a device.
static cudaError_t report_failure(cudaError_t e) {
  if (!e) return e;
  Lock lock(registry().mutex);
  fprintf(stderr, "ptxcpu: launch failed: %s\n", registry().messages[e].c_str());
  if (environment_int("PTXCPU_ABORT", 0)) abort();
  return registry().unreported = e;
}
// For launches that did not come through this runtime, as Triton's.
EXPORT void ptxcpu_report_failure(const char* message) {
  Lock lock(registry().mutex);
  report_failure(set_error(error_code(message), message));
}

static cudaError_t prepare(Launch& launch, const void* host, void** args, Work& work) {
  auto found = registry().functions.find(host);
  if (found == registry().functions.end())
    return set_error(cudaErrorInvalidDeviceFunction, "unknown kernel");
  Function& f = found->second;
  if ((work = library_kernel(f, args))) return cudaSuccess;
  const char* failing = getenv("PTXCPU_FAIL_LAUNCH");
  if (failing && *failing && f.name.find(failing) != std::string::npos)
    return set_error(cudaErrorLaunchOutOfResources, "too many resources requested for launch");
  if (f.library.find("/torch/lib/") != std::string::npos ||
      f.library.find("/site-packages/nvidia/") != std::string::npos)
    return set_error(cudaErrorNoKernelImageForDevice,
                     "PyTorch's own kernel " + f.name +
                         " has no PTX and cannot be emulated: do this step on the CPU");
  if (!kernel_info(f))
    return set_error(cudaErrorNoKernelImageForDevice,
                     "kernel " + f.name + " of " + f.library + " cannot be emulated: " +
                         (!f.binary->error.empty() ? f.binary->error
                          : !f.error.empty()       ? f.error
                                                   : "it is not in the module's PTX"));
  if (cudaError_t e = check_configuration(f, launch.grid, launch.block, launch.shared)) return e;
  const ptxcpu::KernelInfo& k = *f.info;
  launch.params.resize(4352);
  for (uint32_t i = 0; i < k.param_count; i++)
    memcpy(&launch.params[k.params[2 * i]], args[i], k.params[2 * i + 1]);
  launch.function = &f;
  work = [launch] { return report_failure(run(launch)); };
  return cudaSuccess;
}

static cudaError_t launch(const void* host, dim3 grid, dim3 block, void** args, size_t shared,
                          cudaStream_t stream) {
  Launch launch = {nullptr, grid, block, shared, {}};
  Work work;
  {
    Lock lock(registry().mutex);
    if (cudaError_t e = report_failure(prepare(launch, host, args, work))) return e;
  }
  return submit(stream, work);
}

struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static thread_local std::vector<CallConfiguration> configurations;

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                            CUstream_st* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared,
                                              void* stream) {
  const CallConfiguration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared, *(void**)stream = c.stream;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** a, size_t s,
                                      cudaStream_t stream) {
  return launch((const void*)k, g, b, a, s, stream);
}
EXPORT cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t s,
                                    cudaStream_t stream) {
  return launch(f, g, b, a, s, stream);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) {
  for (unsigned i = 0; i < c->numAttrs; i++) {
    const cudaLaunchAttribute& x = c->attrs[i];
    if (x.id == cudaLaunchAttributeClusterDimension &&
        x.val.clusterDim.x * x.val.clusterDim.y * x.val.clusterDim.z > 1)
      return set_error(cudaErrorNotSupported, "clusters are not supported");
    if (x.id == cudaLaunchAttributeCooperative && x.val.cooperative)
      return set_error(cudaErrorNotSupported, "cooperative (grid-wide) launches are not supported");
  }
  return launch(f, c->gridDim, c->blockDim, a, c->dynamicSmemBytes, c->stream);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t,
                                               cudaStream_t) {
  return set_error(cudaErrorNotSupported, "cooperative (grid-wide) launches are not supported");
}
