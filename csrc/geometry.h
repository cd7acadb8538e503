// Builds and validates ConvParams and PoolParams from plain integers: the one place where a bad
// geometry is refused. Used by the binders and, through cnnkern._C, by the Python side. No torch
// here.
#pragma once
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "params.h"

namespace cnnkern {

using Ints = std::vector<int64_t>;

template <typename... Args>
[[noreturn]] void fail(const char* op, const Args&... args) {
  std::ostringstream text;
  text << "cnnkern::" << op << ": ";
  (text << ... << args);
  throw std::runtime_error(text.str());
}

inline std::string to_string(const int64_t* values, size_t count) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < count; ++i) text << (i ? ", " : "") << values[i];
  text << "]";
  return text.str();
}
inline std::string to_string(const Ints& v) { return to_string(v.data(), v.size()); }

// Every extent is kept below 2^31, so no product of two of them overflows 64 bits.
constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1;

inline void check_ints(const char* op, const char* name, const Ints& v, size_t count, int64_t low) {
  if (v.size() != count) fail(op, name, " must have ", count, " values, got ", to_string(v));
  for (int64_t x : v) {
    if (x < low) fail(op, name, " must be at least ", low, ", got ", to_string(v));
    if (x > kMaxExtent) fail(op, name, " must be below 2^31, got ", to_string(v));
  }
}

inline void check_sizes(const char* op, const char* name, const Ints& v, const char* letters) {
  if (v.size() != 4)
    fail(op, name, " must be ", letters, ", got ", v.size(), " dimensions: ", to_string(v));
  int64_t numel = 1;
  for (int64_t x : v)
    if (x < 0 || x > kMaxExtent || __builtin_mul_overflow(numel, x > 0 ? x : 1, &numel))
      fail(op, name, " sizes overflow or are negative: ", to_string(v));
}

inline PaddingMode parse_padding_mode(const char* op, const std::string& mode) {
  if (mode == "zeros") return PaddingMode::kZeros;
  if (mode == "reflect") return PaddingMode::kReflect;
  if (mode == "replicate") return PaddingMode::kReplicate;
  if (mode == "circular") return PaddingMode::kCircular;
  fail(op, "padding_mode must be 'zeros', 'reflect', 'replicate' or 'circular', got '", mode, "'");
}

inline Activation parse_activation(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "tanh") return Activation::kTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu") return Activation::kSilu;
  fail(op, "activation must be 'none', 'relu', 'sigmoid', 'tanh', 'gelu' or 'silu', got '", name,
       "'");
}

inline PoolKind parse_pool(const char* op, const std::string& name) {
  if (name == "none") return PoolKind::kNone;
  if (name == "max") return PoolKind::kMax;
  if (name == "avg") return PoolKind::kAvg;
  fail(op, "pool must be 'none', 'max' or 'avg', got '", name, "'");
}

inline void check_act_pool(const char* op, const std::string& activation, const std::string& pool,
                           const Ints& pool_kernel_size) {
  parse_activation(op, activation);
  if (parse_pool(op, pool) != PoolKind::kMax) return;
  check_ints(op, "pool_kernel_size", pool_kernel_size, 2, 1);
  if (pool_kernel_size[0] * pool_kernel_size[1] > kMaxOffsets)
    fail(op, "pool_kernel_size of a max pool must have at most ", kMaxOffsets, " elements, got ",
         to_string(pool_kernel_size));
}

// `padding` is (left, right, top, bottom), `stride` and `dilation` are (height, width).
inline ConvParams make_conv_params(const char* op, const Ints& input, const Ints& weight,
                                   const Ints& stride, const Ints& padding, const Ints& dilation,
                                   int64_t groups, const std::string& padding_mode) {
  check_sizes(op, "input", input, "[N, C, H, W]");
  check_sizes(op, "weight", weight, "[K, C/groups, R, S]");
  check_ints(op, "stride", stride, 2, 1);
  check_ints(op, "padding", padding, 4, 0);
  check_ints(op, "dilation", dilation, 2, 1);
  if (groups < 1) fail(op, "groups must be at least 1, got ", groups);
  ConvParams p{input[0],
               input[1],
               input[2],
               input[3],
               weight[0],
               weight[2],
               weight[3],
               0,
               0,
               stride[0],
               stride[1],
               padding[0],
               padding[1],
               padding[2],
               padding[3],
               dilation[0],
               dilation[1],
               groups,
               parse_padding_mode(op, padding_mode)};
  if (p.R < 1 || p.S < 1)
    fail(op, "weight must have a kernel of at least 1x1, got ", to_string(weight));
  if (p.K < 1 || p.C < 1)
    fail(op, "input and weight must have at least one channel, got input ", to_string(input),
         " and weight ", to_string(weight));
  if (p.C % groups || p.K % groups)
    fail(op, "groups must divide the channels, got groups ", groups, " for ", p.C, " input and ",
         p.K, " output channels");
  if (weight[1] != p.C / groups)
    fail(op, "weight must be [K, C/groups, R, S] with C/groups = ", p.C / groups, ", got ",
         to_string(weight), " for input ", to_string(input), " and groups ", groups);
  const bool empty_plane = p.H < 1 || p.W < 1;
  if (p.mode == PaddingMode::kReflect &&
      (p.pad_left >= p.W || p.pad_right >= p.W || p.pad_top >= p.H || p.pad_bottom >= p.H))
    fail(op, "padding must be smaller than the input for 'reflect', got padding ",
         to_string(padding), " for input ", to_string(input));
  if (p.mode == PaddingMode::kCircular &&
      (p.pad_left > p.W || p.pad_right > p.W || p.pad_top > p.H || p.pad_bottom > p.H))
    fail(op, "padding must not be larger than the input for 'circular', got padding ",
         to_string(padding), " for input ", to_string(input));
  if (p.mode != PaddingMode::kZeros && empty_plane)
    fail(op, "input must not be empty for padding_mode '", padding_mode, "', got ",
         to_string(input));
  p.P = out_size(p.H, p.pad_top + p.pad_bottom, p.R, p.stride_h, p.dil_h);
  p.Q = out_size(p.W, p.pad_left + p.pad_right, p.S, p.stride_w, p.dil_w);
  if (p.P < 1 || p.Q < 1)
    fail(op, "weight's kernel (", p.R, ", ", p.S, ") with dilation ", to_string(dilation),
         " does not fit into the padded input (", p.H + p.pad_top + p.pad_bottom, ", ",
         p.W + p.pad_left + p.pad_right, ")");
  check_sizes(op, "output", {p.N, p.K, p.P, p.Q}, "[N, K, P, Q]");
  return p;
}

// Pool windows may start inside the input or its left padding, never beyond (torch's ceil_mode
// rule).
inline int64_t pool_out_size(int64_t size, int64_t pad, int64_t k, int64_t stride, int64_t dil,
                             bool ceil_mode) {
  const int64_t room = size + 2 * pad - (dil * (k - 1) + 1);
  if (room < 0 && !(ceil_mode && room + stride - 1 >= 0)) return -1;
  int64_t n = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (n - 1) * stride >= size + pad) --n;
  return n;
}

inline PoolParams make_pool_params(const char* op, const Ints& input, const Ints& kernel_size,
                                   const Ints& stride, const Ints& padding, const Ints& dilation,
                                   bool ceil_mode, bool count_include_pad = true,
                                   std::optional<int64_t> divisor_override = std::nullopt) {
  check_sizes(op, "input", input, "[N, C, H, W]");
  check_ints(op, "kernel_size", kernel_size, 2, 1);
  check_ints(op, "stride", stride, 2, 1);
  check_ints(op, "padding", padding, 2, 0);
  check_ints(op, "dilation", dilation, 2, 1);
  if (divisor_override && *divisor_override == 0) fail(op, "divisor_override must not be 0, got 0");
  for (int i = 0; i < 2; ++i)
    if (2 * padding[i] > kernel_size[i])
      fail(op, "padding must be at most half of kernel_size, got padding ", to_string(padding),
           " for kernel_size ", to_string(kernel_size));
  if (input[1] < 1 || input[2] < 1 || input[3] < 1)
    fail(op, "input must have at least one channel, row and column, got ", to_string(input));
  PoolParams p{input[0],
               input[1],
               input[2],
               input[3],
               kernel_size[0],
               kernel_size[1],
               0,
               0,
               stride[0],
               stride[1],
               padding[0],
               padding[1],
               dilation[0],
               dilation[1],
               false,
               count_include_pad,
               divisor_override.value_or(0)};
  p.P = pool_out_size(p.H, p.pad_h, p.R, p.stride_h, p.dil_h, ceil_mode);
  p.Q = pool_out_size(p.W, p.pad_w, p.S, p.stride_w, p.dil_w, ceil_mode);
  if (p.P < 1 || p.Q < 1)
    fail(op, "kernel_size ", to_string(kernel_size), " with dilation ", to_string(dilation),
         " does not fit into input ", to_string(input), " with padding ", to_string(padding));
  check_sizes(op, "output", {p.N, p.C, p.P, p.Q}, "[N, C, P, Q]");
  return p;
}

inline PoolParams make_adaptive_pool_params(const char* op, const Ints& input,
                                            const Ints& output_size) {
  check_sizes(op, "input", input, "[N, C, H, W]");
  check_ints(op, "output_size", output_size, 2, 1);
  if (input[1] < 1 || input[2] < 1 || input[3] < 1)
    fail(op, "input must have at least one channel, row and column, got ", to_string(input));
  check_sizes(op, "output", {input[0], input[1], output_size[0], output_size[1]}, "[N, C, P, Q]");
  return {input[0], input[1], input[2], input[3], 0,     0, output_size[0], output_size[1], 1, 1, 0,
          0,        1,        1,        true,     false, 0};
}

}  // namespace cnnkern
