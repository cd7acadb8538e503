"""Hand-written CNN kernels for PyTorch: convolutions and pools for CPUs and NVIDIA GPUs."""

import torch  # noqa: F401  (loads the libraries that _C links to)

from cnnkern import autograd, functional, nn, ops
from cnnkern.analysis import conv_matrix, receptive_field
from cnnkern.convert import convert, override
from cnnkern.lenet import LeNet

__version__ = "0.1.0"

__all__ = [
    "LeNet",
    "__version__",
    "autograd",
    "conv_matrix",
    "convert",
    "functional",
    "nn",
    "ops",
    "override",
    "receptive_field",
]
