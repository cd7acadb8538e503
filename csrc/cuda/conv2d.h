// The interface between the convolution's binder and its kernels: one struct for all three passes.
// Predicates are read without CUDA's headers, too, by cnnkern._C.
#pragma once
#if __has_include(<cuda_runtime_api.h>)
#include <cuda_runtime_api.h>
#else
typedef struct CUstream_st* cudaStream_t;
typedef int cudaError_t;
#endif

#include "params.h"

namespace cnnkern {

// What a predicate may look at.
struct ConvQuery {
  ConvParams p;
  DType dtype;
  ConvPass pass;
  bool nhwc;                // layout of input and output and of their gradients
  bool weight_nhwc;         // memory order of the weight: K R S C; else K C R S
  int arch;                 // 80: compute capability 8.0
  bool allow_tf32 = false;  // 'auto' may round float32's factors to tf32, on tensor cores
};

// Tensors are dense. fprop: input, weight -> output; dgrad: grad, weight -> output [N, C, H, W];
// wgrad: grad, input -> output [K, C/groups, R, S], always in the order K C R S.
struct ConvCall : ConvQuery {
  const void* input = nullptr;
  const void* weight = nullptr;
  const void* grad = nullptr;
  const void* bias = nullptr;  // fprop: [K] or nullptr
  void* output = nullptr;
  Activation activation = Activation::kNone;  // fprop: after the bias
  bool output_is_acc = false;  // dgrad: the output is in the accumulator's type; 'direct' only
  void* workspace = nullptr;
  cudaStream_t stream = nullptr;
};

// Gradient of the bias: sums grad [N, K, P, Q] over all but K, in a fixed order.
cudaError_t launch_conv2d_bias_grad(const void* grad, DType dtype, bool nhwc, int64_t N, int64_t K,
                                    int64_t P, int64_t Q, void* output, cudaStream_t stream);

// Folds the gradient of the padded input (dense, accumulator's type) back onto the input.
cudaError_t launch_fold_padding(const ConvParams& p, DType dtype, bool nhwc, const void* padded,
                                void* output, cudaStream_t stream);

}  // namespace cnnkern
