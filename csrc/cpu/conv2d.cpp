// Binder of conv2d and its input gradient on the CPU: checks, allocates, picks the instruction set.
#include "check.h"
#include "conv2d_amx.h"
#include "conv2d_chwn.h"
#include "conv2d_col2im.h"
#include "conv2d_depthwise.h"
#include "conv2d_dots.h"
#include "conv2d_dots_rows.h"
#include "conv2d_igemm.h"
#include "conv2d_run.h"
#include "conv2d_winograd.h"
#include "output.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "conv2d.inc"
#include "dispatch.h"
#include "foreach_isa.h"

namespace cnnkern {
namespace {

// The selector lets none but bfloat16 come here, and avx512_bf16 or amx_bf16.
template <typename T>
void dots(TapConv* taps, size_t count, int64_t plane_size, const View& in, const T* weight,
          const T* bias, const View& out) {
#if CNNKERN_X86_ISAS
  if constexpr (std::is_same_v<T, bfloat16>) {
    const bool tiles = current_isa() == Isa::kAmxBf16, rows = pairs_rows(taps[0], in, out);
    if (tiles && rows && taps[0].C == 1)
      return amx_bf16::launch_conv2d_amx_depthwise(taps, count, in, weight, bias, out);
    if (tiles && !rows)
      return amx_bf16::launch_conv2d_amx(taps, count, plane_size, in, weight, bias, out);
    avx512_bf16::launch_conv2d_dots(taps, count, plane_size, in, weight, bias, out);
  }
#endif
}

}  // namespace

void run_conv2d(const ConvParams& p, DType dtype, bool nhwc, ConvAlgo algo, const void* input,
                const void* weight, const void* bias, void* output) {
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* weights = static_cast<const T*>(weight);
    const T* biases = static_cast<const T*>(bias);
    const ConvParams f = flatten_pointwise(p);
    TapConv taps = fprop_taps(f);
    const View in_view = view_of(const_cast<void*>(input), f.C, f.H, f.W, nhwc);
    const View out_view = view_of(output, f.K, f.P, f.Q, nhwc);
    if (algo == ConvAlgo::kDepthwise)
      return run_conv2d_depthwise<T>(&taps, 1, in_view, weights, biases, out_view);
    if (algo == ConvAlgo::kDots)
      return dots<T>(&taps, 1, f.R * f.S, in_view, weights, biases, out_view);
    if (algo == ConvAlgo::kWinograd)
      CNNKERN_ISA_CALL(launch_conv2d_winograd<T, T>(taps, in_view, weights, biases, out_view));
    else if (algo == ConvAlgo::kChwn)
      CNNKERN_ISA_CALL(launch_conv2d_chwn<T>(taps, sum_order(f, nhwc, ConvPass::kFprop), in_view,
                                             weights, biases, out_view));
    else if (algo == ConvAlgo::kIgemm)
      CNNKERN_ISA_CALL(
          launch_conv2d_igemm<T, T>(&taps, 1, f.R * f.S, in_view, weights, biases, out_view));
    else
      CNNKERN_ISA_CALL(launch_conv2d_direct<T, T>(&taps, 1, in_view, weights, biases, out_view));
  });
}

namespace {

Tensor conv2d(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
              const std::string& padding_mode, const std::string& algo) {
  const char* op = "conv2d";
  const DType dtype = dtype_of(op, "input", input);
  check_same(op, "weight", weight, "input", input);
  const ConvParams p = make_conv_params(op, sizes_of(input), sizes_of(weight), stride, padding,
                                        dilation, groups, padding_mode);
  check_bias(op, bias, input, p.K);
  const bool nhwc = is_nhwc(input);
  const ConvAlgo chosen = select_conv2d(op, p, dtype, nhwc, algo, ConvPass::kFprop);
  Tensor out = new_cpu_output(input, {p.N, p.K, p.P, p.Q}, nhwc);
  if (p.N == 0) return out;
  const Tensor x = dense(input, nhwc), w = dense(weight, false);
  std::optional<Tensor> b = bias ? std::optional<Tensor>(dense(*bias, false)) : std::nullopt;
  run_conv2d(p, dtype, nhwc, chosen, x.data_ptr(), w.data_ptr(), b ? b->data_ptr() : nullptr,
             out.data_ptr());
  return out;
}

// dgrad has one TapConv per residue of the output position modulo the stride: body(phases, count).
template <typename F>
void for_phases(const ConvParams& p, const F& body) {
  std::vector<TapConv> phases;
  auto flush = [&] {
    if (!phases.empty()) body(phases.data(), phases.size());
    phases.clear();
  };
  for (int64_t h0 = 0; h0 < std::min(p.stride_h, p.H); ++h0)
    for (int64_t w0 = 0; w0 < std::min(p.stride_w, p.W); ++w0) {
      phases.push_back(dgrad_taps(p, h0, w0));
      if (phases.size() == kMaxPhases) flush();
    }
  flush();
}

}  // namespace

Tensor conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Ints& input_size,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         int64_t groups, const std::string& padding_mode, const std::string& algo) {
  const char* op = "conv2d_input_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  check_same(op, "weight", weight, "grad", grad);
  const ConvParams p = make_conv_params(op, input_size, sizes_of(weight), stride, padding, dilation,
                                        groups, padding_mode);
  check_size_is(op, "grad", grad, {p.N, p.K, p.P, p.Q});
  const bool nhwc = is_nhwc(grad);
  const bool folds = p.mode != PaddingMode::kZeros;
  // The folded gradient is made in the accumulator type, which only the direct kernels store.
  const ConvAlgo chosen = select_conv2d(op, p, dtype, nhwc, algo, ConvPass::kDgrad);
  Tensor out = new_cpu_output(grad, input_size, nhwc);
  if (p.N == 0) return out;
  const Tensor g = dense(grad, nhwc), w = dense(weight, false);
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const T* weights = static_cast<const T*>(w.data_ptr());
    ConvParams f = flatten_pointwise(p);
    const View grad_view = view_of(g.data_ptr(), f.K, f.P, f.Q, nhwc);
    const View out_view = view_of(out.data_ptr(), f.C, f.H, f.W, nhwc);
    if (chosen == ConvAlgo::kDepthwise && !folds)
      return for_phases(f, [&](TapConv* phases, size_t count) {
        run_conv2d_depthwise<T>(phases, count, grad_view, weights, nullptr, out_view);
      });
    if (chosen == ConvAlgo::kDots && !folds)
      return for_phases(f, [&](TapConv* phases, size_t count) {
        dots<T>(phases, count, f.R * f.S, grad_view, weights, nullptr, out_view);
      });
    if (!folds && chosen == ConvAlgo::kIgemm && sums_columns(f))
      return run_conv2d_col2im<T>(f, grad_view, weights, out_view);
    if (!folds && chosen == ConvAlgo::kWinograd) {
      const TapConv taps = dgrad_taps(f, 0, 0);
      CNNKERN_ISA_CALL(launch_conv2d_winograd<T, T>(taps, grad_view, weights, nullptr, out_view));
      return;
    }
    if (!folds && chosen == ConvAlgo::kChwn)
      return CNNKERN_ISA_CALL(launch_conv2d_chwn<T>(dgrad_taps(f, 0, 0),
                                                    sum_order(f, nhwc, ConvPass::kDgrad), grad_view,
                                                    weights, nullptr, out_view));
    if (!folds && chosen == ConvAlgo::kIgemm)
      return for_phases(f, [&](TapConv* phases, size_t count) {
        CNNKERN_ISA_CALL(launch_conv2d_igemm<T, T>(phases, count, f.R * f.S, grad_view, weights,
                                                   nullptr, out_view));
      });
    if (!folds)
      return for_phases(f, [&](TapConv* phases, size_t count) {
        CNNKERN_ISA_CALL(
            launch_conv2d_direct<T, T>(phases, count, grad_view, weights, nullptr, out_view));
      });
    // Other modes: the gradient of the padded input, in the accumulator type, then folded.
    f = p;
    f.H += p.pad_top + p.pad_bottom, f.W += p.pad_left + p.pad_right;
    f.pad_left = f.pad_right = f.pad_top = f.pad_bottom = 0;
    f.mode = PaddingMode::kZeros;
    Tensor whole = new_cpu_output(grad, {f.N, f.C, f.H, f.W}, nhwc,
                                  sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
    const View whole_view = view_of(whole.data_ptr(), f.C, f.H, f.W, nhwc);
    for_phases(f, [&](TapConv* phases, size_t count) {
      CNNKERN_ISA_CALL(launch_conv2d_direct<T, A>(
          phases, count, view_of(g.data_ptr(), f.K, f.P, f.Q, nhwc), weights, nullptr, whole_view));
    });
    CNNKERN_ISA_CALL(
        launch_fold_padding<A, T>(p, whole_view, view_of(out.data_ptr(), p.C, p.H, p.W, nhwc)));
  });
  return out;
}

}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&cnnkern::conv2d));
  m.impl("conv2d_input_grad", TORCH_BOX(&cnnkern::conv2d_input_grad));
}
