#include "parallel.h"

#include <torch/csrc/stable/ops.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cnnkern {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

void map_pages(void* data, int64_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  // glibc asks the system for every block of over 32 MiB, and gives it back when it is freed.
  constexpr int64_t kAlwaysFresh = int64_t{32} << 20, kPage = 4096, kPagesAtOnce = 512;
  if (bytes < kAlwaysFresh) return;
  char* first = static_cast<char*>(data) + (-reinterpret_cast<uintptr_t>(data)) % kPage;
  const int64_t pages = (static_cast<char*>(data) + bytes - first) / kPage;
  // Pages of 2 MiB take a fraction of that time again, where the system has some to give.
  (void)madvise(first, size_t(pages * kPage), MADV_HUGEPAGE);
  parallel_for(pages, kPagesAtOnce, [&](int64_t begin, int64_t end) {
    // Where the kernel cannot, the pages come by faults.
    (void)madvise(first + begin * kPage, size_t((end - begin) * kPage), MADV_POPULATE_WRITE);
  });
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace cnnkern
