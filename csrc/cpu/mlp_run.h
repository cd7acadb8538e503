// What other binders call of the linear layers and of the fused block.
#pragma once
#include <vector>

#include "act_pool2d.h"
#include "check.h"
#include "conv2d_select.h"
#include "tap_conv.h"

namespace cnnkern {

typedef std::vector<Tensor> Tensors;

// Refuses linear layers that do not follow each other from `features` on, or others than `input`.
Activation parse_mlp(const char* op, const Tensor& input, int64_t features, const Tensors& weights,
                     const Tensors& biases, const std::string& activation);

// The layers' outputs or, if the others are not to be saved, the last one's. Of N rows of the first
// layer's features, dense, of the dtype of `like`.
Tensors run_mlp(const Tensor& like, const void* rows, int64_t N, const Tensors& weights,
                const Tensors& biases, Activation activation, bool save);

// The gradients of the input, [N, ...] with the first layer's features an image, or an empty
// tensor, then of each layer's weight and bias, if they are needed.
Tensors run_mlp_grad(const char* op, const Tensor& grad, const Tensor& input, int64_t features,
                     const Tensors& weights, const Tensors& outputs, const std::string& activation,
                     bool need_input, bool need_params);

// Which of a block's tensors have images in lanes, see View: its input, and its gradient; what is
// saved for backward; its output, and its gradient. And whether, where something is saved, Winograd
// may compute it, whose last bits are not those of an image alone.
struct InLanes {
  bool input = false, saved = false, output = false, winograd = false;
};

// True if the block and its gradient take any tensors in lanes.
bool takes_lanes(const char* op, const ConvParams& p, const ActPool& ap, DType dtype, bool nhwc,
                 const std::string& algo);

// A fused block's integers, in the order of the op's arguments.
struct BlockOptions {
  Ints stride, padding, dilation;
  int64_t groups;
  Ints window, step, pool_padding;
  bool ceil_mode, count_include_pad;
};

// What a call of the fused block needs to know beside its tensors' memory. The same plan serves all
// calls with tensors of these sizes.
struct BlockPlan {
  ConvParams p;
  DType dtype;
  bool nhwc;
  ActPool ap;
  ConvAlgo algo;
  TapConv taps;  // of the algorithms that fuse; else it has none
  InLanes lanes;
  Ints conv_size() const { return {p.N, p.K, p.P, p.Q}; }
  Ints size() const { return {p.N, p.K, ap.pool.P, ap.pool.Q}; }
};

BlockPlan plan_block(const char* op, const Ints& input, const Ints& weight, DType dtype, bool nhwc,
                     const BlockOptions& options, const std::string& padding_mode,
                     const std::string& algo, const std::string& activation,
                     const std::string& pool);

// Dense tensors' memory. The bias, and what is saved for backward, may be null.
struct BlockOperands {
  const void *input, *weight, *bias;
  void *out, *saved, *offsets;
};
// What the op returns.
struct BlockResults {
  Tensor out, saved, offsets;
};

void run_block(const char* op, const BlockPlan& plan, const Tensor& like, const BlockOperands& o);
// The same, of tensors of the plan's sizes and dtype.
BlockResults run_block(const char* op, const BlockPlan& plan, const Tensor& input,
                       const Tensor& weight, const std::optional<Tensor>& bias, bool save);

std::tuple<Tensor, Tensor, Tensor> conv2d_act_pool2d_grad(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& output,
    const Tensor& saved, const Tensor& offsets, const Ints& stride, const Ints& padding,
    const Ints& dilation, int64_t groups, const std::string& padding_mode, const std::string& algo,
    const std::string& activation, const std::string& pool, const Ints& pool_kernel_size,
    const Ints& pool_stride, const Ints& pool_padding, bool pool_ceil_mode, bool count_include_pad,
    bool need_input, bool need_weight, bool need_bias, InLanes lanes = {});

}  // namespace cnnkern
