// What other binders call of the linear layers and of the fused block.
#pragma once
#include <vector>

#include "act_pool2d.h"
#include "check.h"

namespace cnnkern {

typedef std::vector<Tensor> Tensors;

// Refuses linear layers that do not follow each other from `features` on, or others than `input`.
Activation parse_mlp(const char* op, const Tensor& input, int64_t features, const Tensors& weights,
                     const Tensors& biases, const std::string& activation);

// The layers' outputs or, if the others are not to be saved, the last one's. The input is dense,
// [N, ...] with the first layer's features an image.
Tensors run_mlp(const Tensor& input, const Tensors& weights, const Tensors& biases,
                Activation activation, bool save);

// The gradients of that input, or an empty tensor, then of each layer's weight and bias, if they
// are needed.
Tensors run_mlp_grad(const char* op, const Tensor& grad, const Tensor& input, int64_t features,
                     const Tensors& weights, const Tensors& outputs, const std::string& activation,
                     bool need_input, bool need_params);

// Which of a block's tensors have images in lanes, see View: its input, and its gradient; what is
// saved for backward; its output, and its gradient.
struct InLanes {
  bool input = false, saved = false, output = false;
};

// True if the block and its gradient take any tensors in lanes.
bool takes_lanes(const char* op, const ConvParams& p, const ActPool& ap, DType dtype, bool nhwc,
                 const std::string& algo);

// The fused block's output, and where they are wanted what else the op returns.
Tensor run_block(const char* op, const Tensor& input, const Tensor& weight,
                 const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                 const Ints& dilation, int64_t groups, const std::string& padding_mode,
                 const std::string& algo, const std::string& activation, const std::string& pool,
                 const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                 bool pool_ceil_mode, bool count_include_pad, Tensor* saved, Tensor* offsets,
                 InLanes lanes = {});

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d_grad(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& output,
    const Tensor& saved, const Tensor& offsets, const Ints& stride, const Ints& padding,
    const Ints& dilation, int64_t groups, const std::string& padding_mode, const std::string& algo,
    const std::string& activation, const std::string& pool, const Ints& pool_kernel_size,
    const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode, bool count_include_pad,
    bool need_input, bool need_weight, bool need_bias, InLanes lanes = {});

}  // namespace cnnkern
