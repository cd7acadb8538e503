// Binder of the pools on CUDA: max_pool2d, avg_pool2d, the adaptive two, and their gradients. A
// saved position that points outside its window is ignored: to refuse it as the CPU does would be
// to wait for the device. adaptive_max_pool2d_grad takes any position inside the plane.
#include "pool2d.h"

#include <tuple>

#include "binder.h"
#include "pool2d_check.h"

namespace cnnkern {
namespace {

// `saved` is uint8 (offsets), int64 (indices), or null.
Tensor pool2d(const char* op, const PoolParams& p, PoolKind kind, const Tensor& input,
              PoolSaved save, const Tensor* saved) {
  PoolCall call{p, kind, dtype_of(op, "input", input), is_nhwc(input)};
  check_pool_plane(op, "input", sizes_of(input));
  check_pool_plane(op, "output", {p.N, p.C, p.P, p.Q});
  const OnDevice on(op, input);
  const Tensor in = on.dense(input, call.nhwc);
  Tensor output = new_output(input, {p.N, p.C, p.P, p.Q}, call.nhwc);
  call.saved = save;
  call.from = in.data_ptr();
  call.to = output.data_ptr();
  call.saved_to = saved ? saved->data_ptr() : nullptr;
  call.stream = on.stream;
  on.check(launch_pool2d_fprop(call));
  return output;
}

std::tuple<Tensor, Tensor> max_pool2d(Tensor input, Ints kernel_size, Ints stride, Ints padding,
                                      Ints dilation, bool ceil_mode, std::string save) {
  const char* op = "max_pool2d";
  const PoolParams p =
      make_pool_params(op, sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode);
  check_pool_save(op, save, kernel_size);
  if (save == "none") {
    Tensor output = pool2d(op, p, PoolKind::kMax, input, PoolSaved::kNone, nullptr);
    return {output, new_output(input, {0}, false, ScalarType::Byte)};
  }
  const bool offsets = save == "offsets";
  Tensor saved = new_output(input, {p.N, p.C, p.P, p.Q}, is_nhwc(input),
                            offsets ? ScalarType::Byte : ScalarType::Long);
  Tensor output = pool2d(op, p, PoolKind::kMax, input,
                         offsets ? PoolSaved::kOffsets : PoolSaved::kIndices, &saved);
  return {output, saved};
}

Tensor avg_pool2d(Tensor input, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode,
                  bool count_include_pad, std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d";
  const PoolParams p = make_pool_params(op, sizes_of(input), kernel_size, stride, padding, {1, 1},
                                        ceil_mode, count_include_pad, divisor_override);
  return pool2d(op, p, PoolKind::kAvg, input, PoolSaved::kNone, nullptr);
}

Tensor adaptive_avg_pool2d(Tensor input, Ints output_size) {
  const char* op = "adaptive_avg_pool2d";
  const PoolParams p = make_adaptive_pool_params(op, sizes_of(input), output_size);
  return pool2d(op, p, PoolKind::kAvg, input, PoolSaved::kNone, nullptr);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d(Tensor input, Ints output_size) {
  const char* op = "adaptive_max_pool2d";
  const PoolParams p = make_adaptive_pool_params(op, sizes_of(input), output_size);
  Tensor indices = new_output(input, {p.N, p.C, p.P, p.Q}, is_nhwc(input), ScalarType::Long);
  Tensor output = pool2d(op, p, PoolKind::kMax, input, PoolSaved::kIndices, &indices);
  return {output, indices};
}

// ---- gradients

Tensor pool2d_grad(const char* op, const PoolParams& p, PoolKind kind, const Tensor& grad,
                   bool nhwc, PoolSaved save, const Tensor* saved, const Ints& input_size) {
  PoolCall call{p, kind, dtype_of(op, "grad", grad), nhwc};
  check_size_is(op, "grad", grad, {p.N, p.C, p.P, p.Q});
  check_pool_plane(op, "input_size", input_size);
  check_pool_plane(op, "grad", sizes_of(grad));
  const OnDevice on(op, grad);
  const Tensor from = on.dense(grad, nhwc);
  std::optional<Tensor> at;
  if (saved) at = on.dense(*saved, nhwc);
  Tensor result = new_output(grad, input_size, nhwc);
  call.saved = save;
  call.from = from.data_ptr();
  call.saved_at = at ? at->data_ptr() : nullptr;
  call.to = result.data_ptr();
  call.stream = on.stream;
  on.check(launch_pool2d_dgrad(call));
  return result;
}

Tensor max_pool2d_grad(Tensor grad, Tensor indices, Ints input_size, Ints kernel_size, Ints stride,
                       Ints padding, Ints dilation) {
  const char* op = "max_pool2d_grad";
  dtype_of(op, "grad", grad);
  check_same_device(op, "indices", indices, "grad", grad);
  const PoolParams p =
      make_saved_pool_params(op, input_size, indices, kernel_size, stride, padding, dilation);
  check_index_dtype(op, indices, true);
  const bool offsets = indices.scalar_type() == ScalarType::Byte;
  return pool2d_grad(op, p, PoolKind::kMax, grad, is_nhwc(indices),
                     offsets ? PoolSaved::kOffsets : PoolSaved::kIndices, &indices, input_size);
}

Tensor avg_pool2d_grad(Tensor grad, Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                       bool ceil_mode, bool count_include_pad,
                       std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d_grad";
  const PoolParams p = make_pool_params(op, input_size, kernel_size, stride, padding, {1, 1},
                                        ceil_mode, count_include_pad, divisor_override);
  return pool2d_grad(op, p, PoolKind::kAvg, grad, is_nhwc(grad), PoolSaved::kNone, nullptr,
                     input_size);
}

Tensor adaptive_avg_pool2d_grad(Tensor grad, Ints input_size) {
  const char* op = "adaptive_avg_pool2d_grad";
  check_sizes(op, "grad", sizes_of(grad), "[N, C, P, Q]");
  const PoolParams p = make_adaptive_pool_params(op, input_size, {grad.size(2), grad.size(3)});
  return pool2d_grad(op, p, PoolKind::kAvg, grad, is_nhwc(grad), PoolSaved::kNone, nullptr,
                     input_size);
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CUDA, m) {
  m.impl("max_pool2d", TORCH_BOX(&cnnkern::max_pool2d));
  m.impl("avg_pool2d", TORCH_BOX(&cnnkern::avg_pool2d));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&cnnkern::adaptive_avg_pool2d));
  m.impl("adaptive_max_pool2d", TORCH_BOX(&cnnkern::adaptive_max_pool2d));
  m.impl("max_pool2d_grad", TORCH_BOX(&cnnkern::max_pool2d_grad));
  m.impl("avg_pool2d_grad", TORCH_BOX(&cnnkern::avg_pool2d_grad));
  m.impl("adaptive_avg_pool2d_grad", TORCH_BOX(&cnnkern::adaptive_avg_pool2d_grad));
}
