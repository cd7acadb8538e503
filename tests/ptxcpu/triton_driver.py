"""Runs @triton.jit kernels through the real Triton compiler (target sm_80), with the PTX emulated.

Call `activate()` once, or start with `python -m ptxcpu run --triton`; then launch kernels as usual
on CPU tensors or, under the fake CUDA runtime, on "cuda" tensors. Options come from PTXCPU_CHECK,
PTXCPU_ORDER, PTXCPU_SEED and PTXCPU_REPORT, or from `options` below.
"""

import functools
import json
import os
import time

from . import graphs
from .module import LaunchError, Module

options = {
    "order": int(os.environ.get("PTXCPU_ORDER", 0)),
    "seed": int(os.environ.get("PTXCPU_SEED", 1)),
    "check": int(os.environ.get("PTXCPU_CHECK", 1)),
}
launches = []  # (kernel, grid, threads per block, shared bytes), for tests and curious users
_modules = {}


class HostEvent:
    """Stands in for torch.cuda.Event in Triton's benchmarking: host time, strictly increasing."""

    def __init__(self, *_args, **_kwargs):
        self.seconds = 0.0

    def record(self, *_args):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return max(1e-3, (end.seconds - self.seconds) * 1e3)


class HostInterface:
    """The part of torch.cuda that Triton's benchmarking uses."""

    Event = HostEvent

    @staticmethod
    def synchronize(*_args):
        pass


def benchmark(function, quantiles=None, **_ignored):
    """Runs a candidate twice and times the second run, which says nothing about a device."""
    function()
    start = time.perf_counter()
    function()
    milliseconds = max(1e-3, (time.perf_counter() - start) * 1e3)
    return [milliseconds] * len(quantiles) if quantiles else milliseconds


def module_of(compiled):
    profile = bool(os.environ.get("PTXCPU_REPORT"))
    key = (compiled.hash, profile)
    if key not in _modules:
        _modules[key] = Module(compiled.asm["ptx"], profile=profile, verbose=True)
    return _modules[key]


def flatten(arguments):
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from flatten(argument)
        else:
            yield argument


def launch(
    compiled,
    grid_x,
    grid_y,
    grid_z,
    _stream,
    _function,
    _packed,
    _metadata,
    _enter,
    _exit,
    *arguments,
):
    """Has the signature of Triton's compiled launchers."""
    metadata = compiled.metadata
    if getattr(metadata, "global_scratch_size", 0):
        raise LaunchError("kernels that need global scratch memory are not supported")
    module = module_of(compiled)
    module.options(**options)
    signature = list(compiled.src.signature.values())
    arguments = zip(arguments, signature, strict=False)
    values = [value for value, type_ in arguments if type_ != "constexpr"]
    grid, threads = (grid_x, grid_y, grid_z), metadata.num_warps * 32
    launches.append((metadata.name, grid, threads, metadata.shared))
    run = module.prepare(
        metadata.name, grid, threads, list(flatten(values)), shared=metadata.shared
    )

    def run_and_report():
        profile = run()
        if profile:
            with open(os.environ["PTXCPU_REPORT"], "a") as report:
                report.write(json.dumps(profile) + "\n")

    if graphs.is_capturing():
        graphs.record(run_and_report)
    else:
        run_and_report()


class EmulatedDevice:
    """Triton's driver interface for one emulated sm_80 device."""

    class utils:
        @staticmethod
        def get_device_properties(_device):
            return {
                "max_shared_mem": 166912,
                "multiprocessor_count": 108,
                "max_num_regs": 65536,
                "warpSize": 32,
                "sm_clock_rate": 1410000,
                "mem_clock_rate": 1215000,
                "mem_bus_width": 5120,
            }

        @staticmethod
        def unload_module(_module):
            pass

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 80, 32)

    def get_active_torch_device(self):
        import torch

        emulated = os.environ.get("PTXCPU_ACTIVE") and torch.cuda.is_available()
        return torch.device("cuda", 0) if emulated else torch.device("cpu")

    def get_current_device(self):
        return 0

    def set_current_device(self, _device):
        pass

    def get_current_stream(self, _device=None):
        return 0

    def get_device_capability(self, _device=0):
        return 8, 0

    def get_device_interface(self):
        return HostInterface

    def get_benchmarker(self):
        return benchmark

    def get_empty_cache_for_benchmark(self):
        import torch

        return torch.empty(1)

    def clear_cache(self, _cache):
        pass

    def map_python_to_cpp_type(self, type_):
        return type_


def activate():
    """Makes Triton compile for, and run on, the emulated device."""
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime import driver
    from triton.runtime.errors import OutOfResources

    def init_handles(self):
        if self.module is None:
            limit = EmulatedDevice.utils.get_device_properties(0)["max_shared_mem"]
            if self.metadata.shared > limit:
                raise OutOfResources(self.metadata.shared, limit, "shared memory")
            self.module, self.function = self, 0
            self.n_regs = self.n_spills = 0
            self.n_max_threads = 1024
            self._run = functools.partial(launch, self)

    CompiledKernel._init_handles = init_handles
    CompiledKernel.__del__ = lambda self: None
    driver.set_active(EmulatedDevice())
