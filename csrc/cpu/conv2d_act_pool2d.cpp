// Binder of conv2d_act_pool2d on the CPU.
#include "act_pool2d.h"
#include "check.h"
#include "conv2d_chwn.h"
#include "conv2d_run.h"
#include "mlp_run.h"
#include "output.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "act_pool2d.inc"
#include "dispatch.h"
#include "foreach_isa.h"

namespace cnnkern {
namespace {

// The block by any algorithm: some images at a time, so that what the convolution wrote is still in
// the cache for the activation and the pool.
void run_by_images(const char* op, const ConvParams& p, DType dtype, bool nhwc, ConvAlgo algo,
                   const ActPool& ap, const Tensor& x, const void* weight, const void* bias,
                   const Tensor& out, const Tensor* saved, const Tensor* offsets) {
  constexpr int64_t kChunkBytes = 8 << 20;
  const int64_t item = x.element_size(), conv = p.K * p.P * p.Q;
  const int64_t images =
      std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, conv * item), 1, p.N);
  const bool pools = ap.kind != PoolKind::kNone, saves = saved && saved->numel() > 0;
  const bool saves_before =
      saves && (ap.activation == Activation::kGelu || ap.activation == Activation::kSilu);
  Tensor scratch =
      new_cpu_output(x, {pools && (!saves || saves_before) ? images * conv : 0}, false);
  for (int64_t n = 0; n < p.N; n += images) {
    auto at = [&](const Tensor& t) {  // image n of a tensor
      return static_cast<char*>(t.data_ptr()) + t.numel() / p.N * n * t.element_size();
    };
    ConvParams part = p;
    part.N = std::min(images, p.N - n);
    void* active = !pools ? at(out) : scratch.numel() ? scratch.data_ptr() : at(*saved);
    void* sums = saves ? at(*saved) : active;
    run_conv2d(part, dtype, nhwc, algo, at(x), weight, bias, sums);
    if (ap.activation != Activation::kNone)
      with_storage_type(dtype, [&](auto type) {
        using T = decltype(type);
        CNNKERN_ISA_CALL(launch_activate<T>(static_cast<const T*>(sums), part.N * conv,
                                            ap.activation, static_cast<T*>(active)));
      });
    if (!pools) continue;
    PoolJob job{
        ap.pool, ap.kind, dtype, nhwc, 1, 1, ap.rows.windows.data(), ap.cols.windows.data()};
    job.p.N = part.N;
    job.plane = active;
    job.pooled = at(out);
    if (offsets && offsets->numel()) job.offsets = reinterpret_cast<uint8_t*>(at(*offsets));
    run_pool2d(op, job);
  }
}

}  // namespace

Tensor run_block(const char* op, const Tensor& input, const Tensor& weight,
                 const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                 const Ints& dilation, int64_t groups, const std::string& padding_mode,
                 const std::string& algo, const std::string& activation, const std::string& pool,
                 const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                 bool pool_ceil_mode, bool count_include_pad, Tensor* saved, Tensor* offsets,
                 InLanes lanes) {
  const DType dtype = dtype_of(op, "input", input);
  check_same(op, "weight", weight, "input", input);
  const ConvParams p = make_conv_params(op, sizes_of(input), sizes_of(weight), stride, padding,
                                        dilation, groups, padding_mode);
  check_bias(op, bias, input, p.K);
  const Ints conv_size{p.N, p.K, p.P, p.Q};
  const ActPool ap(op, conv_size, activation, pool, pool_kernel_size, pool_stride, pool_padding,
                   pool_ceil_mode, count_include_pad);
  const bool nhwc = is_nhwc(input);
  const ConvAlgo chosen =
      lanes.saved ? ConvAlgo::kChwn : select_conv2d_block(op, p, dtype, nhwc, algo);
  const Ints size{p.N, p.K, ap.pool.P, ap.pool.Q};
  Tensor out = new_cpu_output(input, size, nhwc);
  if (saved && ap.saves_conv()) *saved = new_cpu_output(input, conv_size, nhwc);
  if (offsets && ap.kind == PoolKind::kMax)
    *offsets = new_cpu_output(input, size, nhwc, ScalarType::Byte);
  if (p.N == 0) return out;
  FusedPool f{ap.kind,
              ap.activation,
              ap.pool.R,
              ap.pool.S,
              ap.pool.stride_h,
              ap.pool.stride_w,
              ap.pool.Q,
              1,
              ap.rows.windows.data(),
              ap.cols.windows.data(),
              0,
              0};
  auto inside = [&](int64_t q) {
    const Window& w = ap.cols.windows[q];
    return w.first == 0 && w.end - w.begin == f.S && w.divisor == f.S;
  };
  if (f.kind != PoolKind::kNone) {
    while (f.inner_begin < f.PQ && !inside(f.inner_begin)) ++f.inner_begin;
    f.inner_end = f.inner_begin;
    while (f.inner_end < f.PQ && inside(f.inner_end)) ++f.inner_end;
  }
  const Tensor x = dense(input, nhwc), w = dense(weight, false);
  std::optional<Tensor> b = bias ? std::optional<Tensor>(dense(*bias, false)) : std::nullopt;
  if (chosen != ConvAlgo::kDirect && chosen != ConvAlgo::kChwn) {
    run_by_images(op, p, dtype, nhwc, chosen, ap, x, w.data_ptr(), b ? b->data_ptr() : nullptr, out,
                  saved, offsets);
    return out;
  }
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    const View in_view = view_or_null(x, sizes_of(x), nhwc, lanes.input);
    const View out_view = view_or_null(out, size, nhwc, lanes.output);
    const View saved_view = saved ? view_or_null(*saved, conv_size, nhwc, lanes.saved) : View{};
    const View offsets_view = offsets ? view_or_null(*offsets, size, nhwc, lanes.saved) : View{};
    const T* weights = static_cast<const T*>(w.data_ptr());
    const T* biases = b ? static_cast<const T*>(b->data_ptr()) : nullptr;
    if (chosen == ConvAlgo::kChwn)
      CNNKERN_ISA_CALL(launch_conv2d_act_pool2d_chwn<T>(fprop_taps(p), f, ap.pool.P, in_view,
                                                        weights, biases, out_view, saved_view,
                                                        offsets_view));
    else
      CNNKERN_ISA_CALL(launch_conv2d_act_pool2d<T>(fprop_taps(p), f, ap.pool.P, in_view, weights,
                                                   biases, out_view, saved_view, offsets_view));
  });
  return out;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d(
    const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const std::string& padding_mode,
    const std::string& algo, const std::string& activation, const std::string& pool,
    const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
    bool pool_ceil_mode, bool count_include_pad, bool save) {
  Tensor saved = new_output(input, {0}, false);
  Tensor offsets = new_output(input, {0}, false, ScalarType::Byte);
  Tensor out = run_block("conv2d_act_pool2d", input, weight, bias, stride, padding, dilation,
                         groups, padding_mode, algo, activation, pool, pool_kernel_size,
                         pool_stride, pool_padding, pool_ceil_mode, count_include_pad,
                         save ? &saved : nullptr, save ? &offsets : nullptr);
  return {out, saved, offsets};
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv2d_act_pool2d", TORCH_BOX(&cnnkern::conv2d_act_pool2d));
}
