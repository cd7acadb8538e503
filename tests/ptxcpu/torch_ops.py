"""Runs PyTorch's own CUDA operators on the CPU, under the fake CUDA runtime.

PyTorch ships its CUDA kernels as machine code, which cannot be emulated. But emulated device memory
is host memory, so an operator on "cuda" tensors can be computed by PyTorch's CPU kernel on CPU
tensors that share the memory. This covers what tests need around the kernels they test: creation,
copies, casts, comparison, arithmetic, reductions, matmul. The extension's own kernels are not
touched.
"""

import ctypes

from . import graphs

# Left alone: they only deal in metadata or allocation, and work under the fake runtime as they are.
KEEP = {
    "empty.memory_format",
    "empty_strided",
    "as_strided",
    "as_strided_",
    "view",
    "view.dtype",
    "_reshape_alias",
    "alias",
    "unfold",
    "resize_",
    "set_.source_Tensor",
    "set_.source_Storage",
    "set_.source_Storage_storage_offset",
    "set_",
    "record_stream",
    "is_pinned",
    "_pin_memory",
    "set_data",
    "is_set_to",
    "view_as_real",
    "view_as_complex",
}

_installed = []


def host_alias(tensor):
    """A CPU tensor over the memory of a tensor on the emulated device."""
    import torch

    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    buffer = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(buffer, dtype=torch.uint8)
    flat = flat[: storage.nbytes() // tensor.element_size() * tensor.element_size()].view(
        tensor.dtype
    )
    alias = flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    if tensor.is_conj():
        alias = alias.conj()
    if tensor.is_neg():
        alias = torch._neg_view(alias)
    return alias


def to_device(tensor):
    import torch

    result = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.numel():
        host_alias(result).copy_(tensor)
    return result


def on_cpu(operator):
    """An implementation of an operator for CUDA tensors that calls its CPU kernel."""
    import torch
    from torch.utils._pytree import tree_map

    def implementation(*args, **kwargs):
        if not graphs.is_capturing():
            torch.cuda.synchronize()  # raises if a kernel failed and nobody noticed
        aliases = {}  # id of the alias -> (alias, original)

        def to_host(x):
            if isinstance(x, torch.Tensor) and x.is_cuda:
                alias = host_alias(x)
                aliases[id(alias)] = (alias, x)
                return alias
            if isinstance(x, torch.device) and x.type == "cuda":
                return torch.device("cpu")
            if isinstance(x, torch.Generator) and x.device.type == "cuda":
                return None
            return x

        args, kwargs = tree_map(to_host, (args, kwargs))
        if graphs.is_capturing():
            return record(operator, args, kwargs, aliases)

        def from_host(x):
            if not isinstance(x, torch.Tensor):
                return x
            known = aliases.get(id(x))
            if known:
                return known[1]
            return to_device(x)

        result = operator(*args, **kwargs)
        for alias, original in aliases.values():
            if alias.size() != original.size():  # an out= tensor, resized by the operator
                original.resize_(alias.size())
                host_alias(original).copy_(alias)
        return tree_map(from_host, result)

    return implementation


def record(operator, args, kwargs, aliases):
    """Add an operator to the graph being captured; the shape of its result comes from a dry run."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

    # In-place operators return a copy that was made for them, and so name the original.
    copies = {key: alias.clone() for key, (alias, _) in aliases.items()}
    originals = {id(copies[key]): original for key, (_, original) in aliases.items()}

    def with_(tensors):
        """The arguments, with other tensors in place of the aliases."""
        return tree_map(
            lambda x: tensors.get(id(x), x) if isinstance(x, torch.Tensor) else x, (args, kwargs)
        )

    dry_args, dry_kwargs = with_(copies)
    dry, form = tree_flatten(operator(*dry_args, **dry_kwargs))
    if any(not isinstance(x, torch.Tensor) and x is not None for x in dry):
        graphs.refuse()  # a number can only be had by waiting
    resized = {}  # out= tensors
    for key, (alias, original) in aliases.items():
        if copies[key].size() != alias.size():
            original.resize_(copies[key].size())
            resized[key] = host_alias(original)
    args, kwargs = with_(resized)
    outputs, fresh = [], {}
    for i, x in enumerate(dry):
        made = x if x is None else originals.get(id(x))
        if made is None and x is not None:
            made = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda")
            fresh[i] = host_alias(made)
        outputs.append(made)

    def replay():
        results, _ = tree_flatten(operator(*args, **kwargs))
        for i, memory in fresh.items():
            memory.copy_(results[i])

    graphs.record(replay)
    return tree_unflatten(outputs, form)


def copy_(target, source, non_blocking=False):
    """aten::copy_ between any mixture of host and emulated device memory."""
    import torch

    def to_host(x):
        return host_alias(x) if x.is_cuda else x

    to, from_ = to_host(target), to_host(source)
    if not graphs.is_capturing():
        torch.cuda.synchronize()
        to.copy_(from_)
    elif target.is_cuda and source.is_cuda:
        graphs.record(lambda: to.copy_(from_))
    else:
        graphs.refuse()  # PyTorch waits for a copy from or to the host
    return target


def install():
    """Overrides every aten CUDA operator that has a CPU kernel."""
    import torch

    if _installed:
        return
    torch.backends.cudnn.enabled = (
        False  # choose the plain convolution operators, which have CPU kernels
    )
    library = torch.library.Library("aten", "IMPL")
    _installed.append(library)

    def runs_on_cpu(name):
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        return has_kernel(name, "CPU") or has_kernel(name, "CompositeExplicitAutograd")

    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        if not name.startswith("aten::") or name[6:] in KEEP or not runs_on_cpu(name):
            continue
        base, _, overload = name[6:].partition(".")
        operator = getattr(getattr(torch.ops.aten, base), overload or "default")
        library.impl(name[6:], on_cpu(operator), "CUDA", allow_override=True)
    library.impl("copy_", copy_, "CUDA", allow_override=True)
