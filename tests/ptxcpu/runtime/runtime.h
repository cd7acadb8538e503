// Internals of the runtime: fibers, per-thread and per-warp state, the race detector's shadow
// memory.
#pragma once
#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>
#include "device.h"

namespace ptxcpu {

const u32 MAX_THREADS = 1024, MAX_WARPS = 32, MAX_BARRIERS = 16;

enum State { READY, WAIT_WARP, WAIT_BARRIER, DONE };

struct AsyncCopy {
  u32 destination, size, source_size;
  u64 source;
  int pc;
};

// A point in time for the race detector: what this thread has done, and how far it has synchronised
// with every warp. Barriers join these clocks; `warp_epoch` advances at bar.warp.sync.
struct Clock {
  u32 epoch[MAX_WARPS];
  u32 warp_epoch;
};

struct ThreadState : Thread {
  void* stack;  // saved stack pointer while the fiber is not running
  u8 *stack_low, *stack_high;
  State state;
  int wait_pc;
  u64 in[16], out[16];            // operands and results of warp collectives
  std::vector<AsyncCopy> copies;  // issued, not landed; groups end at the indices in group_end
  std::vector<u32> group_end;
  size_t landed, group_head;
  u32 polls;  // unsuccessful mbarrier tests in a row
  Clock clock;
  std::vector<u32> occurrence;  // profiling: how often each instruction ran in this thread
};

// Lanes gathering at one warp-synchronous instruction. `run` is called once with every lane
// present.
struct ThreadState;
typedef void (*CollectiveOp)(const void* closure, ThreadState** lanes, u32 arrived);
struct Rendezvous {
  u32 mask, arrived;
  int pc;
  bool aligned;
  CollectiveOp run;
  const void* closure;
};
struct Warp {
  u32 live;
  int waiting;
  Rendezvous slots[32];
};

struct Barrier {
  std::vector<u32> waiting;  // linear thread ids
  u32 arrived;               // barrier.arrive, which does not wait
  u32 needed;                // explicit thread count, 0 for the whole block
  int warp_pc[MAX_WARPS];    // 1 + where the lanes of each warp wait, 0 if none do
  Clock joined;
};

// What last happened to two neighbouring bytes of shared memory; `bytes` says to which of them.
struct ShadowAccess {
  u32 epoch, warp_epoch;
  int pc;
  u16 thread;
  u8 bytes, atomic;
};
struct Shadow {
  ShadowAccess write, read, other_read;
  int pending_pc;  // 1 + the cp.async whose copy has not landed yet, 0 if none
};
const u32 SHADOW_BYTES = 2;

struct Request {
  u32 lane, size;
  u64 address;
};
struct Profile {
  std::vector<u64> counts;
  u64 global_requests[2] = {}, global_sectors[2] = {}, global_bytes[2] = {};  // [loads, stores]
  u64 shared_requests = 0, shared_wavefronts = 0, shared_ideal = 0;
  std::unordered_map<u64, u32> touched[2];  // 32-byte sector -> byte mask
};

struct MBarrier {
  u32 expected, pending, phase;
  Clock joined, released;
};

// Runs blocks one after another on one OS thread.
struct Worker : Block {
  const KernelInfo* kernel;
  u8* params;
  int order;
  u64 seed, random;
  const Range* allocations;  // sorted by base
  size_t allocation_count;
  std::vector<ThreadState> thread;
  Warp warp[MAX_WARPS];
  Barrier barrier[MAX_BARRIERS];
  std::map<u32, MBarrier> mbarriers;
  u32 live;
  u16 ready[MAX_THREADS];  // ring buffer: every thread is in it at most once
  u32 ready_head, ready_count;
  void* main_stack;
  ThreadState* current;
  u8* stacks = nullptr;
  u8* shared_buffer = nullptr;
  bool failed;
  std::string error;
  std::vector<Shadow> shadow;
  Profile* profile = nullptr;
  std::map<std::pair<u64, u32>, std::vector<Request>> requests;  // (instruction, warp), occurrence
  bool run_block(u32 x, u32 y, u32 z);
  void make_ready(u32 i);
  void make_ready_last(u32 i);  // to run after all threads that are ready now, in any order
};

PTX_INLINE Worker& worker_of(Thread& t) { return *static_cast<Worker*>(t.block); }
PTX_INLINE ThreadState& state_of(Thread& t) { return static_cast<ThreadState&>(t); }
PTX_INLINE const char* location(Thread& t, int pc) { return worker_of(t).kernel->locations[pc]; }

void yield_fiber(ThreadState&);
void land_copies(ThreadState&, size_t upto);
void join_clocks(Clock& into, const Clock& from);
void check_race(Thread&, u32 offset, u32 size, int pc, Access, const void* data);
void mark_pending(Worker&, u32 offset, u32 size, int pc_or_none);
void fold_profile(Worker&);
std::string profile_json(const Profile&, const KernelInfo&, const Block&);

// Gathers the live lanes of `mask` at a warp-synchronous instruction; the last one to arrive runs
// op(lanes, arrived) for all of them. in[] and out[] of each ThreadState carry operands and
// results.
void gather_lanes(ThreadState&, int pc, u32 mask, bool aligned, CollectiveOp, const void* closure);
void lane_exited(ThreadState&);
template <class F>
inline void collective(Thread& t, int pc, u32 mask, bool aligned, const F& f) {
  CollectiveOp run = [](const void* closure, ThreadState** lanes, u32 arrived) {
    (*(const F*)closure)(lanes, arrived);
  };
  gather_lanes(state_of(t), pc, mask, aligned, run, &f);
}
const u32 FULL_WARP = 0xffffffffu;

}  // namespace ptxcpu
