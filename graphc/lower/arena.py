"""Lifetimes of arena buffers, in-place reuse, and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graphc.memory import ArenaPlan, Interval, PlanNotes, plan_arena
from graphc.program.ir import Access, Buffer, Call, Kernel, Load, LoopSpec, Space, Store
from graphc.rewrites import Rewrites
from graphc.types import ITEMSIZE, Shape, at

ALIGNMENT = 64
_LAYOUTS = ("pack", "winograd_weight")  # the kernels that write a tensor once more, in another layout


def buffer_bytes(buffer: Buffer, batch: int) -> int:
    """Return the bytes of a buffer at a batch size."""
    return max(1, at(buffer.size, batch)) * ITEMSIZE[buffer.dtype]


def lifetimes(calls: Sequence[Call]) -> dict[Buffer, tuple[int, int]]:
    """Return for every arena buffer the steps [first, last + 1) in which it must exist."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for step, call in enumerate(calls):
        for buffer in call.buffers:
            if buffer.space is Space.ARENA:
                first, _ = spans.get(buffer, (step, step))
                spans[buffer] = (first, step + 1)
    return spans


def reuse_in_place(calls: Sequence[Call], rewrites: Rewrites) -> list[Call]:
    """Let a kernel write over an operand that dies there and is read exactly where it is written.

    So do loops, and the epilogues of anchors: a convolution whose result is added to a skip connection adds to it
    in place.
    """
    result = list(calls)
    renamed: dict[Buffer, Buffer] = {}
    spans = lifetimes(calls)
    for step, original in enumerate(calls):
        call = replace(original, buffers=tuple(renamed.get(b, b) for b in original.buffers))
        for source, out in in_place_pairs(original, rewrites):
            dying, new = original.buffers[source], original.buffers[out]
            if spans[new][0] == step and spans[dying][1] == step + 1:
                renamed[new] = call.buffers[source]
                buffers = tuple(b for k, b in enumerate(call.buffers) if k != out)
                call = replace(call, kernel=_share(call.kernel, source, out), buffers=buffers)
                break
        result[step] = call
    return result


def in_place_pairs(call: Call, rewrites: Rewrites) -> list[tuple[int, int]]:
    """Return the operands (one read, one written) that may be one array, if the first is needed no more."""
    operands, buffers = call.kernel.operands, call.buffers
    if not (rewrites.in_place if isinstance(call.kernel.spec, LoopSpec) else rewrites.accumulate):
        return []
    return [
        (source, out)
        for out, written in enumerate(operands)
        if written.written and buffers[out].space is Space.ARENA
        for source, read in enumerate(operands)
        if not read.written
        and buffers[source].space is Space.ARENA
        and (buffers[source].dtype, buffers[source].size) == (buffers[out].dtype, buffers[out].size)
        and buffers.count(buffers[source]) == 1
        and _reads_where_it_writes(call.kernel, source, out)
    ]


def _reads_where_it_writes(kernel: Kernel, operand: int, out: int) -> bool:
    """Whether the operand is read nowhere but at the element of ``out`` that is written next."""
    spec, epilogue = kernel.spec, kernel.epilogue
    if isinstance(spec, LoopSpec):
        return _loops_match(spec, operand, out)
    if epilogue is None or operand < epilogue.fixed:
        return False
    writes = [s.access for s in epilogue.stores if s.operand == out]
    before = [s.access for s in epilogue.statements if isinstance(s, Load) and s.operand == operand]
    after = [s.access for s in epilogue.after if isinstance(s, Load) and s.operand == operand]
    if len(writes) != 1 or (before and epilogue.pool is not None):
        return False
    shape = kernel.operands[out].shape
    return all(_same_element(access, writes[0], shape) for access in before + after)


def _same_element(a: Access, b: Access, shape: Shape) -> bool:
    """Whether two accesses meet the same element at every index of a shape."""
    pairs = zip(a.strides, b.strides, shape, strict=True)
    return a.offset == b.offset and all(s == t or extent == 1 for s, t, extent in pairs)


def _loops_match(spec: LoopSpec, operand: int, out: int) -> bool:
    """Whether loops read the operand only at the element written, and write in the last sweep alone."""
    stored = [(*sweep.stores, *sweep.kept_stores) for sweep in spec.sweeps]
    writes = [(number, s.access) for number, stores in enumerate(stored) for s in stores if s.operand == out]
    loads = [load.access for load in spec.loads if load.operand == operand]
    if len(writes) != 1 or not loads:
        return False
    number, write = writes[0]
    # Other stores of the same access stand in the last sweep too: an earlier one would be followed by reads.
    stored_in = {n for n, stores in enumerate(stored) if any(s.access == write for s in stores)}
    return (
        all(access == write for access in loads) and number == len(spec.sweeps) - 1 and stored_in == {number}
    )


def _share(kernel: Kernel, source: int, out: int) -> Kernel:
    """Return the kernel with the output's parameter replaced by the source's, now read and written."""
    operands = list(kernel.operands)
    operands[source] = replace(operands[source], name="inout", written=True)
    return drop_operand(replace(kernel, operands=tuple(operands)), out, source)


def drop_operand(kernel: Kernel, dropped: int, instead: int) -> Kernel:
    """Return the kernel without an operand, what reads or writes it turned to another."""

    def position(old: int) -> int:
        new = instead if old == dropped else old
        return new - 1 if new > dropped else new

    def moved(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            replace(i, operand=position(i.operand)) if isinstance(i, (Load, Store)) else i for i in items
        )

    operands = list(kernel.operands)
    del operands[dropped]
    spec, epilogue = kernel.spec, kernel.epilogue
    if isinstance(spec, LoopSpec):
        sweeps = tuple(
            replace(
                s, statements=moved(s.statements), stores=moved(s.stores),
                kept_statements=moved(s.kept_statements), kept_stores=moved(s.kept_stores),
            )
            for s in spec.sweeps
        )  # fmt: skip
        spec = replace(spec, before=moved(spec.before), sweeps=sweeps)
    if epilogue is not None:
        epilogue = replace(
            epilogue,
            statements=moved(epilogue.statements),
            stores=moved(epilogue.stores),
            after=moved(epilogue.after),
        )
    return replace(kernel, operands=tuple(operands), spec=spec, epilogue=epilogue)


def middle_of(calls: Sequence[Call]) -> int | None:
    """Return the step that writes the loss of a training step: what is before is forward, what is after backward."""
    for step, call in enumerate(calls):
        if any(b.space is Space.OUTPUT and b.name == "loss" for b in call.buffers):
            return step
    return None


def kept_buffers(calls: Sequence[Call], entry: str) -> frozenset[str]:
    """Return the buffers that a training step keeps across its middle, the kernel that writes the loss."""
    middle = middle_of(calls) if entry == "train_step" else None
    if middle is None:
        return frozenset()
    spans = lifetimes(calls).items()
    return frozenset(b.name for b, (first, end) in spans if first < middle and end > middle + 1)


def plan_entry(calls: Sequence[Call], batch: int, kept: frozenset[str], notes: PlanNotes) -> ArenaPlan:
    """Return the plan of an entry point's arena buffers at the largest batch."""
    scratch = {
        buffer
        for call in calls
        for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True)
        if operand.name == "workspace" or (operand.written and call.kernel.template in _LAYOUTS)
    }
    intervals = [
        Interval(b.name, first, last, buffer_bytes(b, batch), b.name in kept, b.name, b in scratch)
        for b, (first, last) in lifetimes(calls).items()
    ]
    return replace(plan_arena(intervals, alignment=ALIGNMENT), notes=notes)
