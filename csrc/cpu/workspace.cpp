#include "workspace.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace cnnkern {
namespace {

constexpr size_t kAlignment = 64;
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
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    arena.memory.reset(std::aligned_alloc(kAlignment, rounded ? rounded : kAlignment));
    if (!arena.memory) throw std::bad_alloc();
    arena.size = rounded;
  }
  return arena.memory.get();
}

}  // namespace cnnkern
