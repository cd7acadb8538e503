import torch  # noqa: F401

from cnnkern import ops  # noqa: F401
