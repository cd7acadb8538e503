// Which instruction set the CPU kernels use: the best one the machine has, unless CNNKERN_CPU_ISA
// or cnnkern._C.set_cpu_isa() forces another.
#pragma once
#include <string>
#include <vector>

namespace cnnkern {

enum class Isa : int { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

Isa current_isa();
const char* isa_name(Isa isa);
std::vector<std::string> available_isas();
void set_isa(const std::string& name);  // throws std::invalid_argument

}  // namespace cnnkern

// CNNKERN_ISA_CALL(f(x)) calls scalar::f, avx2::f or avx512::f. Nothing but the products of pairs
// of bfloat16 is compiled for avx512_bf16 (conv2d_dots.h) and amx_bf16 (conv2d_amx.h): the rest
// would be the code of avx512.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 11 && !defined(__clang__)
#define CNNKERN_X86_ISAS 1
#define CNNKERN_ISA_CALL(...)                                              \
  [&] {                                                                    \
    switch (::cnnkern::current_isa()) {                                    \
      case ::cnnkern::Isa::kAmxBf16:                                       \
      case ::cnnkern::Isa::kAvx512Bf16:                                    \
      case ::cnnkern::Isa::kAvx512: return ::cnnkern::avx512::__VA_ARGS__; \
      case ::cnnkern::Isa::kAvx2: return ::cnnkern::avx2::__VA_ARGS__;     \
      default: return ::cnnkern::scalar::__VA_ARGS__;                      \
    }                                                                      \
  }()
#else
#define CNNKERN_X86_ISAS 0
#define CNNKERN_ISA_CALL(...) ::cnnkern::scalar::__VA_ARGS__
#endif
