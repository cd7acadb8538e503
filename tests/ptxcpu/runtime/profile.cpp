// Profiling: dynamic instruction counts, global-memory sectors, shared-memory bank conflicts,
// unique bytes. Counts are exact for the PTX as executed here; ptxas may schedule, merge or unroll
// differently.
#include <cstdio>
#include "runtime.h"

namespace ptxcpu {

// Keep in step with CLASSES in instructions.py. A class of 0 is not counted (labels, parameter
// loads, moves).
static const char* const CLASS_NAMES[] = {
    "uncounted",   "fp32",         "fp64",       "half",        "integer",
    "convert",     "special",      "tensor",     "global_load", "global_store",
    "shared_load", "shared_store", "async_copy", "local",       "atomic",
    "warp",        "barrier",      "control",    "other"};
enum { CLASS_TENSOR = 7, CLASS_GLOBAL_LOAD = 8, CLASS_GLOBAL_STORE = 9, CLASS_BARRIER = 16 };

// The n-th execution of an instruction by each lane of a warp is taken as one request of that warp.
void profile_memory(Thread& thread, int pc, u64 address, u32 size, bool shared) {
  ThreadState& t = state_of(thread);
  const u32 n = t.occurrence[pc]++;
  worker_of(t).requests[{(u64)pc * 2 + shared, t.warp + MAX_WARPS * n}].push_back(
      {t.lane, size, address});
}

static bool is_store(const KernelInfo& k, u32 pc) { return k.classes[pc] == CLASS_GLOBAL_STORE; }

static void fold_global(Profile& p, const std::vector<Request>& lanes, bool store) {
  std::vector<u64> sectors;
  for (const Request& r : lanes) {
    p.global_bytes[store] += r.size;
    for (u64 a = r.address; a < r.address + r.size; a++) p.touched[store][a / 32] |= 1u << (a % 32);
    for (u64 s = r.address / 32; s <= (r.address + r.size - 1) / 32; s++) sectors.push_back(s);
  }
  std::sort(sectors.begin(), sectors.end());
  p.global_requests[store]++;
  p.global_sectors[store] += std::unique(sectors.begin(), sectors.end()) - sectors.begin();
}

// A request is served in groups of 32, 16 or 8 lanes (128 bytes); each group takes as many passes
// as the busiest of the 32 banks has distinct words.
static void fold_shared(Profile& p, const std::vector<Request>& lanes) {
  const u32 size = lanes[0].size, group = size <= 4 ? 32 : size == 8 ? 16 : 8;
  p.shared_requests++;
  for (u32 first = 0; first < 32; first += group) {
    std::vector<u64> words;
    for (const Request& r : lanes)
      if (r.lane / group == first / group)
        for (u32 w = 0; w < std::max(1u, size / 4); w++) words.push_back(r.address / 4 + w);
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    u32 bank[32] = {}, passes = 0;
    for (u64 w : words) passes = std::max(passes, ++bank[w % 32]);
    p.shared_wavefronts += passes;
    p.shared_ideal++;
  }
}

void fold_profile(Worker& w) {
  for (auto& entry : w.requests) {
    const u32 pc = (u32)(entry.first.first / 2);
    if (entry.first.first & 1)
      fold_shared(*w.profile, entry.second);
    else
      fold_global(*w.profile, entry.second, is_store(*w.kernel, pc));
  }
  w.requests.clear();
}

// ---------------------------------------------------------------- JSON
struct Json {
  std::string text = "{";
  void key(const char* k) {
    if (text.back() != '{') text += ", ";
    text += std::string("\"") + k + "\": ";
  }
  void number(const char* k, f64 v) {
    char b[40];
    snprintf(b, sizeof b, v == (f64)(s64)v ? "%.0f" : "%.4g", v);
    key(k);
    text += b;
  }
  void number_or_null(const char* k, s64 v) {
    if (v < 0) {
      key(k);
      text += "null";
    } else
      number(k, (f64)v);
  }
  void raw(const char* k, const std::string& v) {
    key(k);
    text += v;
  }
  std::string done() { return text + "}"; }
};
static std::string quoted(const char* s) {
  std::string r = "\"";
  for (; *s; s++) {
    if (*s == '"' || *s == '\\') r += '\\';
    r += *s;
  }
  return r + "\"";
}

// Theoretical occupancy: the most blocks an SM can hold, by threads, registers, shared memory and
// block slots.
static std::string occupancy(const KernelInfo& k, const Block& b, int gpu) {
  const u32 shared_per_sm = gpu ? 233472 : 167936, warps = b.warps,
            registers = k.registers[gpu] > 0 ? k.registers[gpu] : 0;
  u32 blocks = 32;
  const char* limit = "block slots";
  auto apply = [&](u32 n, const char* name) {
    if (n < blocks) blocks = n, limit = name;
  };
  apply(64 / warps, "threads");
  if (b.shared_size)
    apply(shared_per_sm / ((b.shared_size + 127) / 128 * 128 + 1024), "shared memory");
  if (registers) apply(65536 / 4 / ((registers + 7) / 8 * 8 * 32) * 4 / warps, "registers");
  Json j;
  j.number("blocks_per_sm", blocks);
  j.number("occupancy", blocks * warps / 64.0);
  j.raw("limited_by", quoted(limit));
  j.number_or_null("registers", k.registers[gpu]);
  j.number_or_null("spill_bytes", k.spills[gpu]);
  return j.done();
}

static std::string triple(u32 x, u32 y, u32 z) {
  return "[" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + "]";
}

std::string profile_json(const Profile& p, const KernelInfo& k, const Block& b) {
  const u32 classes = sizeof CLASS_NAMES / sizeof *CLASS_NAMES;
  std::vector<u64> by_class(classes);
  f64 flops = 0, tensor_flops = 0;
  u64 total = 0;
  for (u32 pc = 0; pc < k.instructions; pc++) {
    by_class[k.classes[pc]] += p.counts[pc];
    if (k.classes[pc]) total += p.counts[pc];
    flops += k.flops[pc] * p.counts[pc];
    if (k.classes[pc] == CLASS_TENSOR) tensor_flops += k.flops[pc] * p.counts[pc];
  }
  Json counts;
  for (u32 c = 1; c < classes; c++)
    if (by_class[c]) counts.number(CLASS_NAMES[c], (f64)by_class[c]);
  Json j;
  j.raw("kernel", quoted(k.name));
  j.raw("grid", triple(b.gx, b.gy, b.gz));
  j.raw("block", triple(b.nx, b.ny, b.nz));
  j.number("thread_instructions", (f64)total);
  j.raw("instructions_by_class", counts.done());
  j.number("flops", flops);
  j.number("tensor_core_share_of_flops", flops ? tensor_flops / flops : 0);
  const char* const names[2][5] = {
      {"global_load_requests", "global_load_sectors", "global_load_sectors_per_request",
       "global_load_bytes", "global_load_unique_bytes"},
      {"global_store_requests", "global_store_sectors", "global_store_sectors_per_request",
       "global_store_bytes", "global_store_unique_bytes"}};
  for (int store = 0; store < 2; store++) {
    u64 unique = 0;
    for (auto& sector : p.touched[store]) unique += __builtin_popcount(sector.second);
    j.number(names[store][0], (f64)p.global_requests[store]);
    j.number(names[store][1], (f64)p.global_sectors[store]);
    j.number(names[store][2], p.global_requests[store]
                                  ? (f64)p.global_sectors[store] / p.global_requests[store]
                                  : 0);
    j.number(names[store][3], (f64)p.global_bytes[store]);
    j.number(names[store][4], (f64)unique);
  }
  j.number("shared_requests", (f64)p.shared_requests);
  j.number("shared_wavefronts", (f64)p.shared_wavefronts);
  j.number("shared_bank_conflicts", (f64)(p.shared_wavefronts - p.shared_ideal));
  j.number("barriers_per_thread",
           b.threads ? (f64)by_class[CLASS_BARRIER] / ((f64)b.threads * b.gx * b.gy * b.gz) : 0);
  j.number("static_shared_bytes", k.static_shared);
  j.number("dynamic_shared_bytes", b.dynamic_size);
  j.raw("sm_80", occupancy(k, b, 0));
  j.raw("sm_90", occupancy(k, b, 1));
  return j.done();
}

}  // namespace ptxcpu
