// What the fused block shares with the binders of conv2d and of the pools: one call on plain
// memory, whatever the algorithm and the layout.
#pragma once
#include "conv2d_select.h"
#include "pool2d.h"

namespace cnnkern {

void run_conv2d(const ConvParams& p, DType dtype, bool nhwc, ConvAlgo algo, const void* input,
                const void* weight, const void* bias, void* output);
void run_pool2d(const char* op, const PoolJob& job);

}  // namespace cnnkern
