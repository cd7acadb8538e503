"""`report`: exact counts of one kernel launch. It describes work; it does not predict time."""

from .module import Module


def report(ptx, kernel, grid, block, args, shared=0, check=1):
    """Runs a kernel once, counting, and returns a dict.

    The counts are those of the PTX as executed (thread level): instructions by class, global
    requests, sectors per request, bytes moved and unique bytes touched, shared-memory passes and
    bank conflicts, barriers. Registers, spills and theoretical occupancy come from ptxas for sm_80
    and sm_90 and are None without ptxas.
    """
    module = Module(ptx, profile=True)
    module.options(check=check)
    return module.launch(kernel, grid, block, args, shared)
