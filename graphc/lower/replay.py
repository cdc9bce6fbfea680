"""A kernel that computes some of a loop kernel's results again, from what that kernel read and stored.

before: one sweep over a channel for its mean, one for its variance, one that stores relu((x - mean) * rsqrt(var) ...)
after:  the last sweep alone; mean and rsqrt(var), which the first kernel stored, are read

The statements are those of the kernel, so that the bits are the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from graphc import scalar
from graphc.lower.loops import merge_axes
from graphc.lower.names import apart_from
from graphc.program.ir import (
    Accumulate,
    Buffer,
    Call,
    Compute,
    Load,
    LoopSpec,
    Operand,
    Space,
    Statement,
    Store,
    Sweep,
)
from graphc.types import ITEMSIZE, Size, product


def replay(call: Call, wanted: Collection[Buffer]) -> Call | None:
    """Return a call that writes the wanted results of an earlier call of loops again; None where that needs its sums."""
    spec = call.kernel.spec
    if not isinstance(spec, LoopSpec):
        return None
    body = _Body(call, spec)
    stores = [s for s in body.full_stores if call.buffers[s.operand] in wanted]
    if {call.buffers[s.operand] for s in stores} != set(wanted):
        return None
    for store in stores:
        if not body.need(store.value):
            return None
    return body.call(stores)


class _Body:
    """The statements of a kernel by the names that they define, and those that are needed."""

    def __init__(self, call: Call, spec: LoopSpec):
        self.source, self.spec = call, spec
        self.defined: dict[str, Statement | Accumulate] = {s.name: s for s in spec.before}
        self.stored: dict[str, Store] = {}
        self.full_stores: list[Store] = []
        plain = not any(spec.reduced)
        for sweep in spec.sweeps:
            for item in (*sweep.statements, *sweep.accumulators, *sweep.kept_statements):
                self.defined[item.name] = item
            self.full_stores += [*sweep.stores, *(sweep.kept_stores if plain else ())]
            if not plain:
                self.stored |= {s.value: s for s in sweep.kept_stores if self._is_in_arena(s)}
        self.needed: set[str] = set()

    def _is_in_arena(self, store: Store) -> bool:
        return self.source.buffers[store.operand].space is Space.ARENA

    def need(self, name: str) -> bool:
        """Take what a value depends on; return whether all of that can be had."""
        if name in self.needed:
            return True
        item = self.defined[name]
        if name not in self.stored:
            if isinstance(item, Accumulate):
                return False
            if isinstance(item, Compute) and not all(self.need(argument) for argument, _ in item.arguments):
                return False
        self.needed.add(name)
        return True

    def call(self, stores: list[Store]) -> Call:
        """Return the call with the statements that are needed, in their order."""
        operands: list[Operand] = []
        buffers: list[Buffer] = []

        def position(old: int, written: bool) -> int:
            operand, buffer = self.source.kernel.operands[old], self.source.buffers[old]
            if (buffer, written) not in [(b, o.written) for b, o in zip(buffers, operands, strict=True)]:
                operands.append(replace(operand, written=written))
                buffers.append(buffer)
            return buffers.index(buffer)

        statements: list[Statement] = []
        for name, item in self.defined.items():
            if name not in self.needed:
                continue
            if name in self.stored:
                store = self.stored[name]
                dtype = self.source.kernel.operands[store.operand].dtype
                statements.append(Load(name, dtype, position(store.operand, False), store.access))
            elif isinstance(item, Load):
                statements.append(replace(item, operand=position(item.operand, False)))
            elif not isinstance(item, Accumulate):
                statements.append(item)
        written = tuple(replace(s, operand=position(s.operand, True)) for s in stores)
        spec = LoopSpec(
            self.spec.extents,
            (False,) * len(self.spec.extents),
            (),
            (Sweep(kept_statements=tuple(statements), kept_stores=written),),
        )
        touched: Size = 0
        for operand in operands:
            touched = touched + product(operand.shape) * ITEMSIZE[operand.dtype]
        operations = sum(max(1, scalar.flops(s.expr)) for s in statements if isinstance(s, Compute))
        kernel = replace(
            self.source.kernel,
            spec=merge_axes(spec),
            operands=apart_from({s.name for s in statements}, operands, 0),
            formula=f"{', '.join(s.value for s in stores)} again",
            flops=product(spec.extents) * operations,
            bytes=touched,
        )
        return replace(self.source, kernel=kernel, buffers=tuple(buffers), again=True)
