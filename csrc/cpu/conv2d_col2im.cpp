// The input gradient of few channels: a file of its own so that it compiles beside conv2d.cpp.
#include "conv2d_col2im.h"

#include "conv2d_chwn.h"
#include "conv2d_depthwise.h"
#include "conv2d_igemm.h"
#include "conv2d_winograd.h"
#include "parallel.h"
#include "workspace.h"

#define CNNKERN_KERNELS "conv2d.inc"
#include "foreach_isa.h"

namespace cnnkern {

template <typename T>
void run_conv2d_col2im(const ConvParams& p, const View& grad, const T* weight, const View& out) {
  CNNKERN_ISA_CALL(launch_conv2d_col2im<T>(p, grad, weight, out));
}

#define CNNKERN_INSTANTIATE(T) \
  template void run_conv2d_col2im<T>(const ConvParams&, const View&, const T*, const View&)
CNNKERN_INSTANTIATE(float);
CNNKERN_INSTANTIATE(double);
CNNKERN_INSTANTIATE(bfloat16);
CNNKERN_INSTANTIATE(float16);

}  // namespace cnnkern
