// Memory of large tensors, kept when it is freed: glibc gives it back to the system, and to map and
// clear fresh pages takes as long as some kernels do.
#pragma once
#include <cstddef>

namespace cnnkern {

struct Block {
  void* data;  // at the edge of a huge page; null: there is no memory
  size_t bytes;
};

// What is in use and what is kept never add up to more than the most that was in use at one time,
// and a block that has to be mapped takes the place of kept ones. To mark kept pages as free for
// the system (MADV_FREE) was measured: a fifth of a kernel's time, at the next one's first writes.
Block allocate_block(size_t bytes);  // of at least `bytes`
void free_block(Block block);

size_t cached_bytes();
void empty_cache();  // to the system

// False where CNNKERN_CPU_CACHE=0 is in the environment, and on a system that is not Linux.
bool cache_is_on();

}  // namespace cnnkern
