// What the fused block shares with the binders of conv2d and of the pools: one call on plain
// memory, whatever the algorithm and the layout; and the gradients that its own is composed of.
#pragma once
#include "check.h"
#include "conv2d_select.h"
#include "pool2d.h"
#include "tap_conv.h"

namespace cnnkern {

void run_conv2d(const ConvParams& p, DType dtype, bool nhwc, ConvAlgo algo, const void* input,
                const void* weight, const void* bias, void* output);
void run_pool2d(const char* op, const PoolJob& job);

Tensor conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Ints& input_size,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         int64_t groups, const std::string& padding_mode, const std::string& algo);
Tensor conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Ints& weight_size,
                          const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups, const std::string& padding_mode, const std::string& algo);
Tensor conv2d_bias_grad(const Tensor& grad);

inline View view_or_null(const Tensor& t, const Ints& size, bool nhwc, bool lanes = false) {
  if (t.numel() == 0) return {};
  View view = view_of(t.data_ptr(), size[1], size[2], size[3], nhwc && !lanes);
  view.lanes = lanes;
  return view;
}

}  // namespace cnnkern
