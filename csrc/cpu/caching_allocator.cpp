#include "caching_allocator.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "parallel.h"

namespace cnnkern {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void unmap(const Block& block) { munmap(block.data, block.bytes); }

// Huge pages where the system has some to give, mapped at once and by all threads: a fraction of
// the time that a fault for each page takes.
Block map_block(size_t bytes) {
  const size_t whole = bytes + kHugePage;  // to cut a block from that begins at a huge page
  void* mapped = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return {nullptr, 0};
  char* first = static_cast<char*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(first) % kHugePage;
  char* data = first + before;
  if (before) munmap(first, before);
  munmap(data + bytes, kHugePage - before);
  (void)madvise(data, bytes, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
  parallel_for(int64_t(round_up(bytes, kHugePage) / kHugePage), 1, [&](int64_t b, int64_t e) {
    const size_t begin = size_t(b) * kHugePage, end = std::min(bytes, size_t(e) * kHugePage);
    // Where the kernel cannot, the pages come by faults.
    (void)madvise(data + begin, end - begin, MADV_POPULATE_WRITE);
  });
#endif
  return {data, bytes};
}

// The lock is only ever tried, and who does not get it does without the cache: in the child of a
// fork it may stay locked for good.
class Cache {
 public:
  // A block of the cache, or null and room made for a new one of `bytes`.
  Block take(size_t bytes) {
    std::vector<Block> dropped;
    Block block{nullptr, 0};
    if (std::unique_lock<std::mutex> lock{mutex_, std::try_to_lock}) {
      block = best_fit(bytes);
      in_use_ += block.data ? block.bytes : bytes;
      most_in_use_ = std::max(most_in_use_, in_use_);
      // What is mapped takes the place of what was of no use.
      const size_t room = block.data ? cached_ : cached_ - std::min(cached_, bytes);
      dropped = shrink_to(std::min(room, most_in_use_ - in_use_));
    }
    std::for_each(dropped.begin(), dropped.end(), unmap);
    return block;
  }

  // False: the caller has to unmap it.
  bool give(const Block& block) {
    std::unique_lock<std::mutex> lock{mutex_, std::try_to_lock};
    if (!lock) return false;
    in_use_ -= std::min(in_use_, block.bytes);
    blocks_.push_back(block);
    cached_ += block.bytes;
    return true;
  }

  void clear() {
    std::vector<Block> dropped;
    if (std::unique_lock<std::mutex> lock{mutex_, std::try_to_lock}) {
      dropped = shrink_to(0);
      most_in_use_ = in_use_;
    }
    std::for_each(dropped.begin(), dropped.end(), unmap);
  }

  size_t cached() {
    std::unique_lock<std::mutex> lock{mutex_, std::try_to_lock};
    return lock ? cached_ : 0;
  }

 private:
  // The smallest that is large enough, but by no more than a quarter; of equals the last to come.
  Block best_fit(size_t bytes) {
    auto best = blocks_.end();
    for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
      if (it->bytes >= bytes && it->bytes - bytes <= bytes / 4 &&
          (best == blocks_.end() || it->bytes <= best->bytes))
        best = it;
    return best == blocks_.end() ? Block{nullptr, 0} : remove(best);
  }

  std::vector<Block> shrink_to(size_t bytes) {
    std::vector<Block> dropped;
    while (cached_ > bytes) dropped.push_back(remove(blocks_.begin()));
    return dropped;
  }

  Block remove(std::vector<Block>::iterator it) {
    const Block block = *it;
    blocks_.erase(it);
    cached_ -= block.bytes;
    return block;
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;                         // the first to come first
  size_t cached_ = 0, in_use_ = 0, most_in_use_ = 0;  // bytes
};

Cache& cache() {
  static Cache* cache = new Cache;  // for good: tensors may outlive what is static
  return *cache;
}

}  // namespace

Block allocate_block(size_t bytes) {
  bytes = round_up(bytes, kPage);
  Block block = cache().take(bytes);
  if (!block.data) block = map_block(bytes);
  if (block.data) return block;
  empty_cache();
  return map_block(bytes);
}

void free_block(Block block) {
  if (!cache().give(block)) unmap(block);
}

size_t cached_bytes() { return cache().cached(); }

void empty_cache() { cache().clear(); }

bool cache_is_on() {
  static const bool on = [] {
    const char* value = std::getenv("CNNKERN_CPU_CACHE");
    return !value || std::strcmp(value, "0") != 0;
  }();
  return on;
}

}  // namespace cnnkern

#else

namespace cnnkern {

Block allocate_block(size_t) { return {nullptr, 0}; }
void free_block(Block) {}
size_t cached_bytes() { return 0; }
void empty_cache() {}
bool cache_is_on() { return false; }

}  // namespace cnnkern

#endif
