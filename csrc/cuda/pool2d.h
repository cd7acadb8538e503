// The interface between the binders of the CUDA pools and their kernels. `plane` is the
// [N, C, H, W] side and `pooled` the [N, C, P, Q] side: forward reads the one and writes the other,
// backward the reverse. All tensors are dense, in one layout.
#pragma once
#include <cuda_runtime_api.h>

#include "params.h"

namespace cnnkern {

// What says where a window's maximum is: nothing, r*S + s as uint8, h*W + w as int64.
enum class PoolSaved : int { kNone, kOffsets, kIndices };

struct PoolCall {
  PoolParams p;
  PoolKind kind;
  DType dtype;
  bool nhwc;
  PoolSaved saved = PoolSaved::kNone;
  const void* from = nullptr;      // fprop: plane; dgrad: gradient of pooled
  void* to = nullptr;              // fprop: pooled; dgrad: gradient of plane
  void* saved_to = nullptr;        // fprop
  const void* saved_at = nullptr;  // dgrad
  cudaStream_t stream = nullptr;
};

cudaError_t launch_pool2d_fprop(const PoolCall& call);
cudaError_t launch_pool2d_dgrad(const PoolCall& call);

// Moves between a plane and its windows by saved position; one that lies outside the plane is
// skipped by a scatter and read as zero by a gather, since to refuse it would be to wait for the
// device. An NCHW tensor is N*C images of one channel, an NHWC tensor N images of C.
enum class IndexMove : int { kScatterAdd, kScatterLast, kGather };
struct IndexCall {
  IndexMove move;
  DType dtype;
  int64_t images, C;
  int64_t plane, pooled;  // H*W and P*Q
  const void* from;
  void* to;
  PoolSaved saved;  // kOffsets with kGather only, as it needs the windows
  const void* at;
  PoolParams p;
  cudaStream_t stream;
};

cudaError_t launch_move_by_index(const IndexCall& call);

}  // namespace cnnkern
