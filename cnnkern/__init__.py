"""Hand-written CNN kernels for PyTorch: convolutions and pools for CPUs and NVIDIA GPUs."""

import torch  # noqa: F401  (loads the libraries that _C links to)

from cnnkern import (
    autograd,
    autograd_lists,
    functional,
    fused,
    nn,
    ops,
    selection,
    triton_kernels,
)
from cnnkern._C import empty_cpu_cache
from cnnkern.analysis import conv_matrix, receptive_field
from cnnkern.convert import convert, override
from cnnkern.functional import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    conv1d,
    conv2d,
    conv2d_act_pool2d,
    conv_transpose2d,
    corr2d,
    lp_pool2d,
    max_pool1d,
    max_pool2d,
    max_unpool2d,
)
from cnnkern.lenet import LeNet
from cnnkern.triton_kernels.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "LeNet",
    "__version__",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "autograd",
    "autograd_lists",
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv2d_act_pool2d",
    "conv_matrix",
    "conv_transpose2d",
    "convert",
    "corr2d",
    "empty_cpu_cache",
    "functional",
    "fused",
    "lp_pool2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool2d",
    "nn",
    "ops",
    "override",
    "receptive_field",
    "selection",
    "triton_kernels",
    "tune",
]
