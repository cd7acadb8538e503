// The interface between translated kernels and the runtime library.
// A kernel is a C++ function `void kernel(Thread&, u8* params)` run once per CUDA thread on its own
// fiber.
#pragma once
#include "scalar.h"

namespace ptxcpu {

struct Range {
  u64 base, size;
};

// One thread block, as the kernel sees it.
struct Block {
  u32 bx, by, bz;  // blockIdx
  u32 gx, gy, gz;  // gridDim
  u32 nx, ny, nz;  // blockDim
  u32 threads, warps;
  u8* shared;  // the block's shared memory; a generic pointer into it is a host pointer
  u32 shared_size, dynamic_offset, dynamic_size;
  int check;         // 0 none, 1 bounds/alignment/masks, 2 also shared-memory races
  Range recent[64];  // the allocation each memory instruction (modulo 64) touched last
  u64* counts;       // per-instruction execution counts (profiling builds only)
};

struct Thread {
  u32 tx, ty, tz, linear, lane, warp;
  Block* block;
};

enum Access { READ, WRITE, ATOMIC };

// What a module tells the runtime about one kernel.
struct KernelInfo {
  const char* name;
  void (*entry)(Thread&, u8*);
  u32 static_shared, max_threads, param_count;
  const u32* params;    // offset, size, offset, size...
  int parallel_blocks;  // 0 when the kernel uses global atomics
  u32 instructions;
  const char* const* locations;  // "PTX line 12 of kernel: add.f32 ... [file.cu:34]"
  const u32* kinds;              // equal for instructions with the same opcode and modifiers
  const u8* classes;             // index into the profiler's class names
  const f32* flops;              // floating-point operations per thread and execution
  int registers[2], spills[2];   // sm_80, sm_90; -1 when unknown
};

#define PTX_API extern "C" __attribute__((visibility("default")))

// ---- memory checks
[[noreturn]] void kernel_fail(Thread&, int pc, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
void check_global_slow(Thread&, u64 address, u32 size, int pc, Access);
void check_generic_slow(Thread&, u64 address, u32 size, int pc, Access, const void* data);
void check_shared_slow(Thread&, u32 offset, u32 size, int pc, Access, const void* data);
void profile_memory(Thread&, int pc, u64 address, u32 size, bool shared);

// `data` is what a store is about to write: two threads storing the same bytes do not race.
PTX_INLINE void check_global(Thread& t, u64 address, u32 size, int pc, Access access) {
  Block& b = *t.block;
  if (!b.check) return;
  const Range& r = b.recent[pc & 63];
  const u64 offset = address - r.base;
  if (offset < r.size && r.size - offset >= size && !(address & (size - 1))) return;
  check_global_slow(t, address, size, pc, access);
}
PTX_INLINE void check_shared(Thread& t, u32 offset, u32 size, int pc, Access access,
                             const void* data = nullptr) {
  Block& b = *t.block;
  if (!b.check) return;
  if (b.check > 1 || (u64)offset + size > b.shared_size || (offset & (size - 1)))
    check_shared_slow(t, offset, size, pc, access, data);
}
PTX_INLINE bool in_shared(Thread& t, u64 address) {
  return address - (u64)t.block->shared < t.block->shared_size;
}
PTX_INLINE void check_generic(Thread& t, u64 address, u32 size, int pc, Access access,
                              const void* data = nullptr) {
  if (t.block->check) check_generic_slow(t, address, size, pc, access, data);
}

#ifdef PTXCPU_PROFILE
#define COUNT(pc) (t.block->counts[pc]++)
#define PROFILE_MEMORY(pc, address, size, shared) \
  profile_memory(t, pc, (u64)(address), size, shared)
#else
#define COUNT(pc) ((void)0)
#define PROFILE_MEMORY(pc, address, size, shared) ((void)0)
#endif

// ---- block and warp synchronisation (warp.cpp, scheduler.cpp)
enum ShuffleMode { SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_BFLY, SHUFFLE_IDX };
enum VoteMode { VOTE_BALLOT, VOTE_ALL, VOTE_ANY, VOTE_UNI };
enum ReduceOp {
  REDUX_ADD,
  REDUX_MIN_U,
  REDUX_MAX_U,
  REDUX_MIN_S,
  REDUX_MAX_S,
  REDUX_AND,
  REDUX_OR,
  REDUX_XOR
};
enum BarrierReduce { BARRIER_POPC, BARRIER_AND, BARRIER_OR };

void barrier_sync(Thread&, int pc, u32 id, u32 count, bool aligned);
void barrier_arrive(Thread&, int pc, u32 id, u32 count);
u32 barrier_reduce(Thread&, int pc, u32 id, u32 count, BarrierReduce, bool value);
void warp_barrier(Thread&, int pc, u32 mask);
u32 shuffle(Thread&, int pc, ShuffleMode, u32 value, u32 lane, u32 clamp, u32 mask, bool* in_range);
u32 vote(Thread&, int pc, VoteMode, bool value, u32 mask);
u32 match_any(Thread&, int pc, u64 value, u32 mask);
u32 match_all(Thread&, int pc, u64 value, u32 mask, bool* all);
u32 warp_reduce(Thread&, int pc, ReduceOp, u32 value, u32 mask);
u32 active_lanes(Thread&);
[[noreturn]] void thread_exit(Thread&);

// mbarrier objects live in shared memory; `offset` is their shared-window address
void mbarrier_init(Thread&, int pc, u32 offset, u32 count);
u64 mbarrier_arrive(Thread&, int pc, u32 offset, u32 count);
bool mbarrier_test(Thread&, int pc, u32 offset, u32 parity);

// ---- asynchronous copies: nothing lands before the matching wait
void async_copy(Thread&, int pc, u32 destination, u64 source, u32 size, u32 source_size);
void async_commit(Thread&);
void async_wait(Thread&, u32 groups_left);
void async_wait_all(Thread&);

// ---- matrix instructions (matrix.cpp)
enum MatrixType { M_F16, M_BF16, M_TF32, M_S8, M_U8, M_F32, M_S32 };
void ldmatrix(Thread&, int pc, int count, bool transpose, u32 offset, u32* d);
void stmatrix(Thread&, int pc, int count, bool transpose, u32 offset, const u32* s);
void mma_f64(Thread&, int pc, const u64* abcc, u64* d);  // m8n8k4
void mma_sync(Thread&, int pc, int m, int n, int k, MatrixType a_type, MatrixType b_type,
              MatrixType acc_type, const u32* a, const u32* b, const u32* c, u32* d);
struct WmmaTile {
  int rows, cols, bits;
  bool column_major;
};
void wmma_load(Thread&, int pc, u64 address, u32 stride, WmmaTile, u32* d, int registers);
void wmma_store(Thread&, int pc, u64 address, u32 stride, WmmaTile, const u32* s);
void wmma_mma(Thread&, int pc, int m, int n, int k, MatrixType, MatrixType c_type,
              MatrixType d_type, const u32* a, const u32* b, const u32* c, u32* d);

// ---- device-side printf and assert
void device_printf(const char* format, const u8* args);
[[noreturn]] void device_assert(Thread&, int pc, const char* message, const char* file, u32 line);

}  // namespace ptxcpu
