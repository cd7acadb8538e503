// Binders of conv_mlp and conv_mlp_grad on the CPU: fused blocks, then linear layers, in one call
// of the dispatcher and of autograd. Of a single small image such calls take longer than the
// layers.
#include "conv2d_select.h"
#include "mlp_run.h"

namespace cnnkern {
namespace {

// A block's numbers, in the order of the fused block's arguments.
struct BlockOptions {
  static constexpr size_t kNumbers = 17;
  Ints stride, padding, dilation;
  int64_t groups;
  Ints window, step, pool_padding;
  bool ceil_mode, count_include_pad;

  BlockOptions(const Ints& numbers, size_t block) {
    auto next = [at = numbers.data() + block * kNumbers](size_t count) mutable {
      at += count;
      return Ints(at - count, at);
    };
    stride = next(2), padding = next(4), dilation = next(2), groups = next(1)[0];
    window = next(2), step = next(2), pool_padding = next(2);
    ceil_mode = next(1)[0] != 0, count_include_pad = next(1)[0] != 0;
  }
};

void check_blocks(const char* op, const Tensors& weights, const Tensors& biases,
                  const Ints& numbers) {
  const size_t blocks = weights.size();
  if (blocks == 0 || biases.size() != blocks || numbers.size() != blocks * BlockOptions::kNumbers)
    fail(op, "there must be blocks, and for each a bias and ", BlockOptions::kNumbers,
         " numbers, got ", blocks, ", ", biases.size(), " and ", numbers.size());
}

// How many blocks, from the first one on, take images in lanes. Between them, and between forward
// and backward, nothing is turned into the layout of the input and back. The tensors' sizes do not
// tell, their order in memory is known to these two ops alone.
size_t blocks_in_lanes(const char* op, const Tensor& input, const Tensors& weights,
                       const Ints& geometry, const std::string& algo, const std::string& activation,
                       const std::string& pool) {
  const DType dtype = dtype_of(op, "input", input);
  Ints size = sizes_of(input);
  size_t count = 0;
  for (; count < weights.size(); ++count) {
    const BlockOptions o(geometry, count);
    const ConvParams p = make_conv_params(op, size, sizes_of(weights[count]), o.stride, o.padding,
                                          o.dilation, o.groups, "zeros");
    if (!suits_conv2d_chwn(p) && algo != "chwn") break;
    const ActPool ap(op, {p.N, p.K, p.P, p.Q}, activation, pool, o.window, o.step, o.pool_padding,
                     o.ceil_mode, o.count_include_pad);
    if (!takes_lanes(op, p, ap, dtype, is_nhwc(input), algo)) break;
    size = {p.N, p.K, ap.pool.P, ap.pool.Q};
  }
  return count;
}
InLanes lanes_of(size_t block, size_t blocks_in_lanes) {
  return {block > 0 && block < blocks_in_lanes, block < blocks_in_lanes,
          block + 1 < blocks_in_lanes};
}

int64_t features_of(const Tensor& x) { return x.size(1) * x.size(2) * x.size(3); }

// [scores, then if they are to be saved each block's three results and each hidden layer's output].
Tensors conv_mlp(const Tensor& input, const Tensors& conv_weights, const Tensors& conv_biases,
                 const Ints& geometry, const std::string& algo, const std::string& activation,
                 const std::string& pool, const Tensors& weights, const Tensors& biases,
                 bool save) {
  const char* op = "conv_mlp";
  check_blocks(op, conv_weights, conv_biases, geometry);
  Tensors results(1, input);  // the scores' place
  Tensor x = input;
  const size_t in_lanes =
      blocks_in_lanes(op, input, conv_weights, geometry, algo, activation, pool);
  for (size_t i = 0; i < conv_weights.size(); ++i) {
    const BlockOptions o(geometry, i);
    Tensor saved, offsets;
    if (save) {
      saved = new_output(input, {0}, false);
      offsets = new_output(input, {0}, false, ScalarType::Byte);
    }
    x = run_block(op, x, conv_weights[i], conv_biases[i], o.stride, o.padding, o.dilation, o.groups,
                  "zeros", algo, activation, pool, o.window, o.step, o.pool_padding, o.ceil_mode,
                  o.count_include_pad, save ? &saved : nullptr, save ? &offsets : nullptr,
                  lanes_of(i, in_lanes));
    if (save) results.insert(results.end(), {x, saved, offsets});
  }
  const Activation act = parse_mlp(op, x, features_of(x), weights, biases, activation);
  const Tensors outputs = run_mlp(dense(x, false), weights, biases, act, save);
  results[0] = outputs.back();
  results.insert(results.end(), outputs.begin(), outputs.end() - 1);
  return results;
}

// [input's or an empty tensor, then of each block and each linear layer weight's and bias's].
Tensors conv_mlp_grad(const Tensor& grad, const Tensor& input, const Tensors& conv_weights,
                      const Tensors& results, const Ints& geometry, const std::string& algo,
                      const std::string& activation, const std::string& pool,
                      const Tensors& weights, bool need_input) {
  const char* op = "conv_mlp_grad";
  const size_t blocks = conv_weights.size();
  check_blocks(op, conv_weights, conv_weights, geometry);
  if (results.size() != 3 * blocks + weights.size())
    fail(op, "results must be ", 3 * blocks + weights.size(), ", got ", results.size());
  Tensors outputs(results.begin() + 1 + 3 * blocks, results.end());
  outputs.push_back(results[0]);
  const Tensor& last = results[3 * blocks - 2];
  if (last.dim() != 4) fail(op, "results must be those of conv_mlp");
  const Tensors linear = run_mlp_grad(op, grad, dense(last, false), features_of(last), weights,
                                      outputs, activation, true, true);
  Tensors grads(1 + 2 * blocks, input);
  Tensor dy = linear[0];
  const size_t in_lanes =
      blocks_in_lanes(op, input, conv_weights, geometry, algo, activation, pool);
  for (size_t i = blocks; i-- > 0;) {
    const BlockOptions o(geometry, i);
    const Tensor* of = &results[1 + 3 * i];
    std::tie(dy, grads[1 + 2 * i], grads[2 + 2 * i]) = conv2d_act_pool2d_grad(
        dy, i ? of[-3] : input, conv_weights[i], of[0], of[1], of[2], o.stride, o.padding,
        o.dilation, o.groups, "zeros", algo, activation, pool, o.window, o.step, o.pool_padding,
        o.ceil_mode, o.count_include_pad, i > 0 || need_input, true, true, lanes_of(i, in_lanes));
  }
  grads[0] = dy;
  grads.insert(grads.end(), linear.begin() + 1, linear.end());
  return grads;
}

}  // namespace
}  // namespace cnnkern

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv_mlp", TORCH_BOX(&cnnkern::conv_mlp));
  m.impl("conv_mlp_grad", TORCH_BOX(&cnnkern::conv_mlp_grad));
}
