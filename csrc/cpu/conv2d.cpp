// Binder of conv2d and its gradients on the CPU.
#include "check.h"
STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {}
