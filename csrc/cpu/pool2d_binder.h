// What the binders of the CPU pools share: PoolParams to PoolJob, and the loop over work items.
#pragma once
#include <atomic>
#include <cstdlib>
#include <new>

#include "output.h"
#include "parallel.h"
#include "pool2d.h"
#include "pool2d_check.h"

namespace cnnkern {

// Work that moves less than this is not worth waking a thread for. Tuned on 2 cores of Zen 4.
constexpr int64_t kPoolGrainBytes = 256 * 1024;

// parallel(items, bytes, scratch_bytes, body) runs body(begin, end, scratch) over ranges of items
// that move `bytes` each. No exception may cross the thread pool: a lack of memory is thrown after.
struct PoolParallel {
  const char* op;

  template <typename Body>
  void operator()(int64_t items, int64_t bytes, int64_t scratch_bytes, const Body& body) const {
    if (items == 0) return;
    std::atomic<bool> no_memory{false};
    const int64_t grain = std::max<int64_t>(1, kPoolGrainBytes / std::max<int64_t>(1, bytes));
    torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
      const size_t size = (size_t(scratch_bytes) + 127) / 64 * 64;
      char* scratch = static_cast<char*>(std::aligned_alloc(64, size));
      if (scratch)
        body(begin, end, scratch);
      else
        no_memory = true;
      std::free(scratch);
    });
    if (no_memory) fail(op, "out of memory for ", scratch_bytes, " bytes of scratch");
  }
};

// The tables of a pool, and the job that points into them.
struct PoolTables {
  PoolAxis rows, cols;

  explicit PoolTables(const PoolParams& p)
      : rows(make_pool_axis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dil_h, p.adaptive,
                            p.count_include_pad)),
        cols(make_pool_axis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dil_w, p.adaptive,
                            p.count_include_pad)) {}

  void add_covers(const PoolParams& p) {
    cnnkern::add_covers(rows, p.H);
    cnnkern::add_covers(cols, p.W);
  }

  PoolJob job(const PoolParams& p, PoolKind kind, DType dtype, bool nhwc, const Tensor& plane,
              const Tensor& pooled) const {
    return {p,
            kind,
            dtype,
            nhwc,
            rows.dil,
            cols.dil,
            rows.windows.data(),
            cols.windows.data(),
            rows.covers.data(),
            cols.covers.data(),
            rows.offsets.data(),
            cols.offsets.data(),
            plane.data_ptr(),
            pooled.data_ptr(),
            nullptr,
            nullptr,
            bytes(p) >= kFetchBytes,
            streams(p, dtype, nhwc, plane, pooled)};
  }

 private:
  static constexpr int64_t kFetchBytes = int64_t{4} << 20, kStreamBytes = int64_t{16} << 20;
  static int64_t bytes(const PoolParams& p) {
    return p.N * p.C * (p.H * p.W + p.P * p.Q) * int64_t(sizeof(float));
  }
  // Lines of the written tensor that would leave the caches anyway need not be read first.
  static bool streams(const PoolParams& p, DType dtype, bool nhwc, const Tensor& plane,
                      const Tensor& pooled) {
    constexpr int64_t kLine = 64;
    const auto whole_lines = [&](const Tensor& t) {
      return reinterpret_cast<uintptr_t>(t.data_ptr()) % kLine == 0 &&
             (!nhwc || p.C * int64_t(sizeof(float)) % kLine == 0);
    };
    return dtype == DType::kFloat32 && bytes(p) >= kStreamBytes && whole_lines(plane) &&
           whole_lines(pooled);
  }
};

// Keeps the lowest of the element numbers that any thread reports: the same on every run.
class FirstBad {
 public:
  void operator()(int64_t i) const {
    int64_t seen = first_.load(std::memory_order_relaxed);
    while (i < seen && !first_.compare_exchange_weak(seen, i)) {
    }
  }
  bool any() const { return index() != INT64_MAX; }
  int64_t index() const { return first_.load(); }

 private:
  mutable std::atomic<int64_t> first_{INT64_MAX};
};

// Scatter-add of `grad` by int64 `indices` into a new [N, C, H, W] tensor.
Tensor scatter_add_by_index(const char* op, const Tensor& grad, const Tensor& indices,
                            const Ints& input_size);

}  // namespace cnnkern
