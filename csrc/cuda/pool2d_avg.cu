// Forward average pools (pool2d_launch.cuh), and the launch of either kind.
#include "pool2d_launch.cuh"

namespace cnnkern {

cudaError_t launch_pool2d_fprop(const PoolCall& call) {
  if (call.p.N == 0) return cudaSuccess;
  if (call.kind == PoolKind::kMax)
    launch_max_pool2d_fprop(call);
  else
    with_device_type(call.dtype, [&](auto type) {
      launch_pool2d_fprop_as<decltype(type), PoolKind::kAvg, PoolSaved::kNone>(call);
    });
  return cudaGetLastError();
}

}  // namespace cnnkern
