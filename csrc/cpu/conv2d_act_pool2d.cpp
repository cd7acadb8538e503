// Binder of conv2d_act_pool2d and act_pool2d_grad on the CPU.
#include "act_pool2d.h"
#include "check.h"
#include "conv2d_chwn.h"
#include "conv2d_run.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "act_pool2d.inc"
#include "dispatch.h"
#include "foreach_isa.h"

namespace cnnkern {
namespace {

// The options of the activation and the pool, and the pool's geometry on a conv output of that
// size.
struct ActPool {
  Activation activation;
  PoolKind kind;
  PoolParams pool;
  PoolAxis rows, cols;

  ActPool(const char* op, const Ints& conv_size, const std::string& activation_name,
          const std::string& pool_name, const Ints& kernel_size, const Ints& stride,
          const Ints& padding, bool ceil_mode, bool count_include_pad)
      : activation(parse_activation(op, activation_name)), kind(parse_pool(op, pool_name)) {
    check_act_pool(op, activation_name, pool_name, kernel_size);
    if (kind == PoolKind::kNone) {
      pool = make_pool_params(op, conv_size, {1, 1}, {1, 1}, {0, 0}, {1, 1}, false);
      return;
    }
    pool = make_pool_params(op, conv_size, kernel_size, stride, padding, {1, 1}, ceil_mode,
                            count_include_pad);
    rows = make_pool_axis(pool.H, pool.P, pool.R, pool.stride_h, pool.pad_h, 1, false,
                          count_include_pad);
    cols = make_pool_axis(pool.W, pool.Q, pool.S, pool.stride_w, pool.pad_w, 1, false,
                          count_include_pad);
  }
  // The same rule as cnnkern.ops.act_pool2d_saves.
  bool saves_conv() const {
    return activation == Activation::kGelu || activation == Activation::kSilu ||
           (activation != Activation::kNone && kind == PoolKind::kAvg);
  }
};

View view_or_null(const Tensor& t, const Ints& size, bool nhwc) {
  return t.numel() == 0 ? View{} : view_of(t.data_ptr(), size[1], size[2], size[3], nhwc);
}

// Where conv2d takes another algorithm for speed, direct and chwn still win with few products: they
// pool what they have in registers or the L2 cache, and both have the same sums. They are also
// those that hand 16-bit types on unrounded.
ConvAlgo select_block(const char* op, const ConvParams& p, DType dtype, bool nhwc,
                      const std::string& algo) {
  const ConvAlgo chosen = select_conv2d(op, p, dtype, nhwc, algo, ConvPass::kFprop);
  const bool narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  if (algo != "auto" || (chosen == ConvAlgo::kDepthwise && !narrow)) return chosen;
  if (suits_conv2d_chwn(p)) return ConvAlgo::kChwn;
  return narrow || has_few_products(p) ? ConvAlgo::kDirect : chosen;
}

// The block by any algorithm: some images at a time, so that what the convolution wrote is still in
// the cache for the activation and the pool.
void run_by_images(const char* op, const ConvParams& p, DType dtype, bool nhwc, ConvAlgo algo,
                   const ActPool& ap, const Tensor& x, const void* weight, const void* bias,
                   const Tensor& out, const Tensor& saved, const Tensor& offsets) {
  constexpr int64_t kChunkBytes = 8 << 20;
  const int64_t item = x.element_size(), conv = p.K * p.P * p.Q;
  const int64_t images =
      std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, conv * item), 1, p.N);
  const bool pools = ap.kind != PoolKind::kNone, saves = saved.numel() > 0;
  const bool saves_before =
      saves && (ap.activation == Activation::kGelu || ap.activation == Activation::kSilu);
  Tensor scratch = new_output(x, {pools && (!saves || saves_before) ? images * conv : 0}, false);
  for (int64_t n = 0; n < p.N; n += images) {
    auto at = [&](const Tensor& t) {  // image n of a tensor
      return static_cast<char*>(t.data_ptr()) + t.numel() / p.N * n * t.element_size();
    };
    ConvParams part = p;
    part.N = std::min(images, p.N - n);
    void* active = !pools ? at(out) : scratch.numel() ? scratch.data_ptr() : at(saved);
    void* sums = saves ? at(saved) : active;
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
    job.offsets = offsets.numel() ? reinterpret_cast<uint8_t*>(at(offsets)) : nullptr;
    run_pool2d(op, job);
  }
}

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d(
    const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const std::string& padding_mode,
    const std::string& algo, const std::string& activation, const std::string& pool,
    const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
    bool pool_ceil_mode, bool count_include_pad, bool save) {
  const char* op = "conv2d_act_pool2d";
  const DType dtype = dtype_of(op, "input", input);
  check_same(op, "weight", weight, "input", input);
  const ConvParams p = make_conv_params(op, sizes_of(input), sizes_of(weight), stride, padding,
                                        dilation, groups, padding_mode);
  check_bias(op, bias, input, p.K);
  const Ints conv_size{p.N, p.K, p.P, p.Q};
  const ActPool ap(op, conv_size, activation, pool, pool_kernel_size, pool_stride, pool_padding,
                   pool_ceil_mode, count_include_pad);
  const bool nhwc = is_nhwc(input);
  const ConvAlgo chosen = select_block(op, p, dtype, nhwc, algo);
  const Ints size{p.N, p.K, ap.pool.P, ap.pool.Q};
  Tensor out = new_output(input, size, nhwc);
  Tensor saved =
      save && ap.saves_conv() ? new_output(input, conv_size, nhwc) : new_output(input, {0}, false);
  Tensor offsets = save && ap.kind == PoolKind::kMax
                       ? new_output(input, size, nhwc, ScalarType::Byte)
                       : new_output(input, {0}, false, ScalarType::Byte);
  if (p.N == 0) return {out, saved, offsets};
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
    return {out, saved, offsets};
  }
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    const View in_view = view_of(x.data_ptr(), p.C, p.H, p.W, nhwc);
    const View out_view = view_of(out.data_ptr(), p.K, size[2], size[3], nhwc);
    const View saved_view = view_or_null(saved, conv_size, nhwc);
    const View offsets_view = view_or_null(offsets, size, nhwc);
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
  return {out, saved, offsets};
}

Tensor act_pool2d_grad(const Tensor& grad, const Tensor& output, const Tensor& saved,
                       const Tensor& offsets, const Ints& input_size, const std::string& activation,
                       const std::string& pool, const Ints& pool_kernel_size,
                       const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode,
                       bool count_include_pad) {
  const char* op = "act_pool2d_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  check_same(op, "output", output, "grad", grad);
  check_same(op, "saved", saved, "grad", grad);
  check_sizes(op, "input_size", input_size, "[N, K, P, Q]");
  ActPool ap(op, input_size, activation, pool, pool_kernel_size, pool_stride, pool_padding,
             pool_ceil_mode, count_include_pad);
  const Ints size{ap.pool.N, ap.pool.C, ap.pool.P, ap.pool.Q};
  check_size_is(op, "grad", grad, size);
  check_size_is(op, "output", output, size);
  check_size_is(op, "saved", saved, ap.saves_conv() ? input_size : Ints{0});
  check_size_is(op, "offsets", offsets, ap.kind == PoolKind::kMax ? size : Ints{0});
  if (offsets.scalar_type() != ScalarType::Byte) fail(op, "offsets must be uint8");
  const bool nhwc = is_nhwc(output);
  Tensor out = new_output(grad, input_size, nhwc);
  if (out.numel() == 0) return out;
  if (ap.kind == PoolKind::kAvg) add_covers(ap.rows, ap.pool.H), add_covers(ap.cols, ap.pool.W);
  const ActPoolGrad f{
      ap.kind,
      ap.activation,
      ap.pool.N,
      ap.pool.C,
      ap.pool.H,
      ap.pool.W,
      ap.pool.P,
      ap.pool.Q,
      ap.pool.S,
      ap.pool.stride_h,
      ap.pool.stride_w,
      ap.pool.pad_h,
      ap.pool.pad_w,
      ap.pool.R * ap.pool.S,
      ap.rows.windows.data(),
      ap.cols.windows.data(),
      ap.rows.covers.data(),
      ap.cols.covers.data(),
      ap.rows.offsets.data(),
      ap.cols.offsets.data(),
      ap.pool.S == 2 && ap.pool.stride_w == 2 && ap.pool.pad_w == 0 && ap.pool.W == 2 * ap.pool.Q};
  const Tensor g = dense(grad, nhwc), y = dense(output, nhwc);
  const Tensor z = saved.numel() ? dense(saved, nhwc) : saved,
               at = offsets.numel() ? dense(offsets, nhwc) : offsets;
  bool ok = true;
  with_storage_type(dtype, [&](auto type) {
    using T = decltype(type);
    ok = CNNKERN_ISA_CALL(
        launch_act_pool2d_grad<T>(f, view_or_null(g, size, nhwc), view_or_null(y, size, nhwc),
                                  view_or_null(z, input_size, nhwc), view_or_null(at, size, nhwc),
                                  view_or_null(out, input_size, nhwc)));
  });
  if (!ok) fail(op, "offsets must point into their window and the plane");
  return out;
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv2d_act_pool2d", TORCH_BOX(&cnnkern::conv2d_act_pool2d));
  m.impl("act_pool2d_grad", TORCH_BOX(&cnnkern::act_pool2d_grad));
}
