// Binder of the ops that follow saved positions on the CPU: max_unpool2d and its gradient,
// max_pool2d_gather, and the scatter behind the gradients of max pools with int64 indices.
#include "pool2d_binder.h"

#define CNNKERN_KERNELS "max_unpool2d.inc"
#include "foreach_isa.h"

namespace cnnkern {
namespace {

// The side of the windows is `pooled` and `indices`, the other side has planes of H x W.
IndexJob make_index_job(const char* op, IndexMove move, DType dtype, bool nhwc,
                        const Ints& pooled_size, int64_t H, int64_t W, const Tensor& from,
                        const Tensor& to) {
  IndexJob job{};
  job.move = move;
  job.dtype = dtype;
  job.images = nhwc ? pooled_size[0] : pooled_size[0] * pooled_size[1];
  job.C = nhwc ? pooled_size[1] : 1;
  job.plane = H * W;
  job.pooled = pooled_size[2] * pooled_size[3];
  job.from = from.data_ptr();
  job.to = to.data_ptr();
  return job;
}

void run(const char* op, const IndexJob& job) {
  const PoolParallel parallel{op};
  const FirstBad bad;
  CNNKERN_ISA_CALL(move_by_index(job, parallel, bad));
  if (!bad.any()) return;
  if (job.offsets)
    fail(op, "indices must be offsets of elements inside the window and the input, got ",
         int(job.offsets[bad.index()]));
  fail(op, "indices must lie in [0, ", job.plane, "), got ", job.indices[bad.index()]);
}

// `size` is [N, C, H, W] of what is scattered into.
Tensor scatter(const char* op, IndexMove move, const char* name, const Tensor& input,
               const Tensor& indices, const Ints& size, bool nhwc) {
  const DType dtype = dtype_of(op, name, input);
  check_index_dtype(op, indices, false);
  check_size_is(op, name, input, sizes_of(indices));
  const Tensor from = dense(input, nhwc), at = dense(indices, nhwc);
  Tensor result = new_cpu_output(input, size, nhwc);
  IndexJob job =
      make_index_job(op, move, dtype, nhwc, sizes_of(indices), size[2], size[3], from, result);
  job.indices = static_cast<const int64_t*>(at.data_ptr());
  run(op, job);
  return result;
}

Tensor max_unpool2d(Tensor input, Tensor indices, Ints output_size) {
  const char* op = "max_unpool2d";
  check_sizes(op, "input", sizes_of(input), "[N, C, P, Q]");
  check_ints(op, "output_size", output_size, 2, 1);
  const Ints size{input.size(0), input.size(1), output_size[0], output_size[1]};
  check_sizes(op, "output", size, "[N, C, H, W]");
  return scatter(op, IndexMove::kScatter, "input", input, indices, size, is_nhwc(input));
}

Tensor max_unpool2d_grad(Tensor grad, Tensor indices) {
  const char* op = "max_unpool2d_grad";
  const DType dtype = dtype_of(op, "grad", grad);
  const Ints plane = sizes_of(grad), pooled = sizes_of(indices);
  check_sizes(op, "grad", plane, "[N, C, H, W]");
  check_sizes(op, "indices", pooled, "[N, C, P, Q]");
  check_index_dtype(op, indices, false);
  if (plane[0] != pooled[0] || plane[1] != pooled[1])
    fail(op, "indices must have the N and C of grad, got ", to_string(pooled), " and ",
         to_string(plane));
  const bool nhwc = is_nhwc(grad);
  const Tensor from = dense(grad, nhwc), at = dense(indices, nhwc);
  Tensor result = new_cpu_output(grad, pooled, nhwc);
  IndexJob job =
      make_index_job(op, IndexMove::kGather, dtype, nhwc, pooled, plane[2], plane[3], from, result);
  job.indices = static_cast<const int64_t*>(at.data_ptr());
  run(op, job);
  return result;
}

Tensor max_pool2d_gather(Tensor input, Tensor indices, Ints kernel_size, Ints stride, Ints padding,
                         Ints dilation) {
  const char* op = "max_pool2d_gather";
  const DType dtype = dtype_of(op, "input", input);
  const PoolParams p =
      make_saved_pool_params(op, sizes_of(input), indices, kernel_size, stride, padding, dilation);
  check_index_dtype(op, indices, true);
  const bool nhwc = is_nhwc(indices);
  const Tensor from = dense(input, nhwc), at = dense(indices, nhwc);
  Tensor result = new_cpu_output(input, sizes_of(indices), nhwc);
  IndexJob job = make_index_job(op, IndexMove::kGather, dtype, nhwc, sizes_of(indices), p.H, p.W,
                                from, result);
  job.p = p;
  if (indices.scalar_type() == ScalarType::Byte)
    job.offsets = static_cast<const uint8_t*>(at.data_ptr());
  else
    job.indices = static_cast<const int64_t*>(at.data_ptr());
  run(op, job);
  return result;
}

}  // namespace

Tensor scatter_add_by_index(const char* op, const Tensor& grad, const Tensor& indices,
                            const Ints& input_size) {
  return scatter(op, IndexMove::kScatterAdd, "grad", grad, indices, input_size, is_nhwc(indices));
}

}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("max_unpool2d", TORCH_BOX(&cnnkern::max_unpool2d));
  m.impl("max_unpool2d_grad", TORCH_BOX(&cnnkern::max_unpool2d_grad));
  m.impl("max_pool2d_gather", TORCH_BOX(&cnnkern::max_pool2d_gather));
}
