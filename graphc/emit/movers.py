"""Kernels that only move elements: one helper function serves them all, and no function of their own is printed."""

from __future__ import annotations

from graphc.emit.text import SUFFIX, signature
from graphc.program.ir import Call, Kernel, Load, LoopSpec, Store
from graphc.types import product


def helper_of(kernel: Kernel) -> str:
    """Return the function that does a kernel's work for arguments of any size; "" if there is none."""
    spec = kernel.spec
    if kernel.template == "loops":
        return "memcpy" if _is_plain_copy(kernel) else ""
    if kernel.template == "winograd_weight":
        return f"gc_winograd_weights{spec.lanes}_{SUFFIX[kernel.dtype]}"
    if kernel.template == "pack" and len(spec.extents) <= 2:
        return f"gc_pack{spec.lanes}_{SUFFIX[kernel.dtype]}"
    return ""


def helper_call(call: Call, source: str, target: str) -> str:
    """Return the statement that calls the helper for a kernel."""
    spec, helper = call.kernel.spec, helper_of(call.kernel)
    if helper == "memcpy":
        size = call.buffers[1].size
        count = size if isinstance(size, int) else f"(size_t)({size})"
        return f"memcpy({target}, {source}, sizeof *{target} * {count});"
    start = f"{source} + {spec.offset}" if spec.offset else source
    if call.kernel.template == "winograd_weight":
        numbers = [spec.o, spec.c, *spec.strides]
    else:
        extents, strides = [1, *spec.extents][-2:], [0, *spec.strides][-2:]
        if not spec.extents:
            extents, strides = [1, 1], [0, 0]
        numbers = [spec.channels, spec.channel_stride, extents[0], strides[0], extents[1], strides[1]]
    return signature(helper, [target, start, *map(str, numbers), "threads"]) + ";"


def _is_plain_copy(kernel: Kernel) -> bool:
    """Whether a kernel moves all elements of one buffer to another in their order, as memcpy does."""
    if kernel.template != "loops" or kernel.formula != "copy":
        return False
    spec: LoopSpec = kernel.spec
    statements, stores = spec.sweeps[0].kept_statements, spec.sweeps[0].kept_stores
    accesses = [i.access for i in (*statements, *stores) if isinstance(i, (Load, Store))]
    sizes = {str(product(o.shape)) for o in kernel.operands} | {str(product(spec.extents))}
    return (
        len(accesses) == 2
        and len(statements) == 1
        and len(sizes) == 1
        and len({o.dtype for o in kernel.operands}) == 1
        and all(a.offset == 0 and a.strides in ((), (1,)) for a in accesses)
    )
