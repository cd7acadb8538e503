// Forward max pools, by what they save (pool2d_launch.cuh).
#include "pool2d_launch.cuh"

namespace cnnkern {

void launch_max_pool2d_fprop(const PoolCall& call) {
  with_device_type(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    switch (call.saved) {
      case PoolSaved::kNone:
        return launch_pool2d_fprop_as<T, PoolKind::kMax, PoolSaved::kNone>(call);
      case PoolSaved::kOffsets:
        return launch_pool2d_fprop_as<T, PoolKind::kMax, PoolSaved::kOffsets>(call);
      case PoolSaved::kIndices:
        return launch_pool2d_fprop_as<T, PoolKind::kMax, PoolSaved::kIndices>(call);
    }
  });
}

}  // namespace cnnkern
