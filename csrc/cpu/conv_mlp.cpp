// Binders of conv_mlp and conv_mlp_grad on the CPU: fused blocks, then linear layers, in one call
// of the dispatcher and of autograd. Of a single small image, calls, checks and new tensors take
// longer than the layers: what follows from sizes alone is kept from call to call, and where
// nothing is saved for backward the blocks hand on plain memory.
#include <iterator>
#include <sstream>

#include "conv2d_chwn.h"
#include "conv2d_select.h"
#include "mlp_run.h"
#include "output.h"
#include "workspace.h"

namespace cnnkern {
namespace {

// What the op is told of its blocks: words, then of each block numbers in the order of the fused
// block's arguments.
struct Network {
  static constexpr size_t kNumbers = 17;
  std::string algo, activation, pool;
  std::vector<BlockOptions> blocks;
};

Network parse_network(const char* op, const std::string& text) {
  std::istringstream from(text);
  Network network;
  from >> network.algo >> network.activation >> network.pool;
  const Ints numbers{std::istream_iterator<int64_t>(from), {}};
  constexpr size_t kNumbers = Network::kNumbers;
  if (numbers.empty() || numbers.size() % kNumbers || !from.eof())
    fail(op, "network must be algo, activation, pool and ", kNumbers, " numbers a block, got '",
         text, "'");
  for (auto at = numbers.begin(); at != numbers.end();) {
    auto next = [&](size_t count) {
      at += count;
      return Ints(at - count, at);
    };
    BlockOptions& o = network.blocks.emplace_back();
    o.stride = next(2), o.padding = next(4), o.dilation = next(2), o.groups = *at++;
    o.window = next(2), o.step = next(2), o.pool_padding = next(2);
    o.ceil_mode = *at++ != 0, o.count_include_pad = *at++ != 0;
  }
  return network;
}

// All that a call needs to know beside its tensors' memory.
struct Plan {
  std::string text;
  Ints key;  // what else the plan follows from, see describe()
  Network network;
  std::vector<BlockPlan> blocks;
  Activation activation;  // between the linear layers
};

void describe(const Tensor& t, Ints& key) {
  const auto sizes = t.sizes();
  key.insert(key.end(), {int64_t(t.scalar_type()), t.is_cpu(), int64_t(sizes.size())});
  key.insert(key.end(), sizes.begin(), sizes.end());
}

// The linear layers' weights, or their biases, which are one further.
Tensors of_layers(const Tensors& params, size_t blocks, size_t which) {
  Tensors found;
  for (size_t i = 2 * blocks; i < params.size(); i += 2) found.push_back(params[i + which]);
  return found;
}

// Blocks, from the first one on, that take images in lanes do so in both ops. Between them, and
// between forward and backward, nothing is turned into the layout of the input and back. The
// tensors' sizes do not tell, their order in memory is known to these two ops alone.
void plan_lanes(const char* op, const std::string& algo, std::vector<BlockPlan>& blocks) {
  bool lanes = true;
  for (size_t i = 0; i < blocks.size(); ++i) {
    BlockPlan& b = blocks[i];
    lanes = lanes && b.algo == ConvAlgo::kChwn && takes_lanes(op, b.p, b.ap, b.dtype, b.nhwc, algo);
    const bool winograd = lanes && algo == "auto" && suits_image_winograd(b.p, b.dtype);
    b.lanes = {lanes && i > 0, lanes, false, winograd};
    if (lanes && i > 0) blocks[i - 1].lanes.output = true;
  }
}

void make_plan(const char* op, const Tensor& input, const Tensors& params, Plan& plan) {
  plan.network = parse_network(op, plan.text);
  const Network& n = plan.network;
  const size_t blocks = n.blocks.size();
  if (params.size() % 2 || params.size() <= 2 * blocks)
    fail(op, "params must be a weight and a bias of each of ", blocks,
         " blocks, then of at least one layer, got ", params.size());
  const DType dtype = dtype_of(op, "input", input);
  Ints size = sizes_of(input);
  plan.blocks.clear();
  for (size_t i = 0; i < blocks; ++i) {
    const Tensor& weight = params[2 * i];
    check_same(op, "params", weight, "input", input);
    plan.blocks.push_back(plan_block(op, size, sizes_of(weight), dtype, is_nhwc(input), n.blocks[i],
                                     "zeros", n.algo, n.activation, n.pool));
    check_bias(op, params[2 * i + 1], input, plan.blocks.back().p.K);
    size = plan.blocks.back().size();
  }
  plan_lanes(op, n.algo, plan.blocks);
  plan.activation = parse_mlp(op, input, size[1] * size[2] * size[3], of_layers(params, blocks, 0),
                              of_layers(params, blocks, 1), n.activation);
}

// The plan of this thread's last call if that was alike, else a new one.
const Plan& plan_of(const char* op, const Tensor& input, const Tensors& params,
                    const std::string& network) {
  static thread_local Plan plan;
  static thread_local Ints key;
  key.assign({int64_t(current_isa()), is_nhwc(input)});
  describe(input, key);
  for (const Tensor& t : params) describe(t, key);
  if (key == plan.key && network == plan.text) return plan;
  plan.key.clear();  // it is none if this throws
  plan.text = network;
  make_plan(op, input, params, plan);
  plan.key = key;
  return plan;
}

// The scores, from block to block in plain memory.
Tensors run_network(const char* op, const Plan& plan, const Tensor& input, const Tensors& params) {
  constexpr size_t kAlignment = 64;
  const size_t item = input.element_size(), blocks = plan.blocks.size();
  auto bytes = [&](const BlockPlan& b) {
    const size_t count = size_t(b.p.N) * b.p.K * b.ap.pool.P * b.ap.pool.Q;
    return (count * item + kAlignment - 1) / kAlignment * kAlignment;
  };
  size_t all = 0;
  for (const BlockPlan& b : plan.blocks) all += bytes(b);
  char* at = static_cast<char*>(thread_workspace(Scratch::kNetwork, all));
  const Tensor first = dense(input, false);
  const void* rows = first.data_ptr();
  for (size_t i = 0; i < blocks; at += bytes(plan.blocks[i++])) {
    const Tensor weight = dense(params[2 * i], false), bias = dense(params[2 * i + 1], false);
    run_block(op, plan.blocks[i], input,
              {rows, weight.data_ptr(), bias.data_ptr(), at, nullptr, nullptr});
    rows = at;
  }
  return run_mlp(input, rows, input.size(0), of_layers(params, blocks, 0),
                 of_layers(params, blocks, 1), plan.activation, false);
}

// [scores, then if they are to be saved each block's three results and each hidden layer's output].
Tensors conv_mlp(const Tensor& input, const Tensors& params, const std::string& network,
                 bool save) {
  const char* op = "conv_mlp";
  const Plan& plan = plan_of(op, input, params, network);
  const size_t blocks = plan.blocks.size();
  if (!save && !plan.blocks[0].nhwc) return run_network(op, plan, input, params);
  Tensors results(1, input);  // the scores' place
  Tensor x = input;
  for (size_t i = 0; i < blocks; ++i) {
    const BlockResults block =
        run_block(op, plan.blocks[i], x, params[2 * i], params[2 * i + 1], save);
    x = block.out;
    if (save) results.insert(results.end(), {x, block.saved, block.offsets});
  }
  x = dense(x, false);
  const Tensors outputs = run_mlp(input, x.data_ptr(), x.size(0), of_layers(params, blocks, 0),
                                  of_layers(params, blocks, 1), plan.activation, save);
  results[0] = outputs.back();
  results.insert(results.end(), outputs.begin(), outputs.end() - 1);
  return results;
}

// [input's or an empty tensor, then those of the parameters].
Tensors conv_mlp_grad(const Tensor& grad, const Tensor& input, const Tensors& params,
                      const Tensors& results, const std::string& network, bool need_input) {
  const char* op = "conv_mlp_grad";
  const Plan& plan = plan_of(op, input, params, network);
  const Network& n = plan.network;
  const size_t blocks = plan.blocks.size(), layers = params.size() / 2 - blocks;
  if (results.size() != 3 * blocks + layers)
    fail(op, "results must be ", 3 * blocks + layers, ", got ", results.size());
  Tensors outputs(results.begin() + 1 + 3 * blocks, results.end());
  outputs.push_back(results[0]);
  const Tensor& last = results[3 * blocks - 2];
  if (last.dim() != 4) fail(op, "results must be those of conv_mlp");
  const Tensors linear =
      run_mlp_grad(op, grad, dense(last, false), last.size(1) * last.size(2) * last.size(3),
                   of_layers(params, blocks, 0), outputs, n.activation, true, true);
  Tensors grads(1 + 2 * blocks, input);
  Tensor dy = linear[0];
  for (size_t i = blocks; i-- > 0;) {
    const BlockOptions& o = n.blocks[i];
    const Tensor* of = &results[1 + 3 * i];
    std::tie(dy, grads[1 + 2 * i], grads[2 + 2 * i]) = conv2d_act_pool2d_grad(
        dy, i ? of[-3] : input, params[2 * i], of[0], of[1], of[2], o.stride, o.padding, o.dilation,
        o.groups, "zeros", n.algo, n.activation, n.pool, o.window, o.step, o.pool_padding,
        o.ceil_mode, o.count_include_pad, i > 0 || need_input, true, true, plan.blocks[i].lanes);
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
