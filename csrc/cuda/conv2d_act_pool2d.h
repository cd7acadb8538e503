// The interface between the binder of the fused block and its kernels. All tensors are dense.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "params.h"

namespace cnnkern {

struct FusedCall {
  ConvParams p;
  PoolParams pool;  // on the convolution's output
  PoolKind kind;
  Activation activation;
  DType dtype;
  bool nhwc;         // of input and outputs
  bool weight_nhwc;  // memory order of the weight: K R S C; else K C R S
  bool save_before;  // `saved` is the pre-activation
  const void* input = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;  // or nullptr
  void* output = nullptr;
  void* saved = nullptr;       // the convolution's output, or nullptr
  uint8_t* offsets = nullptr;  // of a max pool, or nullptr
  cudaStream_t stream = nullptr;
};

// The block in one kernel: images and weights that fit into shared memory, pools of 2x2. Empty: it
// applies; else the reason why not.
std::string supports_conv2d_act_pool2d(const FusedCall& call);
cudaError_t launch_conv2d_act_pool2d(const FusedCall& call);

// to[i] = activation(from[i]); the two may be the same.
cudaError_t launch_activation(DType dtype, Activation activation, const void* from, void* to,
                              int64_t count, cudaStream_t stream);

// From the gradient of the pooled output to that of the convolution's output.
struct ActPoolGradCall {
  PoolParams pool;
  PoolKind kind;
  Activation activation;
  DType dtype;
  bool nhwc;
  const void* grad;
  const void* output;
  const void* saved;  // the convolution's output, or nullptr where `output` is enough
  const uint8_t* offsets;
  void* to;
  cudaStream_t stream;
};
cudaError_t launch_act_pool2d_grad(const ActPoolGradCall& call);

}  // namespace cnnkern
