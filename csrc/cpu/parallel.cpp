#include "parallel.h"

#include <torch/csrc/stable/ops.h>

namespace cnnkern {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (count <= 0) return;
  if (count <= grain) return body(0, count, context);  // what torch would find out more slowly
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

}  // namespace cnnkern
