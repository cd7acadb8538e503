// Binder of the pools' gradients on the CPU: max_pool2d_grad, avg_pool2d_grad and the adaptive two.
#include "pool2d_binder.h"

#define CNNKERN_KERNELS "pool2d_grad.inc"
#include "foreach_isa.h"

namespace cnnkern {

PoolParams make_saved_pool_params(const char* op, const Ints& input_size, const Tensor& indices,
                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                  const Ints& dilation) {
  PoolParams p = make_pool_params(op, input_size, kernel_size, stride, padding, dilation, true);
  const Ints got = sizes_of(indices);
  check_sizes(op, "indices", got, "[N, C, P, Q]");
  const int64_t floor_P = pool_out_size(p.H, p.pad_h, p.R, p.stride_h, p.dil_h, false);
  const int64_t floor_Q = pool_out_size(p.W, p.pad_w, p.S, p.stride_w, p.dil_w, false);
  const Ints ceil_mode{p.N, p.C, p.P, p.Q}, floor_mode{p.N, p.C, floor_P, floor_Q};
  if (got != ceil_mode && got != floor_mode)
    fail(op, "indices must be ", to_string(floor_mode), " or, in ceil_mode, ", to_string(ceil_mode),
         ", got ", to_string(got));
  p.P = got[2];
  p.Q = got[3];
  return p;
}

namespace {

bool offset_is_inside(const PoolJob& job, int64_t p, int64_t q, uint8_t offset) {
  const auto fits = [](const Window& w, int64_t dil, int64_t tap) {
    return w.begin >= w.end || (tap >= w.first && w.begin + (tap - w.first) * dil < w.end);
  };
  return offset < job.p.R * job.p.S && fits(job.rows[p], job.row_dil, offset / job.p.S) &&
         fits(job.cols[q], job.col_dil, offset % job.p.S);
}

// A window that is whole takes any offset below R*S; the others, along the border, are looked into.
void check_offsets(const char* op, const PoolJob& job) {
  const PoolParams& g = job.p;
  const int64_t C = job.nhwc ? g.C : 1, row = g.Q * C, taps = g.R * g.S;
  const auto whole = [](const Window& w, int64_t dil, int64_t k) {
    return w.begin + (k - 1) * dil < w.end;
  };
  Ints clipped;
  for (int64_t q = 0; q < g.Q; ++q)
    if (!whole(job.cols[q], g.dil_w, g.S)) clipped.push_back(q);
  const FirstBad bad;
  torch::stable::parallel_for(0, g.N * g.P * (job.nhwc ? 1 : g.C),
                              std::max<int64_t>(1, kPoolGrainBytes / row),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  const uint8_t* offsets = job.offsets + i * row;
                                  const int64_t p = i % g.P;
                                  const auto check = [&](int64_t q) {
                                    for (int64_t c = q * C; c < (q + 1) * C; ++c)
                                      if (!offset_is_inside(job, p, q, offsets[c]))
                                        bad(i * row + c);
                                  };
                                  uint8_t largest = 0;
                                  for (int64_t k = 0; k < row; ++k)
                                    largest = std::max(largest, offsets[k]);
                                  if (largest < taps && whole(job.rows[p], g.dil_h, g.R))
                                    for (int64_t q : clipped) check(q);
                                  else
                                    for (int64_t q = 0; q < g.Q; ++q) check(q);
                                }
                              });
  if (bad.any())
    fail(op, "indices must be offsets of elements inside the window and the input, got ",
         int(job.offsets[bad.index()]));
}

Tensor max_pool2d_grad(Tensor grad, Tensor indices, Ints input_size, Ints kernel_size, Ints stride,
                       Ints padding, Ints dilation) {
  const char* op = "max_pool2d_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  const PoolParams p =
      make_saved_pool_params(op, input_size, indices, kernel_size, stride, padding, dilation);
  if (indices.scalar_type() == ScalarType::Long)
    return scatter_add_by_index(op, grad, indices, input_size);
  if (indices.scalar_type() != ScalarType::Byte)
    fail(op, "indices must be uint8 or int64, got ",
         torch::headeronly::toString(indices.scalar_type()));
  check_size_is(op, "grad", grad, {p.N, p.C, p.P, p.Q});
  const bool nhwc = is_nhwc(indices);
  const Tensor from = dense(grad, nhwc), offsets = dense(indices, nhwc);
  Tensor result = new_output(grad, input_size, nhwc);
  PoolTables tables(p);
  tables.add_covers(p);
  PoolJob job = tables.job(p, PoolKind::kMax, dtype, nhwc, result, from);
  job.offsets = static_cast<uint8_t*>(offsets.data_ptr());
  check_offsets(op, job);
  const PoolParallel parallel{op};
  CNNKERN_ISA_CALL(pool2d_dgrad(job, parallel));
  return result;
}

Tensor avg_grad(const char* op, const Tensor& grad, const Ints& input_size, const PoolParams& p) {
  const DType dtype = dtype_of(op, "grad", grad);
  check_size_is(op, "grad", grad, {p.N, p.C, p.P, p.Q});
  const bool nhwc = is_nhwc(grad);
  const Tensor from = dense(grad, nhwc);
  Tensor result = new_output(grad, input_size, nhwc);
  PoolTables tables(p);
  tables.add_covers(p);
  const PoolJob job = tables.job(p, PoolKind::kAvg, dtype, nhwc, result, from);
  const PoolParallel parallel{op};
  CNNKERN_ISA_CALL(pool2d_dgrad(job, parallel));
  return result;
}

Tensor avg_pool2d_grad(Tensor grad, Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                       bool ceil_mode, bool count_include_pad,
                       std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d_grad";
  return avg_grad(op, grad, input_size,
                  make_pool_params(op, input_size, kernel_size, stride, padding, {1, 1}, ceil_mode,
                                   count_include_pad, divisor_override));
}

Tensor adaptive_avg_pool2d_grad(Tensor grad, Ints input_size) {
  const char* op = "adaptive_avg_pool2d_grad";
  check_sizes(op, "grad", sizes_of(grad), "[N, C, P, Q]");
  return avg_grad(op, grad, input_size,
                  make_adaptive_pool_params(op, input_size, {grad.size(2), grad.size(3)}));
}

Tensor adaptive_max_pool2d_grad(Tensor grad, Tensor indices, Ints input_size) {
  const char* op = "adaptive_max_pool2d_grad";
  check_sizes(op, "indices", sizes_of(indices), "[N, C, P, Q]");
  if (indices.scalar_type() != ScalarType::Long)
    fail(op, "indices must be int64, got ", torch::headeronly::toString(indices.scalar_type()));
  make_adaptive_pool_params(op, input_size, {indices.size(2), indices.size(3)});
  return scatter_add_by_index(op, grad, indices, input_size);
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("max_pool2d_grad", TORCH_BOX(&cnnkern::max_pool2d_grad));
  m.impl("avg_pool2d_grad", TORCH_BOX(&cnnkern::avg_pool2d_grad));
  m.impl("adaptive_avg_pool2d_grad", TORCH_BOX(&cnnkern::adaptive_avg_pool2d_grad));
  m.impl("adaptive_max_pool2d_grad", TORCH_BOX(&cnnkern::adaptive_max_pool2d_grad));
}
