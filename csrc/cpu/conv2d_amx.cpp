// The kernels that use AMX's tiles, for amx_bf16 alone: see conv2d_dots.cpp.
#include "isa.h"

#if CNNKERN_X86_ISAS
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "conv2d_amx.h"
#include "conv2d_amx_weight_grad.h"
#include "conv2d_chwn.h"
#include "conv2d_col2im.h"
#include "conv2d_depthwise.h"
#include "conv2d_dots.h"
#include "conv2d_igemm.h"
#include "conv2d_winograd.h"
#include "parallel.h"
#include "workspace.h"

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define CNNKERN_VECTOR_BYTES 64
#define CNNKERN_ISA_LEVEL 3
#define CNNKERN_ROUNDS_BFLOAT16
namespace cnnkern::amx_bf16 {
#include "vec.inc"
#include "vec_index.inc"
#include "vec_math.inc"

#include "conv2d.inc"

#include "pairs.inc"

#include "pairs_copies.inc"

#include "amx_tiles.inc"

#include "conv2d_dots_weights.inc"

#include "conv2d_amx.inc"
#include "conv2d_amx_weight_grad.inc"
}  // namespace cnnkern::amx_bf16
#pragma GCC pop_options
#endif
