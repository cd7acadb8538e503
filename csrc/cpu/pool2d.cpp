// Binder of the forward pools on the CPU: max_pool2d, avg_pool2d and the adaptive two.
#include <tuple>

#include "conv2d_run.h"
#include "pool2d_binder.h"

#define CNNKERN_KERNELS "pool2d.inc"
#include "foreach_isa.h"

namespace cnnkern {

void run_pool2d(const char* op, const PoolJob& job) {
  const PoolParallel parallel{op};
  CNNKERN_ISA_CALL(pool2d_fprop(job, parallel));
}

namespace {

// `saved` is uint8 (offsets), int64 (indices), or null.
Tensor pool2d(const char* op, const PoolParams& p, PoolKind kind, const Tensor& input, bool nhwc,
              const Tensor* saved) {
  const DType dtype = dtype_of(op, "input", input);
  const Tensor in = dense(input, nhwc);
  Tensor output = new_cpu_output(input, {p.N, p.C, p.P, p.Q}, nhwc);
  const PoolTables tables(p);
  PoolJob job = tables.job(p, kind, dtype, nhwc, in, output);
  if (saved && saved->scalar_type() == ScalarType::Byte)
    job.offsets = static_cast<uint8_t*>(saved->data_ptr());
  else if (saved)
    job.indices = static_cast<int64_t*>(saved->data_ptr());
  // Lanes hold positions as int32 beside float32 values.
  if (saved) check_pool_plane(op, "input", sizes_of(input));
  run_pool2d(op, job);
  return output;
}

std::tuple<Tensor, Tensor> max_pool2d(Tensor input, Ints kernel_size, Ints stride, Ints padding,
                                      Ints dilation, bool ceil_mode, std::string save) {
  const char* op = "max_pool2d";
  const PoolParams p =
      make_pool_params(op, sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode);
  check_pool_save(op, save, kernel_size);
  const bool nhwc = is_nhwc(input);
  if (save == "none") {
    Tensor output = pool2d(op, p, PoolKind::kMax, input, nhwc, nullptr);
    return {output, new_cpu_output(input, {0}, false, ScalarType::Byte)};
  }
  Tensor saved = new_cpu_output(input, {p.N, p.C, p.P, p.Q}, nhwc,
                                save == "offsets" ? ScalarType::Byte : ScalarType::Long);
  Tensor output = pool2d(op, p, PoolKind::kMax, input, nhwc, &saved);
  return {output, saved};
}

Tensor avg_pool2d(Tensor input, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode,
                  bool count_include_pad, std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d";
  const PoolParams p = make_pool_params(op, sizes_of(input), kernel_size, stride, padding, {1, 1},
                                        ceil_mode, count_include_pad, divisor_override);
  return pool2d(op, p, PoolKind::kAvg, input, is_nhwc(input), nullptr);
}

Tensor adaptive_avg_pool2d(Tensor input, Ints output_size) {
  const char* op = "adaptive_avg_pool2d";
  const PoolParams p = make_adaptive_pool_params(op, sizes_of(input), output_size);
  return pool2d(op, p, PoolKind::kAvg, input, is_nhwc(input), nullptr);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d(Tensor input, Ints output_size) {
  const char* op = "adaptive_max_pool2d";
  const PoolParams p = make_adaptive_pool_params(op, sizes_of(input), output_size);
  const bool nhwc = is_nhwc(input);
  Tensor indices = new_cpu_output(input, {p.N, p.C, p.P, p.Q}, nhwc, ScalarType::Long);
  Tensor output = pool2d(op, p, PoolKind::kMax, input, nhwc, &indices);
  return {output, indices};
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&cnnkern::max_pool2d));
  m.impl("avg_pool2d", TORCH_BOX(&cnnkern::avg_pool2d));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&cnnkern::adaptive_avg_pool2d));
  m.impl("adaptive_max_pool2d", TORCH_BOX(&cnnkern::adaptive_max_pool2d));
}
