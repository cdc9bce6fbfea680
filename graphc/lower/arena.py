"""Lifetimes of arena buffers, in-place reuse, and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graphc.memory import ArenaPlan, Interval, plan_arena
from graphc.program.ir import Access, Buffer, Call, Kernel, Load, LoopSpec, Space, Store
from graphc.types import ITEMSIZE, at

ALIGNMENT = 64


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


def reuse_in_place(calls: Sequence[Call]) -> list[Call]:
    """Let a loop kernel write over an operand that dies there and is read exactly where it is written."""
    result = list(calls)
    renamed: dict[Buffer, Buffer] = {}
    spans = lifetimes(calls)
    for step, call in enumerate(calls):
        call = replace(call, buffers=tuple(renamed.get(b, b) for b in call.buffers))
        spec = call.kernel.spec
        if isinstance(spec, LoopSpec):
            for position, operand in enumerate(call.kernel.operands):
                out = calls[step].buffers[position]
                if not operand.written or out.space is not Space.ARENA or spans[out][0] != step:
                    continue
                source = _replaceable(call, calls[step], position, spans, step)
                if source is None:
                    continue
                renamed[out] = call.buffers[source]
                call = _share(call, source, position)
                break
        result[step] = call
    return result


def _replaceable(
    call: Call, original: Call, out: int, spans: dict[Buffer, tuple[int, int]], step: int
) -> int | None:
    """Return the operand whose buffer the output may take over, or None."""
    spec = call.kernel.spec
    assert isinstance(spec, LoopSpec)
    writes = _stores(spec, out)
    buffer = original.buffers[out]
    for position, operand in enumerate(call.kernel.operands):
        candidate = original.buffers[position]
        if operand.written or candidate.space is not Space.ARENA or candidate.dtype != buffer.dtype:
            continue
        if candidate.size != buffer.size or spans[candidate][1] > step + 1:
            continue
        last_use = call.buffers.count(call.buffers[position]) == 1
        if last_use and len(writes) == 1 and _reads_match(spec, position, writes[0].access):
            return position
    return None


def _stores(spec: LoopSpec, operand: int) -> list[Store]:
    return [s for sweep in spec.sweeps for s in (*sweep.stores, *sweep.kept_stores) if s.operand == operand]


def _reads_match(spec: LoopSpec, operand: int, write: Access) -> bool:
    """Whether the operand is read nowhere but at the element written, in the last sweep or before any store."""
    loads: list[tuple[int, Load]] = []
    for number, sweep in enumerate(spec.sweeps):
        for statement in (*sweep.statements, *sweep.kept_statements):
            if isinstance(statement, Load) and statement.operand == operand:
                loads.append((number, statement))
    for statement in spec.before:
        if isinstance(statement, Load) and statement.operand == operand:
            loads.append((0, statement))
    last = len(spec.sweeps) - 1
    stored_in = [
        n for n, s in enumerate(spec.sweeps) if any(st.access == write for st in (*s.stores, *s.kept_stores))
    ]
    return bool(loads) and all(load.access == write for _, load in loads) and stored_in == [last]


def _share(call: Call, source: int, out: int) -> Call:
    """Return the call with the output's parameter replaced by the source's, now read and written."""
    kernel = call.kernel

    def position(old: int) -> int:
        new = source if old == out else old
        return new - 1 if new > out else new

    operands = list(kernel.operands)
    operands[source] = replace(operands[source], name="inout", written=True)
    del operands[out]
    buffers = [b for k, b in enumerate(call.buffers) if k != out]
    spec = kernel.spec
    assert isinstance(spec, LoopSpec)

    def moved(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            replace(i, operand=position(i.operand)) if isinstance(i, (Load, Store)) else i for i in items
        )

    sweeps = tuple(
        replace(
            s, statements=moved(s.statements), stores=moved(s.stores),
            kept_statements=moved(s.kept_statements), kept_stores=moved(s.kept_stores),
        )
        for s in spec.sweeps
    )  # fmt: skip
    new: Kernel = replace(
        kernel,
        operands=tuple(operands),
        spec=replace(spec, before=moved(spec.before), sweeps=sweeps),
    )
    return replace(call, kernel=new, buffers=tuple(buffers))


def kept_buffers(calls: Sequence[Call], entry: str) -> frozenset[str]:
    """Return the buffers that a training step keeps across its middle, the kernel that writes the loss."""
    writes_loss = (
        step
        for step, call in enumerate(calls)
        for b in call.buffers
        if b.space is Space.OUTPUT and b.name == "loss"
    )
    middle = next(writes_loss, None) if entry == "train_step" else None
    if middle is None:
        return frozenset()
    return frozenset(
        b.name for b, (first, end) in lifetimes(calls).items() if first < middle and end > middle + 1
    )


def plan_entry(calls: Sequence[Call], batch: int, kept: frozenset[str] = frozenset()) -> ArenaPlan:
    """Return the plan of an entry point's arena buffers at the largest batch."""
    intervals = [
        Interval(b.name, first, last, buffer_bytes(b, batch), kept=b.name in kept, label=b.name)
        for b, (first, last) in lifetimes(calls).items()
    ]
    return plan_arena(intervals, alignment=ALIGNMENT)
