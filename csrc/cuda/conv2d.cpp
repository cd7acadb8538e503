// Binder of conv2d and its gradients on CUDA: checks, allocates, selects and launches.
#include "conv2d_binder.h"
#include "conv2d_select.h"

namespace cnnkern {

void run_conv2d(const OnDevice& on, const Tensor& like, ConvCall call, const std::string& algo) {
  call.arch = on.arch();
  call.stream = on.stream;
  const ConvAlgorithm& chosen = select_cuda_conv2d(on.op, call, algo);
  const int64_t bytes = chosen.workspace ? chosen.workspace(call) : 0;
  std::optional<Tensor> workspace;
  if (bytes) {
    workspace = on.workspace(like, bytes);
    call.workspace = workspace->data_ptr();
  }
  const std::string name = chosen.name;
  if (name == "depthwise" || name == "grouped") on.check(launch_conv2d_depthwise(call));
  if (name == "mma") on.check(launch_conv2d_mma(call));
  if (name == "direct") on.check(launch_conv2d_direct(call));
  if (name == "igemm") on.check(launch_conv2d_igemm(call));
  if (name == "winograd") on.check(launch_conv2d_winograd(call));
}

namespace {

bool is_weight_nhwc(const Tensor& w) { return is_nhwc(w) && is_dense(w, true); }

Tensor conv2d(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
              const std::string& padding_mode, const std::string& algo) {
  const char* op = "conv2d";
  ConvCall call;
  call.pass = ConvPass::kFprop;
  call.dtype = dtype_of(op, "input", input);
  check_same(op, "weight", weight, "input", input);
  call.p = make_conv_params(op, sizes_of(input), sizes_of(weight), stride, padding, dilation,
                            groups, padding_mode);
  check_bias(op, bias, input, call.p.K);
  const OnDevice on(op, input);
  call.nhwc = is_nhwc(input);
  call.weight_nhwc = is_weight_nhwc(weight);
  Tensor out = new_output(input, {call.p.N, call.p.K, call.p.P, call.p.Q}, call.nhwc);
  const Tensor x = on.dense(input, call.nhwc), w = on.dense(weight, call.weight_nhwc);
  std::optional<Tensor> b;
  if (bias) b = on.dense(*bias, false);
  call.input = x.data_ptr();
  call.weight = w.data_ptr();
  call.bias = b ? b->data_ptr() : nullptr;
  call.output = out.data_ptr();
  run_conv2d(on, input, call, algo);
  return out;
}

Tensor conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Ints& input_size,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         int64_t groups, const std::string& padding_mode, const std::string& algo) {
  const char* op = "conv2d_input_grad";
  ConvCall call;
  call.pass = ConvPass::kDgrad;
  call.dtype = dtype_of(op, "grad", grad);
  check_same(op, "weight", weight, "grad", grad);
  const ConvParams p = make_conv_params(op, input_size, sizes_of(weight), stride, padding, dilation,
                                        groups, padding_mode);
  check_size_is(op, "grad", grad, {p.N, p.K, p.P, p.Q});
  const OnDevice on(op, grad);
  call.p = p;
  call.nhwc = is_nhwc(grad);
  call.weight_nhwc = is_weight_nhwc(weight);
  Tensor out = new_output(grad, input_size, call.nhwc);
  const Tensor g = on.dense(grad, call.nhwc), w = on.dense(weight, call.weight_nhwc);
  call.grad = g.data_ptr();
  call.weight = w.data_ptr();
  call.output = out.data_ptr();
  if (p.mode == PaddingMode::kZeros) {
    run_conv2d(on, grad, call, algo);
    return out;
  }
  // Other modes: the gradient of the padded input, in the accumulator type, then folded. Where that
  // is wider than the tensors' own, only 'direct' writes it.
  call.p.H += p.pad_top + p.pad_bottom;
  call.p.W += p.pad_left + p.pad_right;
  call.p.pad_left = call.p.pad_right = call.p.pad_top = call.p.pad_bottom = 0;
  call.p.mode = PaddingMode::kZeros;
  call.output_is_acc = call.dtype == DType::kFloat16 || call.dtype == DType::kBFloat16;
  const Tensor padded =
      new_output(grad, {p.N, p.C, call.p.H, call.p.W}, call.nhwc,
                 call.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float);
  call.output = padded.data_ptr();
  run_conv2d(on, grad, call, call.output_is_acc ? "direct" : algo);
  on.check(
      launch_fold_padding(p, call.dtype, call.nhwc, padded.data_ptr(), out.data_ptr(), on.stream));
  return out;
}

Tensor conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Ints& weight_size,
                          const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups, const std::string& padding_mode,
                          const std::string& algo) {
  const char* op = "conv2d_weight_grad";
  ConvCall call;
  call.pass = ConvPass::kWgrad;
  call.dtype = dtype_of(op, "grad", grad);
  check_same(op, "input", input, "grad", grad);
  call.p = make_conv_params(op, sizes_of(input), weight_size, stride, padding, dilation, groups,
                            padding_mode);
  check_size_is(op, "grad", grad, {call.p.N, call.p.K, call.p.P, call.p.Q});
  const OnDevice on(op, grad);
  call.nhwc = is_nhwc(input);
  call.weight_nhwc = false;
  Tensor out = new_output(grad, weight_size, false);
  const Tensor g = on.dense(grad, call.nhwc), x = on.dense(input, call.nhwc);
  call.grad = g.data_ptr();
  call.input = x.data_ptr();
  call.output = out.data_ptr();
  run_conv2d(on, grad, call, algo);
  return out;
}

Tensor conv2d_bias_grad(const Tensor& grad) {
  const char* op = "conv2d_bias_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  const Ints size = sizes_of(grad);
  check_sizes(op, "grad", size, "[N, K, P, Q]");
  const OnDevice on(op, grad);
  const bool nhwc = is_nhwc(grad);
  const Tensor g = on.dense(grad, nhwc);
  Tensor out = new_output(grad, {size[1]}, false);
  on.check(launch_conv2d_bias_grad(g.data_ptr(), dtype, nhwc, size[0], size[1], size[2], size[3],
                                   out.data_ptr(), on.stream));
  return out;
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CUDA, m) {
  m.impl("conv2d", TORCH_BOX(&cnnkern::conv2d));
  m.impl("conv2d_input_grad", TORCH_BOX(&cnnkern::conv2d_input_grad));
  m.impl("conv2d_weight_grad", TORCH_BOX(&cnnkern::conv2d_weight_grad));
  m.impl("conv2d_bias_grad", TORCH_BOX(&cnnkern::conv2d_bias_grad));
}
