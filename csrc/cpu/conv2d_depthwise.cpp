// Depthwise convolution and that of few channels a group: a file of its own so that it compiles
// beside conv2d.cpp.
#include "conv2d_depthwise.h"

#include "conv2d_chwn.h"
#include "conv2d_col2im.h"
#include "conv2d_igemm.h"
#include "conv2d_winograd.h"
#include "parallel.h"
#include "tap_conv.h"
#include "workspace.h"

#define CNNKERN_KERNELS "conv2d.inc"
#include "foreach_isa.h"

namespace cnnkern {

template <typename T>
void run_conv2d_depthwise(TapConv* taps, size_t count, const View& in, const T* weight,
                          const T* bias, const View& out) {
  if (in.c != 1) {
    const std::vector<PlanePlan> plans = plan_planes(taps, count);
    return CNNKERN_ISA_CALL(
        launch_conv2d_depthwise_planes<T>(plans.data(), count, in, weight, bias, out));
  }
  std::vector<DepthwisePlan> plans;
  for (size_t i = 0; i < count; ++i) plans.push_back(plan_depthwise(taps[i], in));
  CNNKERN_ISA_CALL(launch_conv2d_depthwise<T>(plans.data(), count, in, weight, bias, out));
}

#define CNNKERN_INSTANTIATE(T)                                                             \
  template void run_conv2d_depthwise<T>(TapConv*, size_t, const View&, const T*, const T*, \
                                        const View&)
CNNKERN_INSTANTIATE(float);
CNNKERN_INSTANTIATE(double);
CNNKERN_INSTANTIATE(bfloat16);
CNNKERN_INSTANTIATE(float16);

}  // namespace cnnkern
