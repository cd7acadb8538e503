#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cnnkern {
namespace {

constexpr size_t kAlignment = 64, kHugePage = size_t{2} << 20;
constexpr size_t kKeep = size_t{64}
                         << 20;  // a larger one is given back at the next smaller request

struct Free {
  void operator()(void* p) const { std::free(p); }
};
struct Arena {
  std::unique_ptr<void, Free> memory;
  size_t size = 0;
};

}  // namespace

void* thread_workspace(Scratch kind, size_t bytes) {
  static thread_local Arena arenas[3];
  Arena& arena = arenas[int(kind)];
  if (arena.size < bytes || (arena.size > kKeep && bytes <= kKeep)) {
    arena.memory.reset();
    arena.size = 0;
    const size_t align = bytes >= kHugePage ? kHugePage : kAlignment;
    const size_t rounded = std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
    // Not aligned_alloc, which wants a size in whole alignments: what is over stays in small pages.
    void* memory = nullptr;
    if (posix_memalign(&memory, align, rounded)) throw std::bad_alloc();
    arena.memory.reset(memory);
#if defined(MADV_HUGEPAGE)
    if (align == kHugePage) (void)madvise(memory, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    arena.size = rounded;
  }
  return arena.memory.get();
}

}  // namespace cnnkern
