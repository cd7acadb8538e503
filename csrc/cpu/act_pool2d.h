// What the kernels of the fused block are handed about activation and pool.
#pragma once
#include "pool2d.h"

namespace cnnkern {

struct FusedPool {
  PoolKind kind;
  Activation activation;
  int64_t R, S, stride_h, stride_w, PQ;
  int64_t rows_per_block;          // pooled rows of a work item
  const Window *rows, *cols;       // of the pooled rows and columns, see pool2d.h
  int64_t inner_begin, inner_end;  // the pooled columns whose window is all inside
};

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
