// Binders of mlp and mlp_grad on the CPU.
#include "mlp.h"

#include "mlp_run.h"
#include "output.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "mlp.inc"
#include "foreach_isa.h"

namespace cnnkern {
namespace {

// Refuses layers that do not follow each other, from `features` on; `input` has their dtype.
void check_mlp(const char* op, const Tensor& input, int64_t features, const Tensors& weights) {
  const DType dtype = dtype_of(op, "input", input);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    fail(op, "input must be float32 or float64, got ",
         torch::headeronly::toString(input.scalar_type()));
  if (weights.empty()) fail(op, "weights must not be empty");
  for (const Tensor& w : weights) {
    check_same(op, "weights", w, "input", input);
    if (w.dim() != 2 || w.size(0) < 1 || w.size(1) < 1 || w.size(1) != features)
      fail(op, "weights must be [outputs, ", features, "], got ", to_string(sizes_of(w)));
    features = w.size(0);
  }
}
int64_t features_of(const char* op, const Tensor& input) {
  if (input.dim() != 2) fail(op, "input must be [N, features], got ", to_string(sizes_of(input)));
  return input.size(1);
}

void check_each(const char* op, const char* name, const Tensors& tensors, const Tensor& input,
                const Tensors& weights, bool rows) {
  if (tensors.size() != weights.size())
    fail(op, name, " must be as many as weights, got ", tensors.size(), " and ", weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t outputs = weights[i].size(0);
    check_same(op, name, tensors[i], "input", input);
    check_size_is(op, name, tensors[i], rows ? Ints{input.size(0), outputs} : Ints{outputs});
  }
}

// Only those whose derivative is a function of their value, the output.
Activation mlp_activation(const char* op, const std::string& name) {
  const Activation activation = parse_activation(op, name);
  if (activation == Activation::kGelu || activation == Activation::kSilu)
    fail(op, "activation must be 'none', 'relu', 'sigmoid' or 'tanh', got '", name, "'");
  return activation;
}

Tensor dense_rows(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
Tensors dense_rows(const Tensors& tensors) {
  Tensors dense;
  for (const Tensor& t : tensors) dense.push_back(dense_rows(t));
  return dense;
}

template <typename T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// The layers on dense tensors; without biases and gradients.
template <typename T>
MlpLayers<T> mlp_layers(const T* input, const Tensors& weights, const std::vector<T*>& outputs,
                        Activation activation) {
  MlpLayers<T> layers;
  for (size_t i = 0; i < weights.size(); ++i)
    layers.push_back({weights[i].size(1), weights[i].size(0), data_of<T>(weights[i]), nullptr,
                      i ? outputs[i - 1] : input, outputs[i],
                      i + 1 < weights.size() ? activation : Activation::kNone});
  return layers;
}
template <typename T>
std::vector<T*> data_of(const Tensors& tensors) {
  std::vector<T*> data;
  for (const Tensor& t : tensors) data.push_back(data_of<T>(t));
  return data;
}

}  // namespace

Activation parse_mlp(const char* op, const Tensor& input, int64_t features, const Tensors& weights,
                     const Tensors& biases, const std::string& activation) {
  const Activation act = mlp_activation(op, activation);
  check_mlp(op, input, features, weights);
  check_each(op, "biases", biases, input, weights, false);
  return act;
}

Tensors run_mlp(const Tensor& like, const void* rows, int64_t N, const Tensors& weights,
                const Tensors& biases, Activation activation, bool save) {
  const size_t count = weights.size();
  Tensors outputs;
  for (size_t i = save ? 0 : count - 1; i < count; ++i)
    outputs.push_back(new_cpu_output(like, {N, weights[i].size(0)}, false));
  if (N == 0) return outputs;
  const Tensors w = dense_rows(weights), b = dense_rows(biases);
  auto run = [&](auto type) {
    typedef decltype(type) T;
    std::vector<T*> data = data_of<T>(outputs);
    if (!save) {
      int64_t hidden = 0;
      for (size_t i = 0; i + 1 < count; ++i) hidden += N * w[i].size(0);
      T* at = static_cast<T*>(thread_workspace(Scratch::kCall, sizeof(T) * hidden));
      for (size_t i = count - 1; i-- > 0; at += N * w[i].size(0)) data.insert(data.begin(), at);
    }
    MlpLayers<T> layers = mlp_layers<T>(static_cast<const T*>(rows), w, data, activation);
    for (size_t i = 0; i < count; ++i) layers[i].bias = data_of<T>(b[i]);
    CNNKERN_ISA_CALL(launch_mlp<T>(layers, N));
  };
  like.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return outputs;
}

Tensors run_mlp_grad(const char* op, const Tensor& grad, const Tensor& input, int64_t features,
                     const Tensors& weights, const Tensors& outputs, const std::string& activation,
                     bool need_input, bool need_params) {
  const Activation act = mlp_activation(op, activation);
  check_mlp(op, input, features, weights);
  check_each(op, "outputs", outputs, input, weights, true);
  check_same(op, "grad", grad, "input", input);
  check_size_is(op, "grad", grad, {input.size(0), weights.back().size(0)});
  Tensors grads{new_cpu_output(input, need_input ? sizes_of(input) : Ints{0}, false)};
  for (size_t i = 0; need_params && i < weights.size(); ++i) {
    grads.push_back(new_cpu_output(input, sizes_of(weights[i]), false));
    grads.push_back(new_cpu_output(input, {weights[i].size(0)}, false));
  }
  const Tensor g = dense_rows(grad), x = dense_rows(input);
  const Tensors w = dense_rows(weights), y = dense_rows(outputs);
  const int64_t N = x.size(0);
  auto run = [&](auto type) {
    typedef decltype(type) T;
    MlpLayers<T> layers = mlp_layers<T>(data_of<T>(x), w, data_of<T>(y), act);
    int64_t hidden = 0;
    for (size_t i = 0; i + 1 < layers.size(); ++i) hidden += layers[i].outputs;
    T* dz = static_cast<T*>(thread_workspace(Scratch::kCall, sizeof(T) * N * hidden));
    for (size_t i = 0; i < layers.size(); ++i) {
      layers[i].dz = i + 1 < layers.size() ? dz : data_of<T>(g);
      dz += N * layers[i].outputs;
      if (!need_params) continue;
      layers[i].weight_grad = data_of<T>(grads[1 + 2 * i]);
      layers[i].bias_grad = data_of<T>(grads[2 + 2 * i]);
    }
    CNNKERN_ISA_CALL(launch_mlp_grad<T>(layers, N, need_input ? data_of<T>(grads[0]) : nullptr));
  };
  input.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return grads;
}

namespace {

Tensors mlp(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const std::string& activation) {
  const char* op = "mlp";
  const Activation act = parse_mlp(op, input, features_of(op, input), weights, biases, activation);
  const Tensor x = dense_rows(input);
  return run_mlp(x, x.data_ptr(), x.size(0), weights, biases, act, true);
}

Tensors mlp_grad(const Tensor& grad, const Tensor& input, const Tensors& weights,
                 const Tensors& outputs, const std::string& activation, bool need_input,
                 bool need_params) {
  const char* op = "mlp_grad";
  return run_mlp_grad(op, grad, input, features_of(op, input), weights, outputs, activation,
                      need_input, need_params);
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("mlp", TORCH_BOX(&cnnkern::mlp));
  m.impl("mlp_grad", TORCH_BOX(&cnnkern::mlp_grad));
}
