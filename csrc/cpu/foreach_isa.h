// Compiles one kernel family once per instruction set. A binder writes
//   #define CNNKERN_KERNELS "conv2d_direct.inc"
//   #include "foreach_isa.h"
// and gets the functions of that file in cnnkern::scalar, cnnkern::avx2 and cnnkern::avx512, each
// compiled inside its own target region. No file in a region may include anything, or code
// compiled for AVX-512 could be linked in where AVX2 is expected; what they need is included here.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"
#include "params.h"

#define CNNKERN_VECTOR_BYTES 16
#define CNNKERN_ISA_LEVEL 0
namespace cnnkern::scalar {
#include "vec.inc"
#include "vec_index.inc"
#include "vec_math.inc"
#include CNNKERN_KERNELS
}  // namespace cnnkern::scalar
#undef CNNKERN_VECTOR_BYTES
#undef CNNKERN_ISA_LEVEL

#if CNNKERN_X86_ISAS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define CNNKERN_VECTOR_BYTES 32
#define CNNKERN_ISA_LEVEL 2
namespace cnnkern::avx2 {
#include "vec.inc"
#include "vec_index.inc"
#include "vec_math.inc"
#include CNNKERN_KERNELS
}  // namespace cnnkern::avx2
#undef CNNKERN_VECTOR_BYTES
#undef CNNKERN_ISA_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define CNNKERN_VECTOR_BYTES 64
#define CNNKERN_ISA_LEVEL 3
namespace cnnkern::avx512 {
#include "vec.inc"
#include "vec_index.inc"
#include "vec_math.inc"
#include CNNKERN_KERNELS
}  // namespace cnnkern::avx512
#undef CNNKERN_VECTOR_BYTES
#undef CNNKERN_ISA_LEVEL
#pragma GCC pop_options
#endif
#undef CNNKERN_KERNELS
