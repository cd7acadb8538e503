// The instructions that the tensor-core kernels are made of, and how an operand gets into shared
// memory: 16 bytes at a time, by cp.async where memory allows, else gathered by plain loads.
#pragma once
#include "common.cuh"

namespace cnnkern {

constexpr int kChunk = 16;  // bytes: the unit of cp.async, of ldmatrix and of the swizzle

template <typename T>
constexpr int kChunkElements = kChunk / int(sizeof(T));

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

// Zeros are written where `take` is false; then nothing is read.
__device__ __forceinline__ void copy_chunk_async(void* to, const void* from, bool take) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
               "l"(from), "r"(take ? kChunk : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// `count` elements (no more than a chunk) that lie `stride` apart, the rest zeros.
template <typename T>
__device__ __forceinline__ void gather_chunk(void* to, const T* from, int64_t stride, int count) {
  alignas(kChunk) T chunk[kChunkElements<T>];
#pragma unroll
  for (int i = 0; i < kChunkElements<T>; ++i)
    chunk[i] = i < count ? from[i * stride] : narrow<T>(0);
  *static_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(chunk);
}

__device__ __forceinline__ void load_matrices(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ uint32_t round_to_tf32(uint32_t x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(y) : "f"(__uint_as_float(x)));
  return y;
}

// The tensor cores cut off what tf32 has no bits for; rounding first halves the error.
template <typename T>
__device__ __forceinline__ void prepare_operand(uint32_t (&x)[4]) {
  if constexpr (std::is_same_v<T, float>)
    for (uint32_t& word : x) word = round_to_tf32(word);
}

#define CNNKERN_MMA(shape_and_types)                                      \
  asm volatile("mma.sync.aligned." shape_and_types                        \
               " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// d [16, 8] += a [16, 32 bytes] * b [32 bytes, 8].
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    CNNKERN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    CNNKERN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    CNNKERN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef CNNKERN_MMA

// True where rows of this length, of which a part is used, can be read and written in chunks.
inline bool in_chunks(const void* p, int64_t row, int64_t part, DType dtype) {
  const int64_t unit = dtype == DType::kFloat32 ? 4 : 8;
  return reinterpret_cast<uintptr_t>(p) % kChunk == 0 && row % unit == 0 && part % unit == 0;
}

}  // namespace cnnkern
