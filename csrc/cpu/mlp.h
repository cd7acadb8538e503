// What the kernels of linear layers with activations between them are handed.
#pragma once
#include <cstdint>
#include <vector>

#include "params.h"

namespace cnnkern {

// One layer: weight [outputs, inputs] and what it reads and writes, rows of images.
template <typename T>
struct MlpLayer {
  int64_t inputs, outputs;
  const T *weight, *bias, *input;
  T* output;
  Activation activation;
  // Gradients: of the output before the activation, weight and bias; null what nobody asks for.
  T *dz, *weight_grad, *bias_grad;
};

template <typename T>
using MlpLayers = std::vector<MlpLayer<T>>;

}  // namespace cnnkern
