"""Import hooks for programs under `ptxcpu run`: they prepare PyTorch and Triton once imported."""

import importlib.abc
import importlib.util
import os
import sys


def after_torch():
    import torch

    if torch.version.cuda:
        # One allocation per tensor, so that bounds are per tensor. A CUDA graph needs it on.
        torch.cuda._lazy_call(lambda: torch._C._cuda_cudaCachingAllocator_enable(False))
    if torch.version.cuda and os.environ.get("PTXCPU_TORCH_OPS", "1") != "0":
        from . import torch_ops

        torch_ops.install()


def after_triton():
    from . import triton_driver

    triton_driver.activate()


class HookingFinder(importlib.abc.MetaPathFinder):
    """Runs a hook right after a top-level package has been imported."""

    def __init__(self, hooks):
        self.hooks = hooks
        self.searching = False

    def find_spec(self, name, path=None, target=None):
        if name not in self.hooks or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            hook = self.hooks.pop(name, None)
            if hook:
                hook()

        spec.loader.exec_module = exec_module
        return spec


def install():
    """Install the hooks where `run` started this program; sitecustomize calls it."""
    if os.environ.get("PTXCPU_ACTIVE"):
        sys.meta_path.insert(0, HookingFinder({"torch": after_torch, "triton": after_triton}))
