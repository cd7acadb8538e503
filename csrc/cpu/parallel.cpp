#include "parallel.h"

#include <torch/csrc/stable/ops.h>
#if defined(__linux__)
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#endif

namespace cnnkern {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

#if defined(MADV_POPULATE_WRITE)
namespace {

constexpr uintptr_t kPage = 4096, kHugePage = uintptr_t{2} << 20;

// Whether the system has pages of 2 MiB for those who ask.
bool has_huge_pages() {
  char text[64] = {};
  if (FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
    (void)!std::fread(text, 1, sizeof text - 1, file);
    std::fclose(file);
  }
  return text[0] && !std::strstr(text, "[never]");
}

// Where the kernel cannot, the pages come by faults.
void populate(uintptr_t begin, uintptr_t end) {
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
}

}  // namespace
#endif

void map_pages(void* data, int64_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  // glibc asks the system for every block of over 32 MiB, and gives it back when it is freed.
  constexpr int64_t kAlwaysFresh = int64_t{32} << 20, kPagesAtOnce = 512;
  if (bytes < kAlwaysFresh) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  static const bool huge = has_huge_pages();
  if (huge) {
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
    populate(first, (first + kHugePage - 1) / kHugePage * kHugePage);
    populate(last / kHugePage * kHugePage, last);
    return;
  }
  parallel_for(int64_t((last - first) / kPage), kPagesAtOnce, [&](int64_t begin, int64_t end) {
    populate(first + uintptr_t(begin) * kPage, first + uintptr_t(end) * kPage);
  });
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace cnnkern
