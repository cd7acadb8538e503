#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace cnnkern {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16"};
constexpr int kIsas = int(std::size(kNames));

bool has(Isa isa) {
#if CNNKERN_X86_ISAS
  switch (isa) {
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
  throw std::invalid_argument("CPU ISA must be 'scalar', 'avx2', 'avx512' or 'avx512_bf16', got '" +
                              name + "'");
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
