// Activation and pool of the fused block: their arguments, and what its kernels are handed of them.
#pragma once
#include <string>

#include "geometry.h"
#include "pool2d.h"

namespace cnnkern {

// The options of the activation and the pool, and the pool's geometry on a conv output of that
// size. Without a pool it is that of windows of one element.
struct ActPool {
  Activation activation;
  PoolKind kind;
  PoolParams pool;
  PoolAxis rows, cols;

  ActPool(const char* op, const Ints& conv_size, const std::string& activation_name,
          const std::string& pool_name, const Ints& kernel_size, const Ints& stride,
          const Ints& padding, bool ceil_mode, bool count_include_pad)
      : activation(parse_activation(op, activation_name)), kind(parse_pool(op, pool_name)) {
    check_act_pool(op, activation_name, pool_name, kernel_size);
    pool = kind == PoolKind::kNone
               ? make_pool_params(op, conv_size, {1, 1}, {1, 1}, {0, 0}, {1, 1}, false)
               : make_pool_params(op, conv_size, kernel_size, stride, padding, {1, 1}, ceil_mode,
                                  count_include_pad);
    rows = make_pool_axis(pool.H, pool.P, pool.R, pool.stride_h, pool.pad_h, 1, false,
                          count_include_pad);
    cols = make_pool_axis(pool.W, pool.Q, pool.S, pool.stride_w, pool.pad_w, 1, false,
                          count_include_pad);
  }
  // The same rule as cnnkern.ops.act_pool2d_saves.
  bool saves_conv() const {
    return activation == Activation::kGelu || activation == Activation::kSilu ||
           (activation != Activation::kNone && kind == PoolKind::kAvg);
  }
};

struct FusedPool {
  PoolKind kind;
  Activation activation;
  int64_t R, S, stride_h, stride_w, PQ;
  int64_t rows_per_block;          // pooled rows of a work item
  const Window *rows, *cols;       // of the pooled rows and columns, see pool2d.h
  int64_t inner_begin, inner_end;  // the pooled columns whose window is all inside
};

// Relu, sigmoid and tanh have derivatives that are functions of their value.
inline bool derives_from_value(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kSigmoid ||
         activation == Activation::kTanh;
}

struct ActPoolGrad {
  PoolKind kind;
  Activation activation;
  int64_t N, C, H, W, PP, PQ, S, stride_h, stride_w, pad_h, pad_w, taps;
  const Window *rows, *cols;
  const Cover *row_covers, *col_covers;  // see pool2d.h; average pools only
  const int64_t *row_offsets, *col_offsets;
  bool pairs;  // windows of width 2 side by side: each gradient goes to two neighbours
};

}  // namespace cnnkern
