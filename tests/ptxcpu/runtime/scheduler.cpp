// Fibers, the block scheduler, block barriers, memory checks and the launch entry point.
// It is long because all of them work on the state of one block, which no other file sees.
#include <sys/mman.h>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include "runtime.h"

namespace ptxcpu {

// ---------------------------------------------------------------- fibers
extern "C" void ptxcpu_switch(void** save, void* to);
asm(R"(
.text
.globl ptxcpu_switch
.hidden ptxcpu_switch
.type ptxcpu_switch,@function
ptxcpu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

static const size_t STACK_SIZE = 256 * 1024;

void Worker::make_ready(u32 i) {
  thread[i].state = READY;
  ready[(ready_head + ready_count++) % MAX_THREADS] = (u16)i;
}

void Worker::make_ready_last(u32 i) {
  if (order != 1) return make_ready(i);
  ready_head =
      (ready_head + MAX_THREADS - 1) % MAX_THREADS;  // the far end, as seen last-in first-out
  ready_count++;
  thread[i].state = READY;
  ready[ready_head] = (u16)i;
}

static int pick_ready(Worker& w) {
  if (!w.ready_count) return -1;
  if (w.order == 1) return w.ready[(w.ready_head + --w.ready_count) % MAX_THREADS];
  if (w.order == 2) {
    u64& x = w.random;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::swap(w.ready[(w.ready_head + x % w.ready_count) % MAX_THREADS], w.ready[w.ready_head]);
  }
  const u32 i = w.ready[w.ready_head];
  w.ready_head = (w.ready_head + 1) % MAX_THREADS;
  w.ready_count--;
  return i;
}

// Runs the next ready fiber, or returns to run_block when there is none.
static void switch_away(Worker& w, ThreadState* from, void** save) {
  const int next = pick_ready(w);
  if (next < 0) {
    ptxcpu_switch(save, w.main_stack);
    return;
  }
  ThreadState* to = &w.thread[next];
  if (to == from) return;
  w.current = to;
  ptxcpu_switch(save, to->stack);
}

void yield_fiber(ThreadState& t) {
  Worker& w = worker_of(t);
  switch_away(w, &t, &t.stack);
  w.current = &t;
}

void kernel_fail(Thread& t, int pc, const char* format, ...) {
  Worker& w = worker_of(t);
  char text[1024], where[256];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  snprintf(where, sizeof where, " by block (%u,%u,%u) thread (%u,%u,%u) at ", w.bx, w.by, w.bz,
           t.tx, t.ty, t.tz);
  w.error = std::string(text) + where + (pc >= 0 ? location(t, pc) : "(unknown)");
  w.failed = true;
  void* unused;
  ptxcpu_switch(&unused, w.main_stack);
  abort();
}

// ---------------------------------------------------------------- block barriers
void join_clocks(Clock& into, const Clock& from) {
  for (u32 i = 0; i < MAX_WARPS; i++) into.epoch[i] = std::max(into.epoch[i], from.epoch[i]);
}

// Contributes a thread's clock to a barrier and starts its next epoch.
static void publish_clock(ThreadState& t, Clock& joined) {
  join_clocks(joined, t.clock);
  joined.epoch[t.warp] = std::max(joined.epoch[t.warp], t.clock.epoch[t.warp] + 1);
}

static void release_barrier(Worker& w, Barrier& b, ThreadState* running) {
  for (u32 i : b.waiting) {
    b.warp_pc[i / 32] = 0;
    if (w.check > 1) join_clocks(w.thread[i].clock, b.joined);
    if (&w.thread[i] != running) w.make_ready(i);
  }
  if (running) running->state = READY;
  b.waiting.clear();
  b.arrived = 0;
  if (w.check > 1) b.joined = Clock{};
}

static bool barrier_complete(Worker& w, Barrier& b) {
  return b.waiting.size() + b.arrived >= (b.needed ? b.needed : w.live);
}

static Barrier& enter_barrier(ThreadState& t, int pc, u32 id, u32 count) {
  Worker& w = worker_of(t);
  if (id >= MAX_BARRIERS) kernel_fail(t, pc, "barrier %u does not exist", id);
  if (count % 32) kernel_fail(t, pc, "barrier thread count %u is not a multiple of 32", count);
  Barrier& b = w.barrier[id];
  if (b.waiting.empty() && !b.arrived) b.needed = count;
  if (b.needed != count)
    kernel_fail(t, pc, "barrier %u used with %u and %u threads at once", id, b.needed, count);
  if (w.check > 1) publish_clock(t, b.joined);
  return b;
}

void barrier_sync(Thread& thread, int pc, u32 id, u32 count, bool aligned) {
  ThreadState& t = state_of(thread);
  Worker& w = worker_of(t);
  Barrier& b = enter_barrier(t, pc, id, count);
  int& elsewhere = b.warp_pc[t.warp];
  if (aligned && w.check && elsewhere && elsewhere != pc + 1)
    kernel_fail(t, pc,
                "divergent barrier: lanes of warp %u wait at different barriers, here and at %s;",
                t.warp, location(t, elsewhere - 1));
  elsewhere = pc + 1;
  t.state = WAIT_BARRIER;
  t.wait_pc = pc;
  b.waiting.push_back(t.linear);
  if (barrier_complete(w, b))
    release_barrier(w, b, &t);
  else
    yield_fiber(t);
}

void barrier_arrive(Thread& thread, int pc, u32 id, u32 count) {
  ThreadState& t = state_of(thread);
  Worker& w = worker_of(t);
  Barrier& b = enter_barrier(t, pc, id, count);
  if (w.check > 1) t.clock.epoch[t.warp]++;
  b.arrived++;
  if (barrier_complete(w, b)) release_barrier(w, b, nullptr);
}

u32 barrier_reduce(Thread& thread, int pc, u32 id, u32 count, BarrierReduce op, bool value) {
  ThreadState& t = state_of(thread);
  Worker& w = worker_of(t);
  t.in[15] = value ? 2 : 1;  // non-zero marks a participant
  barrier_sync(t, pc, id, count, true);
  u32 ones = 0, all = 0;
  for (ThreadState& o : w.thread)
    if (o.in[15]) all++, ones += o.in[15] == 2;
  barrier_sync(t, pc, id, count, true);
  t.in[15] = 0;
  return op == BARRIER_POPC ? ones : op == BARRIER_AND ? ones == all : ones != 0;
}

// ---------------------------------------------------------------- thread exit
void thread_exit(Thread& thread) {
  ThreadState& t = state_of(thread);
  Worker& w = worker_of(t);
  land_copies(t, t.copies.size());
  t.state = DONE;
  w.live--;
  w.warp[t.warp].live &= ~(1u << t.lane);
  for (Barrier& b : w.barrier) {
    if (b.waiting.empty()) continue;
    const int pc = w.thread[b.waiting[0]].wait_pc;
    if (w.check > 1) kernel_fail(t, pc, "thread exited while others wait at a barrier:");
    if (barrier_complete(w, b)) release_barrier(w, b, nullptr);
  }
  lane_exited(t);
  void* unused;
  switch_away(w, &t, &unused);
  abort();
}

static thread_local Worker* starting;  // the fiber entry point takes no argument
static void fiber_main() {
  ThreadState& t = *starting->current;
  starting->kernel->entry(t, starting->params);
  thread_exit(t);
}

// ---------------------------------------------------------------- memory checks
static const char* const ACCESS[] = {"read", "write", "atomic"};

static const Range* find_allocation(Worker& w, u64 address, u32 size) {
  const Range* end = w.allocations + w.allocation_count;
  const Range* r = std::upper_bound(w.allocations, end, address,
                                    [](u64 a, const Range& x) { return a < x.base; });
  if (r == w.allocations) return nullptr;
  --r;
  return address - r->base < r->size && r->size - (address - r->base) >= size ? r : nullptr;
}

void check_global_slow(Thread& t, u64 address, u32 size, int pc, Access access) {
  Worker& w = worker_of(t);
  const Range* r = find_allocation(w, address, size);
  if (!r) {
    std::string near_by = "no allocation is near";
    u64 best = ~0ull;
    for (size_t i = 0; i < w.allocation_count; i++) {
      const Range& x = w.allocations[i];
      const u64 distance =
          address < x.base ? x.base - address : address - std::min(address, x.base + x.size);
      if (distance > best || distance > 1 << 26) continue;
      best = distance;
      near_by = "nearest allocation has " + std::to_string(x.size) +
                " bytes and this is at offset " + std::to_string((s64)(address - x.base));
    }
    kernel_fail(t, pc, "out-of-bounds global %s of %u bytes at 0x%llx (%s)", ACCESS[access], size,
                (unsigned long long)address, near_by.c_str());
  }
  if (address & (size - 1))
    kernel_fail(t, pc, "misaligned global %s of %u bytes at 0x%llx", ACCESS[access], size,
                (unsigned long long)address);
  w.recent[pc & 63] = *r;
}

void check_shared_slow(Thread& t, u32 offset, u32 size, int pc, Access access, const void* data) {
  Worker& w = worker_of(t);
  if ((u64)offset + size > w.shared_size)
    kernel_fail(t, pc, "out-of-bounds shared %s of %u bytes at offset %u (the block has %u bytes)",
                ACCESS[access], size, offset, w.shared_size);
  if (offset & (size - 1))
    kernel_fail(t, pc, "misaligned shared %s of %u bytes at offset %u", ACCESS[access], size,
                offset);
  if (w.check > 1) check_race(t, offset, size, pc, access, data);
}

void check_generic_slow(Thread& thread, u64 address, u32 size, int pc, Access access,
                        const void* data) {
  ThreadState& t = state_of(thread);
  if (in_shared(t, address))
    check_shared(t, (u32)(address - (u64)t.block->shared), size, pc, access, data);
  else if (address < (u64)t.stack_low || address >= (u64)t.stack_high)
    check_global(t, address, size, pc, access);
}

// Accesses are ordered if made by one thread, or separated by a barrier both joined, or (in one
// warp) by bar.warp.sync. Stores of the same instruction in one warp, and stores of equal bytes,
// are let through.
static bool ordered_before(const ShadowAccess& a, const ThreadState& t) {
  const u32 warp = a.thread / 32;
  return a.thread == t.linear || t.clock.epoch[warp] > a.epoch ||
         (warp == t.warp && t.clock.warp_epoch > a.warp_epoch);
}

static void report_race(ThreadState& t, u32 offset, int pc, const char* what,
                        const ShadowAccess& other) {
  kernel_fail(t, pc, "shared-memory race (%s) near byte %u with thread %u (linear) at %s;", what,
              offset, other.thread, location(t, other.pc));
}

void mark_pending(Worker& w, u32 offset, u32 size, int pc_or_none) {
  for (u32 i = offset / SHADOW_BYTES; i <= (offset + size - 1) / SHADOW_BYTES; i++)
    w.shadow[i].pending_pc = pc_or_none + 1;
}

void check_race(Thread& thread, u32 offset, u32 size, int pc, Access access, const void* data) {
  ThreadState& t = state_of(thread);
  Worker& w = worker_of(t);
  ShadowAccess now = {t.clock.epoch[t.warp], t.clock.warp_epoch, pc, (u16)t.linear, 3,
                      access == ATOMIC};
  auto same_bytes = [&] {
    return access == WRITE && data && !memcmp(w.shared + offset, data, size);
  };
  for (u32 i = offset / SHADOW_BYTES; i <= (offset + size - 1) / SHADOW_BYTES; i++) {
    Shadow& s = w.shadow[i];
    if (size == 1) now.bytes = 1 << (offset & 1);
    if (s.pending_pc)
      kernel_fail(
          t, pc,
          "shared memory at byte %u is used before the copy issued at %s has been waited for;",
          i * SHADOW_BYTES, location(t, s.pending_pc - 1));
    if ((s.write.bytes & now.bytes) && !ordered_before(s.write, t)) {
      const bool same_store = access == WRITE && s.write.pc == pc && s.write.thread / 32 == t.warp;
      const bool both_atomic = access == ATOMIC && s.write.atomic;
      if (!same_store && !both_atomic && !same_bytes())
        report_race(t, i * SHADOW_BYTES, pc,
                    access == READ ? "read after write" : "write after write", s.write);
    }
    if (access == READ) {
      if (s.read.bytes && s.read.thread / 32 != t.warp && !ordered_before(s.read, t))
        s.other_read = s.read;
      s.read = now;
      continue;
    }
    for (const ShadowAccess* r : {&s.read, &s.other_read})
      if ((r->bytes & now.bytes) && !ordered_before(*r, t) && !same_bytes())
        report_race(t, i * SHADOW_BYTES, pc, "write after read", *r);
    s.write = now;
    s.read.bytes = s.other_read.bytes = 0;
  }
}

// ---------------------------------------------------------------- running blocks
static void prepare_fiber(Worker& w, u32 i) {
  ThreadState& t = w.thread[i];
  t.linear = i;
  t.tx = i % w.nx, t.ty = i / w.nx % w.ny, t.tz = i / w.nx / w.ny;
  t.lane = i & 31, t.warp = i >> 5;
  t.block = &w;
  t.state = READY;
  t.copies.clear(), t.group_end.clear();
  t.landed = t.group_head = 0;
  t.in[15] = t.polls = 0;
  if (w.check > 1) t.clock = Clock{};
  if (w.profile) t.occurrence.assign(w.kernel->instructions, 0);
  w.warp[t.warp].live |= 1u << t.lane;
  t.stack_low = w.stacks + STACK_SIZE * i;
  t.stack_high = t.stack_low + STACK_SIZE;
  // Stagger the stack tops, or all fibers' frames would compete for the same cache sets.
  u64* top = (u64*)(t.stack_high - 64 - (i % 56) * 64 * 5 % 3584);
  *--top = 0;
  *--top = (u64)(void*)fiber_main;
  for (int saved = 0; saved < 6; saved++) *--top = 0;
  t.stack = top;
}

bool Worker::run_block(u32 x, u32 y, u32 z) {
  bx = x, by = y, bz = z;
  memset(shared, 0xff, shared_size);  // NaNs: reading what nobody wrote shows in the result
  if (check > 1) shadow.assign(shared_size / SHADOW_BYTES + 1, Shadow{});
  live = threads;
  ready_head = ready_count = 0;
  random = (seed + 1) * 0x9E3779B97F4A7C15ull +
           ((u64)z << 42 | (u64)y << 21 | x) * 0xD1B54A32D192ED03ull;
  if (!random) random = 1;
  for (Warp& v : warp) v.live = v.waiting = 0;
  for (Barrier& b : barrier) {
    b.waiting.clear(), b.arrived = b.needed = 0, b.joined = Clock{};
    memset(b.warp_pc, 0, sizeof b.warp_pc);
  }
  mbarriers.clear();
  for (u32 i = 0; i < threads; i++) prepare_fiber(*this, i);
  for (u32 i = 0; i < threads; i++) make_ready(order == 1 ? threads - 1 - i : i);
  failed = false;
  starting = this;
  current = &thread[pick_ready(*this)];
  ptxcpu_switch(&main_stack, current->stack);
  if (failed) return false;
  if (live) {
    std::map<std::string, int> waiting;
    for (ThreadState& t : thread)
      if (t.state != DONE) waiting[kernel->locations[t.wait_pc]]++;
    error = "deadlock in block (" + std::to_string(x) + "," + std::to_string(y) + "," +
            std::to_string(z) + "):";
    for (auto& e : waiting)
      error += " " + std::to_string(e.second) + " threads wait at " + e.first + ";";
    return false;
  }
  if (profile) fold_profile(*this);
  return true;
}

// ---------------------------------------------------------------- launch
struct LaunchConfig {
  u32 grid[3], block[3];
  u32 dynamic_shared;
  s32 order, check, workers;
  u64 seed;
  const Range* allocations;  // sorted by base
  u64 allocation_count;
  s32 profile;
};

static std::mutex launch_mutex;
static std::vector<std::unique_ptr<Worker>> workers;
static std::string last_error, last_profile;

static void prepare_worker(Worker& w, const KernelInfo& k, const LaunchConfig& c, u8* params) {
  const u32 n = c.block[0] * c.block[1] * c.block[2];
  if (!w.stacks)
    w.stacks = (u8*)mmap(nullptr, STACK_SIZE * MAX_THREADS, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!w.shared_buffer) w.shared_buffer = (u8*)aligned_alloc(1024, 256 * 1024);
  w.kernel = &k, w.params = params;
  w.gx = c.grid[0], w.gy = c.grid[1], w.gz = c.grid[2];
  w.nx = c.block[0], w.ny = c.block[1], w.nz = c.block[2];
  w.threads = n, w.warps = (n + 31) / 32;
  w.shared = w.shared_buffer;
  w.dynamic_offset = k.static_shared, w.dynamic_size = c.dynamic_shared;
  w.shared_size = k.static_shared + c.dynamic_shared;
  w.check = c.check, w.order = c.order, w.seed = c.seed;
  w.allocations = c.allocations, w.allocation_count = c.allocation_count;
  w.thread.resize(n);
  w.profile = nullptr;
  memset(w.recent, 0, sizeof w.recent);
}

PTX_API const char* ptxcpu_error() { return last_error.c_str(); }
PTX_API const char* ptxcpu_profile() { return last_profile.c_str(); }

// Runs a grid; returns 0, or an error code with the explanation in ptxcpu_error().
PTX_API int ptxcpu_launch(const KernelInfo* kernel, const LaunchConfig* config, u8* params) {
  std::lock_guard<std::mutex> lock(launch_mutex);
  const u32 n = config->block[0] * config->block[1] * config->block[2];
  const u64 blocks = (u64)config->grid[0] * config->grid[1] * config->grid[2];
  last_error.clear(), last_profile.clear();
  if (!n || n > kernel->max_threads) {
    last_error = "block of " + std::to_string(n) + " threads; this kernel allows 1 to " +
                 std::to_string(kernel->max_threads);
    return 1;
  }
  if (kernel->static_shared + config->dynamic_shared > 232448) {
    last_error = "too much shared memory";
    return 1;
  }
  u32 count = config->profile || !kernel->parallel_blocks ? 1 : (u32)std::max(1, config->workers);
  count = (u32)std::min<u64>(count, std::max<u64>(blocks, 1));
  while (workers.size() < count) workers.emplace_back(new Worker);
  Profile profile;
  for (u32 i = 0; i < count; i++) prepare_worker(*workers[i], *kernel, *config, params);
  if (config->profile) {
    profile.counts.assign(kernel->instructions, 0);
    workers[0]->profile = &profile;
    workers[0]->counts = profile.counts.data();
  }
  std::atomic<u64> next(0);
  std::atomic<Worker*> failed(nullptr);
  auto run = [&](Worker* w) {
    for (u64 i; !failed && (i = next++) < blocks;)
      if (!w->run_block(i % w->gx, i / w->gx % w->gy, i / w->gx / w->gy)) {
        Worker* none = nullptr;
        failed.compare_exchange_strong(none, w);
      }
  };
  std::vector<std::thread> helpers;
  for (u32 i = 1; i < count; i++) helpers.emplace_back(run, workers[i].get());
  run(workers[0].get());
  for (std::thread& h : helpers) h.join();
  if (failed) {
    last_error = failed.load()->error;
    return 2;
  }
  if (config->profile) last_profile = profile_json(profile, *kernel, *workers[0]);
  return 0;
}

}  // namespace ptxcpu
