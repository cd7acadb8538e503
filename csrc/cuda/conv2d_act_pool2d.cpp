// Binder of conv2d_act_pool2d and act_pool2d_grad on CUDA. Small nets run in one kernel; all else
// is the convolution that `algo` picks, with the activation in its epilogue, and a pool. Which of
// the two is a matter of the geometry, never of what is saved, so that results are the same.
// Offsets that point outside their window are ignored by the gradient.
#include "conv2d_act_pool2d.h"

#include <tuple>

#include "conv2d_binder.h"
#include "pool2d.h"

namespace cnnkern {
namespace {

// The pool's geometry on a conv output of that size; without a pool each element is a window.
PoolParams make_block_pool(const char* op, const Ints& conv_size, const std::string& activation,
                           const std::string& pool, const Ints& kernel_size, const Ints& stride,
                           const Ints& padding, bool ceil_mode, bool count_include_pad) {
  check_act_pool(op, activation, pool, kernel_size);
  if (pool == "none") return make_pool_params(op, conv_size, {1, 1}, {1, 1}, {0, 0}, {1, 1}, false);
  return make_pool_params(op, conv_size, kernel_size, stride, padding, {1, 1}, ceil_mode,
                          count_include_pad);
}

bool derived_before(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kSilu;
}

// The same rule as cnnkern.ops.act_pool2d_saves.
bool saves_conv(Activation activation, PoolKind kind) {
  return derived_before(activation) || (activation != Activation::kNone && kind == PoolKind::kAvg);
}

// Convolution, activation and pool as kernels of their own.
void run_in_pieces(const OnDevice& on, const Tensor& like, const FusedCall& f,
                   const std::string& algo) {
  const Ints conv_size{f.p.N, f.p.K, f.p.P, f.p.Q};
  const bool pooled = f.kind != PoolKind::kNone;
  const auto temporary = [&] { return new_output(like, conv_size, f.nhwc); };
  std::optional<Tensor> conv, active;
  void* to = f.saved;
  if (!to && pooled) conv = temporary(), to = conv->data_ptr();
  ConvCall call;
  call.p = f.p, call.dtype = f.dtype, call.pass = ConvPass::kFprop;
  call.nhwc = f.nhwc, call.weight_nhwc = f.weight_nhwc;
  call.input = f.input, call.weight = f.weight, call.bias = f.bias;
  call.output = to ? to : f.output;
  if (!f.save_before) call.activation = f.activation;
  run_conv2d(on, like, call, algo);
  const void* at = call.output;
  if (f.save_before) {
    void* result = f.output;
    if (pooled) active = temporary(), result = active->data_ptr();
    on.check(launch_activation(f.dtype, f.activation, at, result, f.p.N * f.p.K * f.p.P * f.p.Q,
                               on.stream));
    at = result;
  }
  if (!pooled) return;
  PoolCall pool{f.pool, f.kind, f.dtype, f.nhwc};
  pool.saved = f.offsets ? PoolSaved::kOffsets : PoolSaved::kNone;
  pool.from = at;
  pool.to = f.output;
  pool.saved_to = f.offsets;
  pool.stream = on.stream;
  on.check(launch_pool2d_fprop(pool));
}

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d(
    const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const std::string& padding_mode,
    const std::string& algo, const std::string& activation, const std::string& pool,
    const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
    bool pool_ceil_mode, bool count_include_pad, bool save) {
  const char* op = "conv2d_act_pool2d";
  FusedCall f{};
  f.dtype = dtype_of(op, "input", input);
  check_same(op, "weight", weight, "input", input);
  f.p = make_conv_params(op, sizes_of(input), sizes_of(weight), stride, padding, dilation, groups,
                         padding_mode);
  check_bias(op, bias, input, f.p.K);
  const Ints conv_size{f.p.N, f.p.K, f.p.P, f.p.Q};
  f.pool = make_block_pool(op, conv_size, activation, pool, pool_kernel_size, pool_stride,
                           pool_padding, pool_ceil_mode, count_include_pad);
  f.activation = parse_activation(op, activation);
  f.kind = parse_pool(op, pool);
  f.save_before = derived_before(f.activation);
  f.nhwc = is_nhwc(input);
  f.weight_nhwc = is_nhwc(weight) && is_dense(weight, true);
  const OnDevice on(op, input);
  const Ints size{f.p.N, f.p.K, f.pool.P, f.pool.Q};
  Tensor out = new_output(input, size, f.nhwc);
  Tensor saved = save && saves_conv(f.activation, f.kind) ? new_output(input, conv_size, f.nhwc)
                                                          : new_output(input, {0}, false);
  Tensor offsets = save && f.kind == PoolKind::kMax
                       ? new_output(input, size, f.nhwc, ScalarType::Byte)
                       : new_output(input, {0}, false, ScalarType::Byte);
  const Tensor x = on.dense(input, f.nhwc), w = on.dense(weight, f.weight_nhwc);
  std::optional<Tensor> b;
  if (bias) b = on.dense(*bias, false);
  f.input = x.data_ptr();
  f.weight = w.data_ptr();
  f.bias = b ? b->data_ptr() : nullptr;
  f.output = out.data_ptr();
  f.saved = saved.numel() ? saved.data_ptr() : nullptr;
  f.offsets = offsets.numel() ? static_cast<uint8_t*>(offsets.data_ptr()) : nullptr;
  f.stream = on.stream;
  const bool one_kernel = (algo == "auto" || algo == "auto_tf32" || algo == "direct") &&
                          supports_conv2d_act_pool2d(f).empty();
  if (one_kernel)
    on.check(launch_conv2d_act_pool2d(f));
  else
    run_in_pieces(on, input, f, algo);
  return {out, saved, offsets};
}

Tensor act_pool2d_grad(const Tensor& grad, const Tensor& output, const Tensor& saved,
                       const Tensor& offsets, const Ints& input_size, const std::string& activation,
                       const std::string& pool, const Ints& pool_kernel_size,
                       const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode,
                       bool count_include_pad) {
  const char* op = "act_pool2d_grad";
  ActPoolGradCall call{};
  call.dtype = dtype_of(op, "grad", grad);
  check_same(op, "output", output, "grad", grad);
  check_same(op, "saved", saved, "grad", grad);
  check_sizes(op, "input_size", input_size, "[N, K, P, Q]");
  call.pool = make_block_pool(op, input_size, activation, pool, pool_kernel_size, pool_stride,
                              pool_padding, pool_ceil_mode, count_include_pad);
  call.activation = parse_activation(op, activation);
  call.kind = parse_pool(op, pool);
  const Ints size{call.pool.N, call.pool.C, call.pool.P, call.pool.Q};
  const bool has_saved = saves_conv(call.activation, call.kind);
  check_size_is(op, "grad", grad, size);
  check_size_is(op, "output", output, size);
  check_size_is(op, "saved", saved, has_saved ? input_size : Ints{0});
  check_size_is(op, "offsets", offsets, call.kind == PoolKind::kMax ? size : Ints{0});
  if (offsets.scalar_type() != ScalarType::Byte) fail(op, "offsets must be uint8");
  if (offsets.is_cpu() || offsets.get_device_index() != grad.get_device_index())
    fail(op, "offsets must be on the same device as grad");
  const OnDevice on(op, grad);
  call.nhwc = is_nhwc(output);
  Tensor out = new_output(grad, input_size, call.nhwc);
  const Tensor g = on.dense(grad, call.nhwc), y = on.dense(output, call.nhwc);
  const Tensor z = has_saved ? on.dense(saved, call.nhwc) : saved,
               at = offsets.numel() ? on.dense(offsets, call.nhwc) : offsets;
  call.grad = g.data_ptr();
  call.output = y.data_ptr();
  call.saved = has_saved ? z.data_ptr() : nullptr;
  call.offsets = static_cast<const uint8_t*>(at.data_ptr());
  call.to = out.data_ptr();
  call.stream = on.stream;
  on.check(launch_act_pool2d_grad(call));
  return out;
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CUDA, m) {
  m.impl("conv2d_act_pool2d", TORCH_BOX(&cnnkern::conv2d_act_pool2d));
  m.impl("act_pool2d_grad", TORCH_BOX(&cnnkern::act_pool2d_grad));
}
