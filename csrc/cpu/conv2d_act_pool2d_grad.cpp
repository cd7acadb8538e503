// Binders of act_pool2d_grad and conv2d_act_pool2d_grad on the CPU.
#include "conv2d_act_pool2d_grad.h"
#include "check.h"
#include "conv2d_run.h"
#include "conv2d_winograd.h"
#include "mlp_run.h"
#include "output.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "conv2d_act_pool2d_grad.inc"
#include "dispatch.h"
#include "foreach_isa.h"

namespace cnnkern {
namespace {

// Refuses what the block does not give, or save, for a convolution's output of that size.
void check_act_pool_grad(const char* op, const ActPool& ap, const Ints& conv_size,
                         const Tensor& grad, const Tensor& output, const Tensor& saved,
                         const Tensor& offsets) {
  const Ints size{ap.pool.N, ap.pool.C, ap.pool.P, ap.pool.Q};
  check_same(op, "output", output, "grad", grad);
  check_same(op, "saved", saved, "grad", grad);
  check_size_is(op, "grad", grad, size);
  check_size_is(op, "output", output, size);
  check_size_is(op, "saved", saved, ap.saves_conv() ? conv_size : Ints{0});
  check_size_is(op, "offsets", offsets, ap.kind == PoolKind::kMax ? size : Ints{0});
  if (offsets.scalar_type() != ScalarType::Byte) fail(op, "offsets must be uint8");
}

// The kernels' view of the pool, whose tables it completes; and the tensors, dense.
struct GradOperands {
  ActPoolGrad f;
  Tensor grad, output, saved, offsets;
  View grad_view, output_view, saved_view, offsets_view;

  GradOperands(ActPool& ap, const Tensor& g, const Tensor& y, const Tensor& z, const Tensor& at,
               bool nhwc, InLanes lanes = {})
      : grad(dense(g, nhwc)),
        output(dense(y, nhwc)),
        saved(z.numel() ? dense(z, nhwc) : z),
        offsets(at.numel() ? dense(at, nhwc) : at) {
    const PoolParams& p = ap.pool;
    const Ints conv_size{p.N, p.C, p.H, p.W}, size{p.N, p.C, p.P, p.Q};
    if (ap.kind != PoolKind::kMax) add_covers(ap.rows, p.H), add_covers(ap.cols, p.W);
    f = {ap.kind,
         ap.activation,
         p.N,
         p.C,
         p.H,
         p.W,
         p.P,
         p.Q,
         p.S,
         p.stride_h,
         p.stride_w,
         p.pad_h,
         p.pad_w,
         p.R * p.S,
         ap.rows.windows.data(),
         ap.cols.windows.data(),
         ap.rows.covers.data(),
         ap.cols.covers.data(),
         ap.rows.offsets.data(),
         ap.cols.offsets.data(),
         p.S == 2 && p.stride_w == 2 && p.pad_w == 0 && p.W == 2 * p.Q};
    grad_view = view_or_null(grad, size, nhwc, lanes.output);
    output_view = view_or_null(output, size, nhwc, lanes.output);
    saved_view = view_or_null(saved, conv_size, nhwc, lanes.saved);
    offsets_view = view_or_null(offsets, size, nhwc, lanes.saved);
  }
};

constexpr const char* kWrongOffsets = "offsets must point into their window and the plane";

}  // namespace

Tensor act_pool2d_grad(const Tensor& grad, const Tensor& output, const Tensor& saved,
                       const Tensor& offsets, const Ints& input_size, const std::string& activation,
                       const std::string& pool, const Ints& pool_kernel_size,
                       const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode,
                       bool count_include_pad) {
  const char* op = "act_pool2d_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  check_sizes(op, "input_size", input_size, "[N, K, P, Q]");
  ActPool ap(op, input_size, activation, pool, pool_kernel_size, pool_stride, pool_padding,
             pool_ceil_mode, count_include_pad);
  check_act_pool_grad(op, ap, input_size, grad, output, saved, offsets);
  const bool nhwc = is_nhwc(output);
  Tensor out = new_cpu_output(grad, input_size, nhwc);
  if (out.numel() == 0) return out;
  const GradOperands o(ap, grad, output, saved, offsets, nhwc);
  bool ok = true;
  with_storage_type(dtype, [&](auto type) {
    ok = CNNKERN_ISA_CALL(launch_act_pool2d_grad<decltype(type)>(
        o.f, o.grad_view, o.output_view, o.saved_view, o.offsets_view,
        view_or_null(out, input_size, nhwc)));
  });
  if (!ok) fail(op, kWrongOffsets);
  return out;
}

namespace {

// Types of 16 bits are left to the three ops, which round dZ: the bits of an image alone.
bool fuses(const char* op, const ConvParams& p, const ActPool& ap, DType dtype, bool nhwc,
           const std::string& algo, bool need_input) {
  const bool narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  if (narrow || select_conv2d_block(op, p, dtype, nhwc, algo) != ConvAlgo::kChwn) return false;
  auto chosen = [&](ConvPass pass) { return select_conv2d(op, p, dtype, nhwc, algo, pass); };
  if (need_input && chosen(ConvPass::kDgrad) == ConvAlgo::kWinograd) return false;
  return chosen(ConvPass::kWgrad) != ConvAlgo::kWinograd && supports_block_grad(p, ap, need_input);
}

}  // namespace

bool takes_lanes(const char* op, const ConvParams& p, const ActPool& ap, DType dtype, bool nhwc,
                 const std::string& algo) {
  return p.N > 0 && fuses(op, p, ap, dtype, nhwc, algo, true);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d_grad(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& output,
    const Tensor& saved, const Tensor& offsets, const Ints& stride, const Ints& padding,
    const Ints& dilation, int64_t groups, const std::string& padding_mode, const std::string& algo,
    const std::string& activation, const std::string& pool, const Ints& pool_kernel_size,
    const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode, bool count_include_pad,
    bool need_input, bool need_weight, bool need_bias, InLanes lanes) {
  const char* op = "conv2d_act_pool2d_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  check_same(op, "input", input, "grad", grad);
  check_same(op, "weight", weight, "grad", grad);
  const ConvParams p = make_conv_params(op, sizes_of(input), sizes_of(weight), stride, padding,
                                        dilation, groups, padding_mode);
  const Ints conv_size{p.N, p.K, p.P, p.Q};
  ActPool ap(op, conv_size, activation, pool, pool_kernel_size, pool_stride, pool_padding,
             pool_ceil_mode, count_include_pad);
  check_act_pool_grad(op, ap, conv_size, grad, output, saved, offsets);
  const bool nhwc = is_nhwc(output);
  if (p.N == 0 || !(lanes.saved || fuses(op, p, ap, dtype, nhwc, algo, need_input))) {
    const Tensor dz =
        act_pool2d_grad(grad, output, saved, offsets, conv_size, activation, pool, pool_kernel_size,
                        pool_stride, pool_padding, pool_ceil_mode, count_include_pad);
    return {need_input ? conv2d_input_grad(dz, weight, sizes_of(input), stride, padding, dilation,
                                           groups, padding_mode, algo)
                       : new_cpu_output(grad, {0}, false),
            need_weight ? conv2d_weight_grad(dz, input, sizes_of(weight), stride, padding, dilation,
                                             groups, padding_mode, algo)
                        : new_cpu_output(grad, {0}, false),
            need_bias ? conv2d_bias_grad(dz) : new_cpu_output(grad, {0}, false)};
  }
  Tensor dx = new_cpu_output(grad, need_input ? sizes_of(input) : Ints{0}, need_input && nhwc);
  Tensor dw = new_cpu_output(grad, need_weight ? sizes_of(weight) : Ints{0}, false);
  Tensor db = new_cpu_output(grad, {need_bias ? p.K : 0}, false);
  const bool input_nhwc = is_nhwc(input);
  const Tensor x = dense(input, input_nhwc), w = dense(weight, false);
  const GradOperands o(ap, grad, output, saved, offsets, nhwc, lanes);
  const BlockGrads out{view_or_null(dx, sizes_of(input), nhwc, lanes.input),
                       need_weight ? dw.data_ptr() : nullptr, need_bias ? db.data_ptr() : nullptr};
  const View in_view = view_or_null(x, sizes_of(x), input_nhwc, lanes.input);
  const SumOrder order = sum_order(p, nhwc, ConvPass::kDgrad);
  auto launch = [&](auto type) {
    using T = decltype(type);
    return CNNKERN_ISA_CALL(launch_conv2d_act_pool2d_grad<T>(
        p, order, o.f, o.grad_view, in_view, static_cast<const T*>(w.data_ptr()), o.output_view,
        o.saved_view, o.offsets_view, lanes.winograd && grads_by_winograd(p), out));
  };
  if (!(dtype == DType::kFloat64 ? launch(double{}) : launch(float{}))) fail(op, kWrongOffsets);
  return {dx, dw, db};
}

namespace {

// The op, whose tensors are never in lanes: boxing knows no default arguments.
std::tuple<Tensor, Tensor, Tensor> block_grad(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& output,
    const Tensor& saved, const Tensor& offsets, const Ints& stride, const Ints& padding,
    const Ints& dilation, int64_t groups, const std::string& padding_mode, const std::string& algo,
    const std::string& activation, const std::string& pool, const Ints& pool_kernel_size,
    const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode, bool count_include_pad,
    bool need_input, bool need_weight, bool need_bias) {
  return conv2d_act_pool2d_grad(grad, input, weight, output, saved, offsets, stride, padding,
                                dilation, groups, padding_mode, algo, activation, pool,
                                pool_kernel_size, pool_stride, pool_padding, pool_ceil_mode,
                                count_include_pad, need_input, need_weight, need_bias);
}

}  // namespace

}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("act_pool2d_grad", TORCH_BOX(&cnnkern::act_pool2d_grad));
  m.impl("conv2d_act_pool2d_grad", TORCH_BOX(&cnnkern::block_grad));
}
