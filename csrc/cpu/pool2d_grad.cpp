// Binder of the pools' gradients on the CPU: max_pool2d_grad, avg_pool2d_grad and the adaptive two.
#include "conv2d_run.h"
#include "pool2d_binder.h"

#define CNNKERN_KERNELS "pool2d_grad.inc"
#include "foreach_isa.h"

namespace cnnkern {

namespace {

// Whether tap number `tap` of the window lies inside the plane. What is saved for a window that
// misses the plane means nothing.
bool holds(const Window& w, int64_t dil, int64_t tap) {
  return w.begin >= w.end || (tap >= w.first && w.begin + (tap - w.first) * dil < w.end);
}

OffsetRules make_offset_rules(const PoolJob& job) {
  const PoolParams& g = job.p;
  OffsetRules rules{g.R * g.S, {}, std::vector<uint8_t>(size_t(g.P * g.Q))};
  for (int64_t i = 0; i < rules.taps; ++i)
    rules.bits[i] = uint8_t(1 << (i / g.S) | 1 << (g.R + i % g.S));
  const auto denied = [](const Window& w, int64_t dil, int64_t k) {
    int bits = 0;
    for (int64_t tap = 0; tap < k; ++tap) bits |= !holds(w, dil, tap) << tap;
    return bits;
  };
  for (int64_t q = 0; q < g.Q; ++q)
    rules.denied[size_t(q)] = uint8_t(denied(job.cols[q], g.dil_w, g.S) << g.R);
  for (int64_t p = g.P - 1; p >= 0; --p) {
    const uint8_t row = uint8_t(denied(job.rows[p], g.dil_h, g.R));
    for (int64_t q = 0; q < g.Q; ++q)
      rules.denied[size_t(p * g.Q + q)] = rules.denied[size_t(q)] | row;
  }
  return rules;
}

// Refuses offsets of elements outside the window or the plane. Where there are no rules, or they
// are broken, a whole window takes any offset below R*S; those that the border clips are looked
// into.
void check_offsets(const char* op, const PoolJob& job) {
  const PoolParams& g = job.p;
  const int64_t C = job.nhwc ? g.C : 1, row = g.Q * C, taps = g.R * g.S;
  const bool ruled = taps <= OffsetRules::kTaps && g.R + g.S <= OffsetRules::kBits;
  const OffsetRules rules = ruled ? make_offset_rules(job) : OffsetRules{};
  const auto whole = [&](const Window& w, int64_t dil, int64_t k) {
    return w.first == 0 && holds(w, dil, k - 1);
  };
  Ints clipped, every(static_cast<size_t>(g.Q));
  for (int64_t q = 0; q < g.Q; ++q) {
    every[size_t(q)] = q;
    if (!whole(job.cols[q], g.dil_w, g.S)) clipped.push_back(q);
  }
  struct Tap {
    int64_t r, s;
  } tap[kMaxOffsets];
  for (int64_t i = 0; i < kMaxOffsets; ++i) tap[i] = {i / g.S, i % g.S};

  const FirstBad bad;
  const PoolParallel parallel{op};
  parallel(g.N * g.P * (job.nhwc ? 1 : g.C), row, 0, [&](int64_t begin, int64_t end, char*) {
    if (ruled && CNNKERN_ISA_CALL(pool2d_offsets_fit(job, rules, begin, end))) return;
    uint8_t largest = 0;
    for (int64_t k = begin * row; k < end * row; ++k) largest = std::max(largest, job.offsets[k]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = i % g.P;
      const bool look = largest >= taps || !whole(job.rows[p], g.dil_h, g.R);
      for (int64_t q : look ? every : clipped)
        for (int64_t k = i * row + q * C; k < i * row + (q + 1) * C; ++k) {
          const Tap t = tap[job.offsets[k]];
          if (t.r >= g.R || !holds(job.rows[p], g.dil_h, t.r) || !holds(job.cols[q], g.dil_w, t.s))
            bad(k);
        }
    }
  });
  if (bad.any())
    fail(op, "indices must be offsets of elements inside the window and the input, got ",
         int(job.offsets[bad.index()]));
}

Tensor max_pool2d_grad(Tensor grad, Tensor indices, Ints input_size, Ints kernel_size, Ints stride,
                       Ints padding, Ints dilation) {
  const char* op = "max_pool2d_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  const PoolParams p =
      make_saved_pool_params(op, input_size, indices, kernel_size, stride, padding, dilation);
  check_index_dtype(op, indices, true);
  if (indices.scalar_type() == ScalarType::Long)
    return scatter_add_by_index(op, grad, indices, input_size);
  check_size_is(op, "grad", grad, {p.N, p.C, p.P, p.Q});
  const bool nhwc = is_nhwc(indices);
  const Tensor from = dense(grad, nhwc), offsets = dense(indices, nhwc);
  Tensor result = new_cpu_output(grad, input_size, nhwc);
  PoolTables tables(p);
  tables.add_covers(p);
  PoolJob job = tables.job(p, PoolKind::kMax, dtype, nhwc, result, from);
  job.offsets = static_cast<uint8_t*>(offsets.data_ptr());
  check_offsets(op, job);
  const PoolParallel parallel{op};
  CNNKERN_ISA_CALL(pool2d_dgrad(job, parallel));
  return result;
}

// The average pool of stride 1 that takes a gradient of such a pool to that of its input: every
// position sums the windows that hold it. Where all windows have one divisor.
bool is_average_of_gradients(const PoolParams& p, PoolParams& grad) {
  const bool padded = (p.pad_h || p.pad_w) && !p.count_include_pad && !p.divisor_override;
  if (p.adaptive || p.stride_h != 1 || p.stride_w != 1 || padded) return false;
  grad = p;
  std::swap(grad.H, grad.P);
  std::swap(grad.W, grad.Q);
  grad.pad_h = p.R - 1 - p.pad_h;
  grad.pad_w = p.S - 1 - p.pad_w;
  if (!grad.divisor_override) grad.divisor_override = p.R * p.S;
  return true;
}

Tensor avg_grad(const char* op, const Tensor& grad, const Ints& input_size, const PoolParams& p) {
  const DType dtype = dtype_of(op, "grad", grad);
  check_size_is(op, "grad", grad, {p.N, p.C, p.P, p.Q});
  const bool nhwc = is_nhwc(grad);
  const Tensor from = dense(grad, nhwc);
  Tensor result = new_cpu_output(grad, input_size, nhwc);
  PoolParams average;
  if (!nhwc && is_average_of_gradients(p, average)) {
    run_pool2d(op, PoolTables(average).job(average, PoolKind::kAvg, dtype, nhwc, from, result));
    return result;
  }
  PoolTables tables(p);
  tables.add_covers(p);
  const PoolJob job = tables.job(p, PoolKind::kAvg, dtype, nhwc, result, from);
  const PoolParallel parallel{op};
  CNNKERN_ISA_CALL(pool2d_dgrad(job, parallel));
  return result;
}

Tensor avg_pool2d_grad(Tensor grad, Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                       bool ceil_mode, bool count_include_pad,
                       std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d_grad";
  return avg_grad(op, grad, input_size,
                  make_pool_params(op, input_size, kernel_size, stride, padding, {1, 1}, ceil_mode,
                                   count_include_pad, divisor_override));
}

Tensor adaptive_avg_pool2d_grad(Tensor grad, Ints input_size) {
  const char* op = "adaptive_avg_pool2d_grad";
  check_sizes(op, "grad", sizes_of(grad), "[N, C, P, Q]");
  return avg_grad(op, grad, input_size,
                  make_adaptive_pool_params(op, input_size, {grad.size(2), grad.size(3)}));
}

Tensor adaptive_max_pool2d_grad(Tensor grad, Tensor indices, Ints input_size) {
  const char* op = "adaptive_max_pool2d_grad";
  check_sizes(op, "indices", sizes_of(indices), "[N, C, P, Q]");
  check_index_dtype(op, indices, false);
  const PoolParams p =
      make_adaptive_pool_params(op, input_size, {indices.size(2), indices.size(3)});
  check_size_is(op, "indices", indices, {p.N, p.C, p.P, p.Q});
  return scatter_add_by_index(op, grad, indices, input_size);
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("max_pool2d_grad", TORCH_BOX(&cnnkern::max_pool2d_grad));
  m.impl("avg_pool2d_grad", TORCH_BOX(&cnnkern::avg_pool2d_grad));
  m.impl("adaptive_avg_pool2d_grad", TORCH_BOX(&cnnkern::adaptive_avg_pool2d_grad));
  m.impl("adaptive_max_pool2d_grad", TORCH_BOX(&cnnkern::adaptive_max_pool2d_grad));
}
