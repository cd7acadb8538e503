// One kernel per instruction family, mostly inline PTX, checked against NumPy and PyTorch in
// test_instructions.py. It is long because it is one list, and is compiled once.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <mma.h>
#include <cstdint>
namespace cg = cooperative_groups;
#define KERNEL extern "C" __global__ void

__device__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ uint32_t pair16(const uint16_t* p) { return *(const uint32_t*)p; }

// ---- mma.sync m16n8kK with 16-bit inputs. A is [16,K], B is [K,8] given transposed as [8,K], C
// and D are [16,8].
template <int K, bool BF16>
__device__ void mma_half(const uint16_t* A, const uint16_t* Bt, const float* C, float* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  float c[4], d[4];
  for (int i = 0; i < 4; i++) c[i] = C[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
  uint32_t a0 = pair16(A + g * K + 2 * q), a1 = pair16(A + (g + 8) * K + 2 * q),
           b0 = pair16(Bt + g * K + 2 * q);
  if constexpr (K == 16) {
    uint32_t a2 = pair16(A + g * K + 8 + 2 * q), a3 = pair16(A + (g + 8) * K + 8 + 2 * q),
             b1 = pair16(Bt + g * K + 8 + 2 * q);
    if constexpr (BF16)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
            "f"(c[3]));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
          "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
            "f"(c[3]));
  } else if constexpr (BF16)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  for (int i = 0; i < 4; i++) D[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = d[i];
}
KERNEL mma_f16_k8(const uint16_t* A, const uint16_t* B, const float* C, float* D) {
  mma_half<8, false>(A, B, C, D);
}
KERNEL mma_f16_k16(const uint16_t* A, const uint16_t* B, const float* C, float* D) {
  mma_half<16, false>(A, B, C, D);
}
KERNEL mma_bf16_k8(const uint16_t* A, const uint16_t* B, const float* C, float* D) {
  mma_half<8, true>(A, B, C, D);
}
KERNEL mma_bf16_k16(const uint16_t* A, const uint16_t* B, const float* C, float* D) {
  mma_half<16, true>(A, B, C, D);
}

// f16 accumulators: C and D are [16,8] halves
KERNEL mma_f16_acc_k16(const uint16_t* A, const uint16_t* Bt, const uint16_t* C, uint16_t* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, K = 16;
  uint32_t a0 = pair16(A + g * K + 2 * q), a1 = pair16(A + (g + 8) * K + 2 * q),
           a2 = pair16(A + g * K + 8 + 2 * q), a3 = pair16(A + (g + 8) * K + 8 + 2 * q);
  uint32_t b0 = pair16(Bt + g * K + 2 * q), b1 = pair16(Bt + g * K + 8 + 2 * q),
           c0 = pair16(C + g * 8 + 2 * q), c1 = pair16(C + (g + 8) * 8 + 2 * q), d0, d1;
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3,%4,%5},{%6,%7},{%8,%9};"
      : "=r"(d0), "=r"(d1)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(c0), "r"(c1));
  *(uint32_t*)(D + g * 8 + 2 * q) = d0, *(uint32_t*)(D + (g + 8) * 8 + 2 * q) = d1;
}
KERNEL mma_f16_acc_k8(const uint16_t* A, const uint16_t* Bt, const uint16_t* C, uint16_t* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, K = 8;
  uint32_t a0 = pair16(A + g * K + 2 * q), a1 = pair16(A + (g + 8) * K + 2 * q),
           b0 = pair16(Bt + g * K + 2 * q);
  uint32_t c0 = pair16(C + g * 8 + 2 * q), c1 = pair16(C + (g + 8) * 8 + 2 * q), d0, d1;
  asm("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3},{%4},{%5,%6};"
      : "=r"(d0), "=r"(d1)
      : "r"(a0), "r"(a1), "r"(b0), "r"(c0), "r"(c1));
  *(uint32_t*)(D + g * 8 + 2 * q) = d0, *(uint32_t*)(D + (g + 8) * 8 + 2 * q) = d1;
}

// tf32: A is [16,K], B is [8,K] transposed, floats already rounded to tf32
KERNEL mma_tf32_k4(const float* A, const float* Bt, const float* C, float* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, K = 4;
  float c[4], d[4];
  for (int i = 0; i < 4; i++) c[i] = C[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
  uint32_t a0 = __float_as_uint(A[g * K + q]), a1 = __float_as_uint(A[(g + 8) * K + q]),
           b0 = __float_as_uint(Bt[g * K + q]);
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  for (int i = 0; i < 4; i++) D[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = d[i];
}
KERNEL mma_tf32_k8(const float* A, const float* Bt, const float* C, float* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, K = 8;
  float c[4], d[4];
  for (int i = 0; i < 4; i++) c[i] = C[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
  uint32_t a0 = __float_as_uint(A[g * K + q]), a1 = __float_as_uint(A[(g + 8) * K + q]),
           a2 = __float_as_uint(A[g * K + q + 4]), a3 = __float_as_uint(A[(g + 8) * K + q + 4]);
  uint32_t b0 = __float_as_uint(Bt[g * K + q]), b1 = __float_as_uint(Bt[g * K + q + 4]);
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
  for (int i = 0; i < 4; i++) D[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = d[i];
}
// f64: A is [8,4], B is [8,4] transposed
KERNEL mma_f64_k4(const double* A, const double* Bt, const double* C, double* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  const double* c = C + g * 8 + 2 * q;
  double* d = D + g * 8 + 2 * q;
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1},{%2},{%3},{%4,%5};"
      : "=d"(d[0]), "=d"(d[1])
      : "d"(A[g * 4 + q]), "d"(Bt[g * 4 + q]), "d"(c[0]), "d"(c[1]));
}
// s8 m16n8k32: A is [16,32], B is [8,32] transposed
KERNEL mma_s8_k32(const int8_t* A, const int8_t* Bt, const int* C, int* D) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, K = 32;
  auto word = [](const int8_t* p) { return *(const uint32_t*)p; };
  int c[4], d[4];
  for (int i = 0; i < 4; i++) c[i] = C[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(word(A + g * K + 4 * q)), "r"(word(A + (g + 8) * K + 4 * q)),
        "r"(word(A + g * K + 16 + 4 * q)), "r"(word(A + (g + 8) * K + 16 + 4 * q)),
        "r"(word(Bt + g * K + 4 * q)), "r"(word(Bt + g * K + 16 + 4 * q)), "r"(c[0]), "r"(c[1]),
        "r"(c[2]), "r"(c[3]));
  for (int i = 0; i < 4; i++) D[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = d[i];
}

// ---- wmma through the C++ API
KERNEL wmma_f16(const half* A, const half* B, float* C) {
  using namespace nvcuda;
  __shared__ half tile[256];
  for (int i = threadIdx.x; i < 256; i += 32) tile[i] = A[i];
  __syncwarp();
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> c;
  wmma::fill_fragment(c, 1.f);
  wmma::load_matrix_sync(a, tile, 16);
  wmma::load_matrix_sync(b, B, 16);
  wmma::mma_sync(c, a, b, c);
  for (int i = 0; i < c.num_elements; i++) c.x[i] *= 2.f;
  wmma::store_matrix_sync(C, c, 16, wmma::mem_row_major);
}
KERNEL wmma_tf32(const float* A, const float* B, float* C) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> c;
  wmma::fill_fragment(c, 0.f);
  wmma::load_matrix_sync(a, A, 8);
  wmma::load_matrix_sync(b, B, 16);
  for (int i = 0; i < a.num_elements; i++) a.x[i] = wmma::__float_to_tf32(a.x[i]);
  for (int i = 0; i < b.num_elements; i++) b.x[i] = wmma::__float_to_tf32(b.x[i]);
  wmma::mma_sync(c, a, b, c);
  wmma::store_matrix_sync(C, c, 16, wmma::mem_row_major);
}

// ---- ldmatrix / stmatrix. in: 4 matrices of 8x8 b16; out: the registers of each lane,
// [lane][matrix]
#define LOAD_MATRICES                                              \
  __shared__ __align__(16) uint16_t tile[4 * 64];                  \
  for (int i = threadIdx.x; i < 256; i += 32) tile[i] = in[i];     \
  __syncwarp();                                                    \
  const uint32_t address = shared_address(tile + threadIdx.x * 8); \
  uint32_t r[4] = {};
#define STORE_REGISTERS \
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = r[i];
KERNEL ldmatrix_x1(const uint16_t* in, uint32_t* out) {
  LOAD_MATRICES asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0},[%1];"
                             : "=r"(r[0])
                             : "r"(address));
  STORE_REGISTERS
}
KERNEL ldmatrix_x2(const uint16_t* in, uint32_t* out) {
  LOAD_MATRICES asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
                             : "=r"(r[0]), "=r"(r[1])
                             : "r"(address));
  STORE_REGISTERS
}
KERNEL ldmatrix_x4(const uint16_t* in, uint32_t* out) {
  LOAD_MATRICES asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                             : "r"(address));
  STORE_REGISTERS
}
KERNEL ldmatrix_x1_trans(const uint16_t* in, uint32_t* out) {
  LOAD_MATRICES asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0},[%1];"
                             : "=r"(r[0])
                             : "r"(address));
  STORE_REGISTERS
}
KERNEL ldmatrix_x2_trans(const uint16_t* in, uint32_t* out) {
  LOAD_MATRICES asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
                             : "=r"(r[0]), "=r"(r[1])
                             : "r"(address));
  STORE_REGISTERS
}
KERNEL ldmatrix_x4_trans(const uint16_t* in, uint32_t* out) {
  LOAD_MATRICES asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                             : "r"(address));
  STORE_REGISTERS
}

// ---- cp.async. in: floats; out: what arrived, per thread 4 floats
KERNEL cp_async_sizes(const float* in, float* out) {  // 4, 8 and 16 bytes; .ca and .cg; wait_all
  __shared__ __align__(16) float tile[32 * 4];
  float* mine = tile + threadIdx.x * 4;
  const uint32_t to = shared_address(mine);
  const float* from = in + threadIdx.x * 4;
  switch (threadIdx.x % 4) {
    case 0: asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(to), "l"(from)); break;
    case 1:
      asm volatile(
          "cp.async.ca.shared.global [%0],[%1],8; cp.async.ca.shared.global [%2],[%3],8;" ::"r"(to),
          "l"(from), "r"(to + 8), "l"(from + 2));
      break;
    case 2:
      for (int i = 0; i < 4; i++)
        asm volatile("cp.async.ca.shared.global [%0],[%1],4;" ::"r"(to + 4 * i), "l"(from + i));
      break;
    default: asm volatile("cp.async.ca.shared.global.L2::128B [%0],[%1],16;" ::"r"(to), "l"(from));
  }
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = tile[((threadIdx.x + 1) % 32) * 4 + i];
}
KERNEL cp_async_source_size(const float* in,
                            float* out) {  // thread t copies (t % 5) * 4 bytes, the rest is zero
  __shared__ __align__(16) float tile[32 * 4];
  const uint32_t to = shared_address(tile + threadIdx.x * 4), bytes = threadIdx.x % 5 * 4;
  asm volatile(
      "cp.async.cg.shared.global [%0],[%1],16,%2; cp.async.commit_group; cp.async.wait_group 0;" ::
          "r"(to),
      "l"(in + threadIdx.x * 4), "r"(bytes));
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = tile[threadIdx.x * 4 + i];
}
KERNEL cp_async_ignore(const float* in,
                       float* out) {  // odd threads ignore the source and get zeros
  __shared__ __align__(16) float tile[32 * 4];
  const uint32_t to = shared_address(tile + threadIdx.x * 4);
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p,%2,0; cp.async.ca.shared.global [%0],[%1],16,p; "
      "cp.async.commit_group; cp.async.wait_group 0;}" ::"r"(to),
      "l"(in + threadIdx.x * 4), "r"(threadIdx.x & 1));
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = tile[threadIdx.x * 4 + i];
}
KERNEL pipeline_two_stages(const float4* in, float4* out) {
  __shared__ float4 stage[2][64];
  for (int k = 0; k < 2; k++) {
    __pipeline_memcpy_async(&stage[k][threadIdx.x], &in[k * 64 + threadIdx.x], 16);
    __pipeline_commit();
  }
  __pipeline_wait_prior(1);
  __syncthreads();
  out[threadIdx.x] = stage[0][63 - threadIdx.x];
  __pipeline_wait_prior(0);
  __syncthreads();
  out[64 + threadIdx.x] = stage[1][63 - threadIdx.x];
}

// ---- barriers: two producer warps fill, two consumer warps read, through named barriers; then
// bar.red
KERNEL named_barriers(const int* in, int* out) {
  __shared__ int tile[64];
  const int t = threadIdx.x;
  if (t < 64) {
    tile[t] = in[t] * 3;
    asm volatile("bar.arrive 1,128;" ::: "memory");
    asm volatile("bar.sync 2,64;" ::: "memory");  // the producers only
    out[t] = tile[63 - t];
  } else {
    asm volatile("bar.sync 1,128;" ::: "memory");
    out[t] = tile[t - 64] + 1;
  }
  __syncthreads();
  const int count = __syncthreads_count(t % 3 == 0), any = __syncthreads_or(t == 5),
            all = __syncthreads_and(t < 128);
  out[128 + t] = count * 100 + (any != 0) * 10 + (all != 0);
}

// ---- shuffles, votes, redux: one result per column
KERNEL warp_operations(const int* in, int* out) {
  const int lane = threadIdx.x, v = in[lane];
  const unsigned all = 0xffffffffu;
  int* o = out + lane * 16;
  o[0] = __shfl_sync(all, v, 5, 8);
  o[1] = __shfl_up_sync(all, v, 3, 16);
  o[2] = __shfl_down_sync(all, v, 2, 4);
  o[3] = __shfl_xor_sync(all, v, 5, 8);
  o[4] = __ballot_sync(all, v & 1);
  o[5] = __any_sync(all, v == 7) + 2 * __all_sync(all, v >= 0);
  o[6] = __reduce_add_sync(all, v);
  o[7] = __reduce_min_sync(all, v - 50);
  o[8] = __reduce_max_sync(all, (unsigned)v);
  o[9] = __reduce_and_sync(all, (unsigned)v | 64) + __reduce_xor_sync(all, (unsigned)v);
  o[10] = __match_any_sync(all, v % 4);
  int agree;
  o[11] = __match_all_sync(all, v < 1000, &agree) + agree;
  o[12] = lane < 16 ? __shfl_xor_sync(0xffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2);
  o[13] = __reduce_or_sync(all, 1u << (v & 31));
}
KERNEL group_operations(const int* in, int* out) {
  const int t = threadIdx.x, v = in[t];
  auto tile = cg::tiled_partition<8>(cg::this_thread_block());
  out[t * 4] = cg::reduce(tile, v, cg::plus<int>());
  out[t * 4 + 1] = cg::reduce(tile, v, cg::greater<int>());
  out[t * 4 + 2] = tile.shfl_down(v, 1) + tile.meta_group_rank() * 1000;
  out[t * 4 + 3] = __popc(tile.ballot(v & 1));
  cg::this_thread_block().sync();
}

// ---- atomics
KERNEL atomics(float* f, __half2* h, __nv_bfloat162* b, int* i, double* d, unsigned long long* u) {
  const int t = threadIdx.x + blockIdx.x * blockDim.x;
  atomicAdd(f, (float)t);
  atomicAdd(h, __floats2half2_rn(1.f, 2.f));
  atomicAdd(b, __floats2bfloat162_rn(1.f, 0.5f));
  atomicMax(i, t), atomicMin(i + 1, -t), atomicOr(i + 2, 1 << (t % 31)), atomicExch(i + 3, 7),
      atomicInc((unsigned*)i + 4, 9);
  atomicCAS(i + 5, t, t + 1);
  atomicAdd(d, 0.5);
  atomicAdd(u, 1ull << 33);
  __shared__ int histogram[4];
  if (threadIdx.x < 4) histogram[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&histogram[threadIdx.x % 4], 1);
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(i + 8 + threadIdx.x, histogram[threadIdx.x]);
}

// ---- loads and stores with cache hints
KERNEL cache_hints(const float4* in, float4* out) {
  const int t = threadIdx.x;
  float4 v = __ldg(in + t), w;
  __stcs(out + t, v);
  __stwt(out + 32 + t, __ldcg(in + t));
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {%0,%1,%2,%3},[%4];"
               : "=f"(w.x), "=f"(w.y), "=f"(w.z), "=f"(w.w)
               : "l"(in + t));
  out[64 + t] = w;
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.L2::cache_hint.v4.f32 {%0,%1,%2,%3},[%4],%5;"
               : "=f"(w.x), "=f"(w.y), "=f"(w.z), "=f"(w.w)
               : "l"(in + t), "l"(policy));
  asm volatile(
      "st.global.L1::no_allocate.L2::cache_hint.v4.f32 [%0],{%1,%2,%3,%4},%5;" ::"l"(out + 96 + t),
      "f"(w.x), "f"(w.y), "f"(w.z), "f"(w.w), "l"(policy)
      : "memory");
}

// ---- integer instructions: prmt, bfe, bfi, lop3, mad.wide, dp4a and others
KERNEL integers(const int* x, const int* y, int* out, long long* wide) {
  const int t = threadIdx.x, a = x[t], b = y[t];
  int* o = out + t * 16;
  o[0] = __byte_perm(a, b, 0x6250);
  asm("prmt.b32 %0,%1,%2,0x8c9d;" : "=r"(o[1]) : "r"(a), "r"(b));
  asm("bfe.u32 %0,%1,%2,%3;" : "=r"(o[2]) : "r"(a), "r"(t % 40), "r"(t % 13));
  asm("bfe.s32 %0,%1,%2,%3;" : "=r"(o[3]) : "r"(a), "r"(t % 40), "r"(t % 13));
  asm("bfi.b32 %0,%1,%2,%3,%4;" : "=r"(o[4]) : "r"(a), "r"(b), "r"(t % 40), "r"(t % 13));
  asm("lop3.b32 %0,%1,%2,%3,0x96;" : "=r"(o[5]) : "r"(a), "r"(b), "r"(t * 77));
  asm("lop3.b32 %0,%1,%2,%3,0xe8;" : "=r"(o[6]) : "r"(a), "r"(b), "r"(t * 77));
  o[7] = __dp4a(a, b, 5);
  o[8] = __clz(a) + 100 * __popc(b) + 10000 * __ffs(a);
  o[9] = __brev(a);
  o[10] = __funnelshift_l(a, b, t % 32);
  o[11] = __mulhi(a, b);
  o[12] = a / 7 + a % 13;
  o[13] = (unsigned)a / 10u + (unsigned)b % 7u;
  asm("mad.wide.s32 %0,%1,%2,%3;" : "=l"(wide[2 * t]) : "r"(a), "r"(b), "l"(123456789012345ll));
  wide[2 * t + 1] = (long long)a * b / 77;
}

// ---- conversions and 16-bit arithmetic
KERNEL conversions(const float* x, uint32_t* out) {
  const int t = threadIdx.x;
  const float a = x[2 * t], b = x[2 * t + 1];
  uint32_t* o = out + t * 8;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(o[0]) : "f"(a), "f"(b));
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(o[1]) : "f"(a), "f"(b));
  asm("cvt.rna.tf32.f32 %0,%1;" : "=r"(o[2]) : "f"(a));
  asm("cvt.rn.relu.bf16x2.f32 %0,%1,%2;" : "=r"(o[3]) : "f"(a), "f"(b));
  o[4] = __float2int_rn(a * 10.f), o[5] = __float2int_rd(a * 10.f),
  o[6] = __float2uint_rz(b * 1e10f), o[7] = __float2int_rz(b * -1e20f);
}
KERNEL bf16_arithmetic(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out) {
  const int t = threadIdx.x;
  uint32_t* o = out + t * 4;
  asm("fma.rn.bf16x2 %0,%1,%2,%3;" : "=r"(o[0]) : "r"(a[t]), "r"(b[t]), "r"(c[t]));
  asm("fma.rn.relu.bf16x2 %0,%1,%2,%3;" : "=r"(o[1]) : "r"(a[t]), "r"(b[t]), "r"(c[t]));
  asm("max.bf16x2 %0,%1,%2;" : "=r"(o[2]) : "r"(a[t]), "r"(b[t]));
  asm("neg.bf16x2 %0,%1;" : "=r"(o[3]) : "r"(a[t]));
}
KERNEL f16_arithmetic(const __half2* a, const __half2* b, const __half2* c, __half2* out) {
  const int t = threadIdx.x;
  out[t * 5] = __hfma2(a[t], b[t], c[t]);
  out[t * 5 + 1] = __hadd2(a[t], b[t]);
  out[t * 5 + 2] = __hmul2(a[t], b[t]);
  out[t * 5 + 3] = __hmax2(a[t], b[t]);
  out[t * 5 + 4] = __hgt2(a[t], b[t]);
}

// ---- control flow: calls, switch tables, local arrays, constants, printf
__constant__ float weights[4] = {1, 2, 3, 4};
__device__ int device_counter;
__device__ __noinline__ float helper(float x, int k) { return x * k + weights[k & 3]; }
KERNEL control_flow(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float v = i < n ? in[i] : 0.f;
  float local[8], s = 0;
  for (int k = 0; k < 8; k++) local[(k + i) & 7] = v * k;
  for (int k = 0; k < 8; k++) s += local[k] * (k + 1);
  s = helper(s, i % 5);
  switch (i % 6) {
    case 0: s += 1; break;
    case 1: s *= 2; break;
    case 2: s -= 3; break;
    case 3: s = s * s; break;
    case 4: s = fabsf(s); break;
    default: s = -s;
  }
  if (i < n) out[i] = s;
  atomicMax(&device_counter, i);
  if (i == 3) printf("thread %d of %s: %.2f\n", i, "control_flow", 1.5);
}
