// Binder of conv2d_act_pool2d on the CPU.
#include "act_pool2d.h"
#include "check.h"
#include "conv2d_chwn.h"
#include "conv2d_run.h"
#include "conv2d_winograd.h"
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

FusedPool fused_pool(const ActPool& ap) {
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
  if (f.kind == PoolKind::kNone) return f;
  while (f.inner_begin < f.PQ && !inside(f.inner_begin)) ++f.inner_begin;
  f.inner_end = f.inner_begin;
  while (f.inner_end < f.PQ && inside(f.inner_end)) ++f.inner_end;
  return f;
}

// The block by any algorithm: some images at a time, so that what the convolution wrote is still in
// the cache for the activation and the pool.
void run_by_images(const char* op, const BlockPlan& plan, const Tensor& like,
                   const BlockOperands& o) {
  constexpr int64_t kChunkBytes = 8 << 20;
  const ConvParams& p = plan.p;
  const ActPool& ap = plan.ap;
  const int64_t item = like.element_size(), conv = p.K * p.P * p.Q;
  const int64_t images =
      std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, conv * item), 1, p.N);
  const bool pools = ap.kind != PoolKind::kNone;
  const bool saves_before =
      o.saved && (ap.activation == Activation::kGelu || ap.activation == Activation::kSilu);
  Tensor scratch =
      new_cpu_output(like, {pools && (!o.saved || saves_before) ? images * conv : 0}, false);
  const int64_t pooled = p.K * ap.pool.P * ap.pool.Q;
  for (int64_t n = 0; n < p.N; n += images) {
    auto at = [&](void* data, int64_t bytes) {  // image n
      return static_cast<char*>(data) + n * bytes;
    };
    ConvParams part = p;
    part.N = std::min(images, p.N - n);
    char* out = at(o.out, pooled * item);
    char* saved = o.saved ? at(o.saved, conv * item) : nullptr;
    void* active = !pools ? out : scratch.numel() ? scratch.data_ptr() : saved;
    void* sums = saved ? saved : active;
    run_conv2d(part, plan.dtype, plan.nhwc, plan.algo,
               static_cast<const char*>(o.input) + n * p.C * p.H * p.W * item, o.weight, o.bias,
               sums);
    if (ap.activation != Activation::kNone)
      with_storage_type(plan.dtype, [&](auto type) {
        using T = decltype(type);
        CNNKERN_ISA_CALL(launch_activate<T>(static_cast<const T*>(sums), part.N * conv,
                                            ap.activation, static_cast<T*>(active)));
      });
    if (!pools) continue;
    PoolJob job{ap.pool,
                ap.kind,
                plan.dtype,
                plan.nhwc,
                1,
                1,
                ap.rows.windows.data(),
                ap.cols.windows.data()};
    job.p.N = part.N;
    job.plane = active;
    job.pooled = out;
    if (o.offsets) job.offsets = reinterpret_cast<uint8_t*>(at(o.offsets, pooled));
    run_pool2d(op, job);
  }
}

}  // namespace

BlockPlan plan_block(const char* op, const Ints& input, const Ints& weight, DType dtype, bool nhwc,
                     const BlockOptions& options, const std::string& padding_mode,
                     const std::string& algo, const std::string& activation,
                     const std::string& pool) {
  const BlockOptions& o = options;
  const ConvParams p =
      make_conv_params(op, input, weight, o.stride, o.padding, o.dilation, o.groups, padding_mode);
  ActPool ap(op, {p.N, p.K, p.P, p.Q}, activation, pool, o.window, o.step, o.pool_padding,
             o.ceil_mode, o.count_include_pad);
  const ConvAlgo chosen = select_conv2d_block(op, p, dtype, nhwc, algo);
  const bool fuses = chosen == ConvAlgo::kDirect || chosen == ConvAlgo::kChwn;
  return {p, dtype, nhwc, std::move(ap), chosen, fuses ? fprop_taps(p) : TapConv{}};
}

void run_block(const char* op, const BlockPlan& plan, const Tensor& like, const BlockOperands& o) {
  const ConvParams& p = plan.p;
  if (p.N == 0) return;
  if (plan.taps.taps.empty()) return run_by_images(op, plan, like, o);
  const PoolParams& pool = plan.ap.pool;
  const FusedPool f = fused_pool(plan.ap);
  auto view = [&](void* data, int64_t C, int64_t H, int64_t W, bool lanes) {
    View v = data ? view_of(data, C, H, W, plan.nhwc && !lanes) : View{};
    v.lanes = lanes;
    return v;
  };
  const View in = view(const_cast<void*>(o.input), p.C, p.H, p.W, plan.lanes.input);
  const View out = view(o.out, p.K, pool.P, pool.Q, plan.lanes.output);
  const View saved = view(o.saved, p.K, p.P, p.Q, plan.lanes.saved);
  const View offsets = view(o.offsets, p.K, pool.P, pool.Q, plan.lanes.saved);
  with_storage_type(plan.dtype, [&](auto type) {
    using T = decltype(type);
    const T *weight = static_cast<const T*>(o.weight), *bias = static_cast<const T*>(o.bias);
    if (plan.algo == ConvAlgo::kChwn)
      CNNKERN_ISA_CALL(launch_conv2d_act_pool2d_chwn<T>(plan.taps, f, pool.P, in, weight, bias, out,
                                                        saved, offsets, plan.lanes.winograd));
    else
      CNNKERN_ISA_CALL(
          launch_conv2d_act_pool2d<T>(plan.taps, f, pool.P, in, weight, bias, out, saved, offsets));
  });
}

BlockResults run_block(const char* op, const BlockPlan& plan, const Tensor& input,
                       const Tensor& weight, const std::optional<Tensor>& bias, bool save) {
  const bool nhwc = plan.nhwc;
  const Ints none{0}, conv = plan.conv_size(), size = plan.size();
  const bool saves = save && plan.ap.saves_conv();
  const bool codes = save && plan.ap.kind == PoolKind::kMax;
  BlockResults results{new_cpu_output(input, size, nhwc),
                       new_cpu_output(input, saves ? conv : none, saves && nhwc),
                       new_cpu_output(input, codes ? size : none, codes && nhwc, ScalarType::Byte)};
  const Tensor x = dense(input, nhwc), w = dense(weight, false);
  const std::optional<Tensor> b = bias ? std::optional<Tensor>(dense(*bias, false)) : std::nullopt;
  auto data = [](const Tensor& t, bool given) { return given ? t.data_ptr() : nullptr; };
  run_block(op, plan, input,
            {x.data_ptr(), w.data_ptr(), b ? b->data_ptr() : nullptr, results.out.data_ptr(),
             data(results.saved, saves), data(results.offsets, codes)});
  return results;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d(
    const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const std::string& padding_mode,
    const std::string& algo, const std::string& activation, const std::string& pool,
    const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
    bool pool_ceil_mode, bool count_include_pad, bool save) {
  const char* op = "conv2d_act_pool2d";
  const DType dtype = dtype_of(op, "input", input);
  check_same(op, "weight", weight, "input", input);
  const BlockPlan plan = plan_block(op, sizes_of(input), sizes_of(weight), dtype, is_nhwc(input),
                                    {stride, padding, dilation, groups, pool_kernel_size,
                                     pool_stride, pool_padding, pool_ceil_mode, count_include_pad},
                                    padding_mode, algo, activation, pool);
  check_bias(op, bias, input, plan.p.K);
  BlockResults results = run_block(op, plan, input, weight, bias, save);
  return {results.out, results.saved, results.offsets};
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv2d_act_pool2d", TORCH_BOX(&cnnkern::conv2d_act_pool2d));
}
