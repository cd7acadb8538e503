// PyTorch bindings of the test extension.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

cudaError_t scale(const float*, float*, int, float, int, size_t, cudaStream_t);
int scale_ex(const float*, float*, int, int, cudaStream_t);

static at::Tensor scale_op(const at::Tensor& x, double factor, int64_t read_too_far,
                           int64_t shared) {
  TORCH_CHECK(x.is_cuda() && x.is_contiguous(), "x must be a contiguous CUDA tensor");
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = at::empty_like(x);
  C10_CUDA_CHECK(scale(x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), (int)x.numel(),
                       (float)factor, (int)read_too_far, (size_t)shared,
                       c10::cuda::getCurrentCUDAStream()));
  return y;
}
static std::tuple<at::Tensor, int64_t> scale_ex_op(const at::Tensor& x, int64_t read_too_far) {
  at::Tensor y = at::empty_like(x);
  const int blocks = scale_ex(x.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
                              (int)x.numel(), (int)read_too_far, c10::cuda::getCurrentCUDAStream());
  return {y, blocks};
}
TORCH_LIBRARY(ptxcpu_test, m) {
  m.def("scale(Tensor x, float factor, int read_too_far=0, int shared=512) -> Tensor");
  m.def("scale_ex(Tensor x, int read_too_far=0) -> (Tensor, int)");
}
TORCH_LIBRARY_IMPL(ptxcpu_test, CUDA, m) {
  m.impl("scale", scale_op);
  m.impl("scale_ex", scale_ex_op);
}
