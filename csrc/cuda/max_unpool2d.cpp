// Binder of the ops that follow saved positions on CUDA: max_unpool2d and its gradient,
// max_pool2d_gather and adaptive_max_pool2d_grad. Positions are the caller's: those outside the
// plane are skipped, or read as zero; to refuse them as the CPU does would be to wait for the
// device.
#include "binder.h"
#include "pool2d.h"
#include "pool2d_check.h"

namespace cnnkern {
namespace {

// The side of the windows is [N, C, P, Q], the other one [N, C, H, W].
Tensor move(const char* op, IndexMove kind, const char* name, const Tensor& from,
            const Tensor& indices, const Ints& pooled, const Ints& plane, bool nhwc,
            const PoolParams& p = {}) {
  const DType dtype = dtype_of(op, name, from);
  check_same_device(op, "indices", indices, name, from);
  check_pool_plane(op, "indices", pooled);
  check_pool_plane(op, kind == IndexMove::kGather ? name : "output", plane);
  const OnDevice on(op, from);
  const Tensor source = on.dense(from, nhwc), at = on.dense(indices, nhwc);
  Tensor result = new_output(from, kind == IndexMove::kGather ? pooled : plane, nhwc);
  const bool offsets = indices.scalar_type() == ScalarType::Byte;
  on.check(launch_move_by_index(
      {kind, dtype, nhwc ? pooled[0] : pooled[0] * pooled[1], nhwc ? pooled[1] : 1,
       plane[2] * plane[3], pooled[2] * pooled[3], source.data_ptr(), result.data_ptr(),
       offsets ? PoolSaved::kOffsets : PoolSaved::kIndices, at.data_ptr(), p, on.stream}));
  return result;
}

Tensor max_unpool2d(Tensor input, Tensor indices, Ints output_size) {
  const char* op = "max_unpool2d";
  check_sizes(op, "input", sizes_of(input), "[N, C, P, Q]");
  check_ints(op, "output_size", output_size, 2, 1);
  const Ints size{input.size(0), input.size(1), output_size[0], output_size[1]};
  check_sizes(op, "output", size, "[N, C, H, W]");
  dtype_of(op, "input", input);
  check_index_dtype(op, indices, false);
  check_size_is(op, "input", input, sizes_of(indices));
  return move(op, IndexMove::kScatterLast, "input", input, indices, sizes_of(indices), size,
              is_nhwc(input));
}

Tensor max_unpool2d_grad(Tensor grad, Tensor indices) {
  const char* op = "max_unpool2d_grad";
  dtype_of(op, "grad", grad);
  const Ints plane = sizes_of(grad), pooled = sizes_of(indices);
  check_sizes(op, "grad", plane, "[N, C, H, W]");
  check_sizes(op, "indices", pooled, "[N, C, P, Q]");
  check_index_dtype(op, indices, false);
  if (plane[0] != pooled[0] || plane[1] != pooled[1])
    fail(op, "indices must have the N and C of grad, got ", to_string(pooled), " and ",
         to_string(plane));
  return move(op, IndexMove::kGather, "grad", grad, indices, pooled, plane, is_nhwc(grad));
}

Tensor max_pool2d_gather(Tensor input, Tensor indices, Ints kernel_size, Ints stride, Ints padding,
                         Ints dilation) {
  const char* op = "max_pool2d_gather";
  dtype_of(op, "input", input);
  const PoolParams p =
      make_saved_pool_params(op, sizes_of(input), indices, kernel_size, stride, padding, dilation);
  check_index_dtype(op, indices, true);
  return move(op, IndexMove::kGather, "input", input, indices, sizes_of(indices), sizes_of(input),
              is_nhwc(indices), p);
}

Tensor adaptive_max_pool2d_grad(Tensor grad, Tensor indices, Ints input_size) {
  const char* op = "adaptive_max_pool2d_grad";
  check_sizes(op, "indices", sizes_of(indices), "[N, C, P, Q]");
  check_index_dtype(op, indices, false);
  const PoolParams p =
      make_adaptive_pool_params(op, input_size, {indices.size(2), indices.size(3)});
  check_size_is(op, "indices", indices, {p.N, p.C, p.P, p.Q});
  dtype_of(op, "grad", grad);
  check_size_is(op, "grad", grad, sizes_of(indices));
  return move(op, IndexMove::kScatterAdd, "grad", grad, indices, sizes_of(indices), input_size,
              is_nhwc(indices));
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CUDA, m) {
  m.impl("max_unpool2d", TORCH_BOX(&cnnkern::max_unpool2d));
  m.impl("max_unpool2d_grad", TORCH_BOX(&cnnkern::max_unpool2d_grad));
  m.impl("max_pool2d_gather", TORCH_BOX(&cnnkern::max_pool2d_gather));
  m.impl("adaptive_max_pool2d_grad", TORCH_BOX(&cnnkern::adaptive_max_pool2d_grad));
}
