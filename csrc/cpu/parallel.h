// parallel_for on torch's threads, without torch's headers.
#pragma once
#include <cstdint>

namespace cnnkern {

void parallel_for(int64_t count, int64_t grain,
                  void (*body)(int64_t begin, int64_t end, void* context), void* context);

// Calls body(begin, end) on disjoint ranges that cover [0, count); a thread gets at least `grain`.
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& body) {
  parallel_for(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const F*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The grain that gives a thread some tens of microseconds of work, at that many vector operations
// per item.
inline int64_t grain_for(int64_t cost_per_item) {
  constexpr int64_t kWorthAThread = 50000;
  return 1 + kWorthAThread / (cost_per_item + 1);
}

}  // namespace cnnkern
