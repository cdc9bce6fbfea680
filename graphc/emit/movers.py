"""Kernels that only move elements: one helper function serves them all, and no function of their own is printed."""

from __future__ import annotations

from graphc.emit.text import SUFFIX, extent, signature
from graphc.program.ir import Access, Call, Kernel, Load
from graphc.types import product


def helper_of(kernel: Kernel) -> str:
    """Return the function that does a kernel's work for arguments of any size; "" if there is none."""
    spec = kernel.spec
    if kernel.template == "loops":
        if kernel.formula == "out = 0" and len(kernel.operands) == 1:
            return "memset"
        if _is_plain_copy(kernel):
            return "memcpy"
        return f"gc_copy_{SUFFIX[kernel.dtype]}" if _is_strided_copy(kernel) else ""
    if kernel.template == "winograd_weight":
        return f"gc_winograd_weights{spec.lanes}_{SUFFIX[kernel.dtype]}"
    if kernel.template == "pack" and len(spec.extents) <= 2:
        return f"gc_pack{spec.lanes}_{SUFFIX[kernel.dtype]}"
    return ""


def helper_call(call: Call, threads: str, *arguments: str) -> str:
    """Return the statement that calls the helper for a kernel, on so many threads."""
    spec, helper = call.kernel.spec, helper_of(call.kernel)
    size = call.buffers[-1].size
    count = size if isinstance(size, int) else f"(size_t)({size})"
    if helper == "memset":
        return f"memset({arguments[0]}, 0, sizeof *{arguments[0]} * {count});"
    source, target = arguments
    if helper == "memcpy":
        return f"memcpy({target}, {source}, sizeof *{target} * {count});"
    if call.kernel.template == "loops":
        return _strided_copy(call.kernel, source, target, threads)
    start = f"{source} + {spec.offset}" if spec.offset else source
    if call.kernel.template == "winograd_weight":
        numbers = [spec.o, spec.c, *spec.strides]
    else:
        extents, strides = [1, 1, *spec.extents][-2:], [0, 0, *spec.strides][-2:]
        numbers = [spec.channels, spec.channel_stride, extents[0], strides[0], extents[1], strides[1]]
    return signature(helper, [target, start, *map(str, numbers), threads]) + ";"


def _copied(kernel: Kernel) -> tuple[Access, Access] | None:
    """Return where a copy reads and where it writes; None if the kernel does anything else."""
    if kernel.formula != "copy" or len({o.dtype for o in kernel.operands} | {kernel.dtype}) != 1:
        return None
    (sweep,) = kernel.spec.sweeps
    statements, stores = sweep.kept_statements, sweep.kept_stores
    if len(statements) != 1 or not isinstance(statements[0], Load) or len(stores) != 1:
        return None
    return statements[0].access, stores[0].access


def _is_strided_copy(kernel: Kernel) -> bool:
    """Whether a kernel copies rows of equal length, one stride from element to element and one from row to row."""
    return len(kernel.spec.extents) <= 2 and _copied(kernel) is not None


def _is_plain_copy(kernel: Kernel) -> bool:
    """Whether a kernel moves all elements of one buffer to another in their order, as memcpy does."""
    accesses = _copied(kernel)
    sizes = {str(product(o.shape)) for o in kernel.operands} | {str(product(kernel.spec.extents))}
    in_order = accesses is not None and all(a.offset == 0 and a.strides in ((), (1,)) for a in accesses)
    return in_order and len(sizes) == 1


def _strided_copy(kernel: Kernel, source: str, target: str, threads: str) -> str:
    accesses = _copied(kernel)
    assert accesses is not None
    rows, columns = [1, 1, *kernel.spec.extents][-2:]
    (from_row, from_step), (to_row, to_step) = ([0, 0, *a.strides][-2:] for a in accesses)
    start, end = (
        f"{name} + {extent(a.offset)}" if a.offset != 0 else name
        for name, a in zip((source, target), accesses, strict=True)
    )
    numbers = map(str, (rows, to_row, from_row, columns, to_step, from_step))
    return signature(helper_of(kernel), [end, start, *numbers, threads]) + ";"
