// Warp-level collectives, asynchronous copies, mbarriers, device printf and assert.
#include <cstdio>
#include "runtime.h"

namespace ptxcpu {

// ---------------------------------------------------------------- rendezvous
static void finish(Worker& w, Warp& warp, int index, u32 warp_number, ThreadState* running) {
  const Rendezvous r = warp.slots[index];
  warp.slots[index] = warp.slots[--warp.waiting];
  ThreadState* lanes[32];
  const u32 base = warp_number * 32;
  for (u32 i = 0; i < 32; i++) lanes[i] = base + i < w.threads ? &w.thread[base + i] : nullptr;
  r.run(r.closure, lanes, r.arrived);
  for (u32 i = 0; i < 32; i++)
    if ((r.arrived >> i & 1) && lanes[i] != running) w.make_ready(base + i);
}

void gather_lanes(ThreadState& t, int pc, u32 mask, bool aligned, CollectiveOp run,
                  const void* closure) {
  Worker& w = worker_of(t);
  Warp& warp = w.warp[t.warp];
  if (!(mask >> t.lane & 1))
    kernel_fail(t, pc, "lane %u is not in the member mask 0x%x of its own .sync instruction",
                t.lane, mask);
  if (aligned && w.check && warp.live != mask)
    kernel_fail(
        t, pc,
        "a whole-warp instruction needs 32 live lanes; lanes 0x%x have exited or never existed",
        ~warp.live);
  int i = 0;
  while (i < warp.waiting && warp.slots[i].mask != mask) i++;
  if (i == warp.waiting) warp.slots[warp.waiting++] = {mask, 0, pc, aligned, run, closure};
  Rendezvous& r = warp.slots[i];
  const u32* kinds = w.kernel->kinds;
  if (r.pc != pc && w.check && (aligned || kinds[r.pc] != kinds[pc]))
    kernel_fail(t, pc, "lanes 0x%x of warp %u wait at a different instruction, %s;", r.arrived,
                t.warp, location(t, r.pc));
  r.arrived |= 1u << t.lane;
  if (r.arrived == (mask & warp.live)) {
    finish(w, warp, i, t.warp, &t);
    return;
  }
  t.state = WAIT_WARP;
  t.wait_pc = pc;
  yield_fiber(t);
}

// The remaining lanes of a mask no longer wait for a lane that has exited.
void lane_exited(ThreadState& t) {
  Worker& w = worker_of(t);
  Warp& warp = w.warp[t.warp];
  for (int i = warp.waiting - 1; i >= 0; i--) {
    Rendezvous& r = warp.slots[i];
    if (!(r.mask >> t.lane & 1)) continue;
    if (r.aligned && w.check)
      kernel_fail(t, r.pc, "lane exited while others wait at a whole-warp instruction:");
    if (r.arrived == (r.mask & warp.live)) finish(w, warp, i, t.warp, nullptr);
  }
}

// ---------------------------------------------------------------- shuffles, votes, reductions
void warp_barrier(Thread& thread, int pc, u32 mask) {
  collective(thread, pc, mask, false, [&](ThreadState** lanes, u32 arrived) {
    if (thread.block->check < 2) return;
    u32 latest = 0;
    for (int i = 0; i < 32; i++)
      if (arrived >> i & 1) latest = std::max(latest, lanes[i]->clock.warp_epoch);
    for (int i = 0; i < 32; i++)
      if (arrived >> i & 1) lanes[i]->clock.warp_epoch = latest + 1;
  });
}

u32 shuffle(Thread& thread, int pc, ShuffleMode mode, u32 value, u32 lane, u32 clamp, u32 mask,
            bool* in_range) {
  ThreadState& t = state_of(thread);
  t.in[0] = value, t.in[1] = lane, t.in[2] = clamp;
  collective(t, pc, mask, false, [&](ThreadState** lanes, u32 arrived) {
    for (int i = 0; i < 32; i++) {
      if (!(arrived >> i & 1)) continue;
      const u32 b = lanes[i]->in[1] & 31, segment = lanes[i]->in[2] >> 8 & 31,
                limit = lanes[i]->in[2] & 31;
      const int highest = (i & segment) | (limit & ~segment), lowest = i & segment;
      int source;
      bool valid;
      switch (mode) {
        case SHUFFLE_UP: source = i - (int)b, valid = source >= highest; break;
        case SHUFFLE_DOWN: source = i + b, valid = source <= highest; break;
        case SHUFFLE_BFLY: source = i ^ b, valid = source <= highest; break;
        default: source = lowest | (b & ~segment), valid = source <= highest;
      }
      if (!valid) source = i;
      const bool present = arrived >> source & 1;
      if (!present && t.block->check)
        kernel_fail(lanes[i] ? *lanes[i] : t, pc,
                    "shuffle in lane %d reads lane %d, which has exited or is not in the mask", i,
                    source);
      lanes[i]->out[0] = present ? lanes[source]->in[0] : 0xdeadbeef;
      lanes[i]->out[1] = valid;
    }
  });
  *in_range = t.out[1];
  return (u32)t.out[0];
}

u32 vote(Thread& thread, int pc, VoteMode mode, bool value, u32 mask) {
  ThreadState& t = state_of(thread);
  t.in[0] = value;
  collective(t, pc, mask, false, [&](ThreadState** lanes, u32 arrived) {
    u32 ballot = 0;
    for (int i = 0; i < 32; i++)
      if ((arrived >> i & 1) && lanes[i]->in[0]) ballot |= 1u << i;
    const u32 result = mode == VOTE_BALLOT ? ballot
                       : mode == VOTE_ALL  ? ballot == arrived
                       : mode == VOTE_ANY  ? ballot != 0
                                           : !ballot || ballot == arrived;
    for (int i = 0; i < 32; i++)
      if (arrived >> i & 1) lanes[i]->out[0] = result;
  });
  return (u32)t.out[0];
}

u32 match_any(Thread& thread, int pc, u64 value, u32 mask) {
  ThreadState& t = state_of(thread);
  t.in[0] = value;
  collective(t, pc, mask, false, [&](ThreadState** lanes, u32 arrived) {
    for (int i = 0; i < 32; i++) {
      if (!(arrived >> i & 1)) continue;
      u32 equal = 0;
      for (int j = 0; j < 32; j++)
        if ((arrived >> j & 1) && lanes[j]->in[0] == lanes[i]->in[0]) equal |= 1u << j;
      lanes[i]->out[0] = equal;
    }
  });
  return (u32)t.out[0];
}

u32 match_all(Thread& thread, int pc, u64 value, u32 mask, bool* all) {
  const u32 equal = match_any(thread, pc, value, mask);
  *all = equal == (mask & active_lanes(thread));
  return *all ? equal : 0;
}

u32 warp_reduce(Thread& thread, int pc, ReduceOp op, u32 value, u32 mask) {
  ThreadState& t = state_of(thread);
  t.in[0] = value;
  collective(t, pc, mask, false, [&](ThreadState** lanes, u32 arrived) {
    u32 r = (u32)lanes[__builtin_ctz(arrived)]->in[0];
    for (int i = __builtin_ctz(arrived) + 1; i < 32; i++) {
      if (!(arrived >> i & 1)) continue;
      const u32 x = (u32)lanes[i]->in[0];
      switch (op) {
        case REDUX_ADD: r += x; break;
        case REDUX_MIN_U: r = std::min(r, x); break;
        case REDUX_MAX_U: r = std::max(r, x); break;
        case REDUX_MIN_S: r = (u32)std::min((s32)r, (s32)x); break;
        case REDUX_MAX_S: r = (u32)std::max((s32)r, (s32)x); break;
        case REDUX_AND: r &= x; break;
        case REDUX_OR: r |= x; break;
        case REDUX_XOR: r ^= x; break;
      }
    }
    for (int i = 0; i < 32; i++)
      if (arrived >> i & 1) lanes[i]->out[0] = r;
  });
  return (u32)t.out[0];
}

// activemask: the lanes that have not exited. Convergence is not modelled.
u32 active_lanes(Thread& t) { return worker_of(t).warp[t.warp].live; }

// ---------------------------------------------------------------- cp.async
void async_copy(Thread& thread, int pc, u32 destination, u64 source, u32 size, u32 source_size) {
  ThreadState& t = state_of(thread);
  source_size = std::min(source_size, size);
  if (source_size && t.block->check) {
    if (source & (size - 1))
      kernel_fail(t, pc, "misaligned cp.async source 0x%llx for %u bytes",
                  (unsigned long long)source, size);
    if (source_size == size)
      check_global(t, source, size, pc, READ);
    else
      for (u32 i = 0; i < source_size; i++) check_global(t, source + i, 1, pc, READ);
  }
  check_shared(t, destination, size, pc, WRITE);
  if (t.block->check > 1) mark_pending(worker_of(t), destination, size, pc);
  t.copies.push_back({destination, size, source_size, source, pc});
}

void land_copies(ThreadState& t, size_t upto) {
  for (; t.landed < upto; t.landed++) {
    const AsyncCopy& c = t.copies[t.landed];
    u8 data[16] = {};
    memcpy(data, (const void*)c.source, c.source_size);
    if (t.block->check > 1) mark_pending(worker_of(t), c.destination, c.size, -1);
    check_shared(t, c.destination, c.size, c.pc, WRITE, data);
    memcpy(t.block->shared + c.destination, data, c.size);
  }
  if (t.landed == t.copies.size() && t.group_head == t.group_end.size()) {
    t.copies.clear(), t.group_end.clear();
    t.landed = t.group_head = 0;
  }
}

void async_commit(Thread& t) { state_of(t).group_end.push_back((u32)state_of(t).copies.size()); }

void async_wait(Thread& thread, u32 groups_left) {
  ThreadState& t = state_of(thread);
  size_t upto = t.landed;
  while (t.group_end.size() - t.group_head > groups_left) upto = t.group_end[t.group_head++];
  land_copies(t, upto);
}

void async_wait_all(Thread& thread) {
  ThreadState& t = state_of(thread);
  t.group_head = t.group_end.size();
  land_copies(t, t.copies.size());
}

// ---------------------------------------------------------------- mbarrier
static MBarrier& find_mbarrier(Thread& t, int pc, u32 offset) {
  auto& all = worker_of(t).mbarriers;
  auto it = all.find(offset);
  if (it == all.end())
    kernel_fail(t, pc, "mbarrier at shared offset %u was never initialised", offset);
  return it->second;
}

void mbarrier_init(Thread& t, int, u32 offset, u32 count) {
  worker_of(t).mbarriers[offset] = MBarrier{count, count, 0, Clock{}, Clock{}};
}

// Returns the phase the arrival belongs to, which is what mbarrier.test_wait takes back as its
// state.
u64 mbarrier_arrive(Thread& thread, int pc, u32 offset, u32 count) {
  ThreadState& t = state_of(thread);
  MBarrier& m = find_mbarrier(t, pc, offset);
  if (count > m.pending)
    kernel_fail(t, pc, "mbarrier at shared offset %u receives more arrivals than the %u it expects",
                offset, m.expected);
  join_clocks(m.joined, t.clock);
  m.joined.epoch[t.warp] = std::max(m.joined.epoch[t.warp], t.clock.epoch[t.warp] + 1);
  t.clock.epoch[t.warp]++;
  const u64 phase = m.phase;
  if (!(m.pending -= count)) m.pending = m.expected, m.phase++, m.released = m.joined;
  return phase;
}

// Waiting code polls, so an unsuccessful test lets every other ready thread run first.
bool mbarrier_test(Thread& thread, int pc, u32 offset, u32 parity) {
  ThreadState& t = state_of(thread);
  Worker& w = worker_of(t);
  MBarrier& m = find_mbarrier(t, pc, offset);
  const auto complete = [&] { return (m.phase & 1) != (parity & 1); };
  if (!complete()) {
    if (++t.polls > 10000)
      kernel_fail(t, pc, "mbarrier at shared offset %u never completes (%u arrivals missing)",
                  offset, m.pending);
    w.make_ready_last(t.linear);
    yield_fiber(t);
    if (!complete()) return false;
  }
  t.polls = 0;
  join_clocks(t.clock, m.released);
  return true;
}

// ---------------------------------------------------------------- printf and assert
void device_printf(const char* format, const u8* args) {
  u32 offset = 0;
  auto next = [&](u32 size) {
    offset = (offset + size - 1) / size * size;
    const u8* p = args + offset;
    offset += size;
    return p;
  };
  for (const char* p = format; *p; p++) {
    if (*p != '%') {
      fputc(*p, stdout);
      continue;
    }
    std::string spec = "%";
    while (*++p && strchr("-+ #0123456789.hlzjt", *p)) spec += *p;
    if (!*p) break;
    spec += *p;
    const bool wide = spec.find('l') != std::string::npos || spec.find('z') != std::string::npos;
    if (*p == '%')
      fputc('%', stdout);
    else if (strchr("eEfFgGaA", *p))
      printf(spec.c_str(), load_as<f64>(next(8)));
    else if (*p == 's')
      printf(spec.c_str(), load_as<const char*>(next(8)));
    else if (*p == 'p')
      printf(spec.c_str(), load_as<void*>(next(8)));
    else if (wide)
      printf(spec.c_str(), load_as<u64>(next(8)));
    else
      printf(spec.c_str(), load_as<u32>(next(4)));
  }
  fflush(stdout);
}

void device_assert(Thread& t, int pc, const char* message, const char* file, u32 line) {
  kernel_fail(t, pc, "device assert failed: %s (%s:%u)", message, file, line);
}

}  // namespace ptxcpu
