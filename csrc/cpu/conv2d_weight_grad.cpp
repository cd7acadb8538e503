// Binder of the weight and bias gradients of conv2d on the CPU; apart from conv2d.cpp so that the
// two compile side by side.
#include "check.h"
#include "conv2d_amx.h"
#include "conv2d_chwn.h"
#include "conv2d_col2im.h"
#include "conv2d_depthwise.h"
#include "conv2d_dots.h"
#include "conv2d_igemm.h"
#include "conv2d_run.h"
#include "conv2d_select.h"
#include "conv2d_winograd.h"
#include "output.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "conv2d.inc"
#include "dispatch.h"
#include "foreach_isa.h"

namespace cnnkern {

Tensor conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Ints& weight_size,
                          const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups, const std::string& padding_mode,
                          const std::string& algo) {
  const char* op = "conv2d_weight_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  check_same(op, "input", input, "grad", grad);
  const ConvParams p = make_conv_params(op, sizes_of(input), weight_size, stride, padding, dilation,
                                        groups, padding_mode);
  check_size_is(op, "grad", grad, {p.N, p.K, p.P, p.Q});
  const bool grad_nhwc = is_nhwc(grad), input_nhwc = is_nhwc(input);
  const ConvAlgo chosen =
      select_conv2d(op, p, dtype, grad_nhwc && input_nhwc, algo, ConvPass::kWgrad);
  Tensor out = new_cpu_output(grad, weight_size, false);
  const Tensor g = dense(grad, grad_nhwc), x = dense(input, input_nhwc);
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    T* dw = static_cast<T*>(out.data_ptr());
    if (p.N == 0) return void(std::fill(dw, dw + out.numel(), T{}));
    const ConvParams f = flatten_pointwise(p);
    const View grad_view = view_of(g.data_ptr(), f.K, f.P, f.Q, grad_nhwc);
    const View in_view = view_of(x.data_ptr(), f.C, f.H, f.W, input_nhwc);
    if (chosen == ConvAlgo::kDepthwise &&
        CNNKERN_ISA_CALL(launch_conv2d_depthwise_weight_grad<T>(f, grad_view, in_view, dw)))
      return;
#if CNNKERN_X86_ISAS
    if constexpr (std::is_same_v<T, bfloat16>)
      if (chosen == ConvAlgo::kDots)
        return current_isa() == Isa::kAmxBf16
                   ? amx_bf16::launch_conv2d_amx_weight_grad(f, grad_view, in_view, dw)
                   : avx512_bf16::launch_conv2d_dots_weight_grad(f, grad_view, in_view, dw);
#endif
    if (chosen == ConvAlgo::kWinograd)
      CNNKERN_ISA_CALL(launch_conv2d_winograd_weight_grad<T>(f, grad_view, in_view, dw));
    else if (chosen == ConvAlgo::kChwn)
      CNNKERN_ISA_CALL(launch_conv2d_chwn_weight_grad<T>(f, grad_view, in_view, dw));
    else if (chosen == ConvAlgo::kIgemm)
      CNNKERN_ISA_CALL(launch_conv2d_igemm_weight_grad<T>(f, grad_view, in_view, dw));
    else
      CNNKERN_ISA_CALL(launch_conv2d_weight_grad<T>(f, grad_view, in_view, dw));
  });
  return out;
}

Tensor conv2d_bias_grad(const Tensor& grad) {
  const char* op = "conv2d_bias_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  const Ints size = sizes_of(grad);
  check_sizes(op, "grad", size, "[N, K, P, Q]");
  const bool nhwc = is_nhwc(grad);
  const Tensor g = dense(grad, nhwc);
  Tensor out = new_cpu_output(grad, {size[1]}, false);
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    CNNKERN_ISA_CALL(launch_conv2d_bias_grad<T>(size[0], size[1], size[2], size[3], nhwc,
                                                static_cast<const T*>(g.data_ptr()),
                                                static_cast<T*>(out.data_ptr())));
  });
  return out;
}

}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv2d_weight_grad", TORCH_BOX(&cnnkern::conv2d_weight_grad));
  m.impl("conv2d_bias_grad", TORCH_BOX(&cnnkern::conv2d_bias_grad));
}
