#include "isa.h"

#if CNNKERN_X86_ISAS
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace cnnkern {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
constexpr int kIsas = int(std::size(kNames));

#if CNNKERN_X86_ISAS
// Tiles of bfloat16: the CPU has them, and the kernel saves their registers for this process, which
// has to ask for that once.
bool may_use_amx() {
#if defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxBf16) && (d & kAmxTile) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool has(Isa isa) {
#if CNNKERN_X86_ISAS
  switch (isa) {
    case Isa::kAmxBf16: return has(Isa::kAvx512Bf16) && may_use_amx();
    case Isa::kAvx512Bf16: return __builtin_cpu_supports("avx512bf16") && has(Isa::kAvx512);
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             has(Isa::kAvx2);
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    default: return true;
  }
#else
  return isa == Isa::kScalar;
#endif
}

Isa parse(const std::string& name) {
  for (int i = 0; i < kIsas; ++i)
    if (name == kNames[i]) {
      if (!has(Isa(i)))
        throw std::invalid_argument("this CPU or build has no '" + name + "' kernels");
      return Isa(i);
    }
  throw std::invalid_argument(
      "CPU ISA must be 'scalar', 'avx2', 'avx512', 'avx512_bf16' or 'amx_bf16', got '" + name +
      "'");
}

Isa initial() {
  if (const char* name = std::getenv("CNNKERN_CPU_ISA"); name && *name) return parse(name);
  int best = kIsas - 1;
  while (!has(Isa(best))) --best;
  return Isa(best);
}

std::atomic<Isa>& state() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

Isa current_isa() { return state().load(std::memory_order_relaxed); }
const char* isa_name(Isa isa) { return kNames[int(isa)]; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < kIsas; ++i)
    if (has(Isa(i))) names.push_back(kNames[i]);
  return names;
}

void set_isa(const std::string& name) { state().store(parse(name)); }

}  // namespace cnnkern
