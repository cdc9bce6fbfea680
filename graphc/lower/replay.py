"""A kernel that computes some of another's results again, from what that kernel read and stored, without its sums.

before: one sweep over a channel for its mean, one for its variance, one that stores relu((x - mean) * rsqrt(var) ...)
after:  the last sweep alone; mean and rsqrt(var), which the first kernel stored, are read

before: a product that stores its ReLU, and the dropout of that
after:  the dropout of the ReLU that was stored

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
    Epilogue,
    Load,
    LoopSpec,
    Operand,
    Space,
    Statement,
    Store,
    Sweep,
)
from graphc.types import ITEMSIZE, Shape, Size, product


def replay(call: Call, wanted: Collection[Buffer]) -> Call | None:
    """Return a call of loops that writes the wanted results of a call again; None where that needs its sums."""
    spec, epilogue = call.kernel.spec, call.kernel.epilogue
    if isinstance(spec, LoopSpec):
        body = _body_of_loops(call, spec)
    elif epilogue is not None and epilogue.axes:
        body = _body_of_epilogue(call, epilogue, wanted)
    else:
        return None
    stores = [s for s in body.stores if call.buffers[s.operand] in wanted]
    if {call.buffers[s.operand] for s in stores} != set(wanted):
        return None
    return body.call(stores) if all(body.need(store.value) for store in stores) else None


def _body_of_loops(call: Call, spec: LoopSpec) -> _Body:
    defined: dict[str, Statement | Accumulate] = {s.name: s for s in spec.before}
    stored: dict[str, Store] = {}
    stores: list[Store] = []
    plain = not any(spec.reduced)
    for sweep in spec.sweeps:
        for item in (*sweep.statements, *sweep.accumulators, *sweep.kept_statements):
            defined[item.name] = item
        stores += [*sweep.stores, *(sweep.kept_stores if plain else ())]
        if not plain:
            stored |= {s.value: s for s in sweep.kept_stores if _is_in_arena(call, s)}
    return _Body(call, spec.extents, defined, stored, stores)


def _body_of_epilogue(call: Call, epilogue: Epilogue, wanted: Collection[Buffer]) -> _Body:
    statements = epilogue.after if epilogue.pool is not None else epilogue.statements
    others = (s for s in epilogue.stores if call.buffers[s.operand] not in wanted and _is_in_arena(call, s))
    shape = next((call.kernel.operands[s.operand].shape for s in epilogue.stores), ())
    return _Body(
        call, shape, {s.name: s for s in statements}, {s.value: s for s in others}, list(epilogue.stores)
    )


def _is_in_arena(call: Call, store: Store) -> bool:
    return call.buffers[store.operand].space is Space.ARENA


class _Body:
    """The statements of a kernel by the names that they define, and those that are needed."""

    def __init__(
        self,
        source: Call,
        extents: Shape,
        defined: dict[str, Statement | Accumulate],
        stored: dict[str, Store],
        stores: list[Store],
    ):
        """Begin with nothing needed. ``stored`` are values that can be read instead, of those ``defined``."""
        self.source, self.extents, self.defined = source, extents, defined
        self.stored, self.stores = stored, stores
        self.needed: set[str] = set()

    def need(self, name: str) -> bool:
        """Take what a value depends on; return whether all of that can be had."""
        if name in self.needed:
            return True
        if name not in self.stored:
            item = self.defined.get(name)
            if item is None or isinstance(item, Accumulate):
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
            # A part of a concatenation that is read for another part is the same buffer, read and written.
            operand, buffer = self.source.kernel.operands[old], self.source.buffers[old]
            known = [(b, o.written) for b, o in zip(buffers, operands, strict=True)]
            if (buffer, written) not in known:
                operands.append(replace(operand, written=written))
                buffers.append(buffer)
                return len(buffers) - 1
            return known.index((buffer, written))

        statements: list[Statement] = []
        for name, store in self.stored.items():
            if name in self.needed:
                dtype = self.source.kernel.operands[store.operand].dtype
                statements.append(Load(name, dtype, position(store.operand, False), store.access))
        for name, item in self.defined.items():
            if name not in self.needed or name in self.stored:
                continue
            if isinstance(item, Load):
                statements.append(replace(item, operand=position(item.operand, False)))
            elif not isinstance(item, Accumulate):
                statements.append(item)
        written = tuple(replace(s, operand=position(s.operand, True)) for s in stores)
        spec = LoopSpec(
            self.extents,
            (False,) * len(self.extents),
            (),
            (Sweep(kept_statements=tuple(statements), kept_stores=written),),
        )
        touched: Size = 0
        for operand in operands:
            touched = touched + product(operand.shape) * ITEMSIZE[operand.dtype]
        operations = sum(max(1, scalar.flops(s.expr)) for s in statements if isinstance(s, Compute))
        kernel = replace(
            self.source.kernel,
            template="loops",
            epilogue=None,
            spec=merge_axes(spec),
            operands=apart_from({s.name for s in statements}, operands, 0),
            formula=f"{', '.join(s.value for s in stores)} again",
            flops=product(self.extents) * operations,
            bytes=touched,
        )
        return replace(self.source, kernel=kernel, buffers=tuple(buffers), again=True)
