"""Gradients that are used up where they are computed, so that no block has to hold them all.

before: fc1.weight's gradient goes to the block of gradients; in the end, one loop updates all weights from there
after:  the epilogue of the product that gives the gradient updates weights and velocity; nothing holds the gradient

A gradient that no product computes is written to the arena, and a loop behind it updates the weights. Both happen
after the last kernel that reads these weights. The formulas are those of the loop over the flat block, on the same
numbers, so that every bit is the same.

Source: Lv et al. 2023, "Full parameter fine-tuning for large language models with limited resources" (LOMO), section
3.1, which fuses the step of plain gradient descent into the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy as sp

from graphc import scalar
from graphc.lower.arena import drop_operand
from graphc.lower.loops import merge_axes
from graphc.lower.names import apart_from
from graphc.optim import LR, G, Rule, W, new, slot
from graphc.program.ir import (
    Access,
    Buffer,
    Call,
    Compute,
    Kernel,
    Load,
    LoopSpec,
    Operand,
    Statement,
    Store,
    Sweep,
)
from graphc.types import ITEMSIZE, Shape, contiguous_strides, product

_ARGUMENTS = ("lr", "steps")  # of a kernel that computes scalars
_PRODUCT = ("i", "j")  # the axes of a matrix product's epilogue


@dataclass(frozen=True)
class Target:
    """A parameter that is updated as soon as its gradient is known: the buffers, and the optimizer's rule."""

    weight: Buffer
    gradient: Buffer
    slots: tuple[Buffer, ...]
    shape: Shape
    rule: Rule


def update_at_once(calls: Sequence[Call], targets: Sequence[Target]) -> list[Call]:
    """Return the calls with the updates of the targets' parameters among them."""
    result = list(calls)
    for target in targets:
        touching = [k for k, call in enumerate(result) if target.gradient in call.buffers]
        (number,) = touching if len(touching) == 1 else (None,)
        fused = None if number is None else _in_epilogue(result[number], target)
        if number is not None and fused is not None:
            del result[number]
        update = fused or _loop(result[touching[-1]], target)
        last = max((k for k, call in enumerate(result) if target.weight in call.buffers), default=-1)
        result.insert(max(last, touching[-1] - (fused is not None)) + 1, update)
    return result


class _Formulas:
    """The statements of a rule for one element, after those that a kernel has."""

    def __init__(self, target: Target, taken: set[str], gradient: str):
        self.taken = {*taken, *_ARGUMENTS}
        self.values: dict[sp.Symbol, str] = {G: gradient}
        self.scalars: list[tuple[str, sp.Expr]] = []
        self.operands: list[tuple[Operand, Buffer]] = []
        self.loads: list[tuple[str, Buffer]] = []
        rule, dtype = target.rule, target.weight.dtype
        self.dtype = dtype
        for symbol in sorted({s for _, expr in rule.updates for s in expr.free_symbols}, key=str):
            expr = LR if symbol == LR else dict(rule.scalars).get(symbol.name)
            if expr is not None:
                self.values[symbol] = self._fresh("rate" if symbol == LR else symbol.name)
                self.scalars.append((self.values[symbol], expr))
        places = [("weights", W, target.weight)]
        places += [(s, slot(s), buffer) for s, buffer in zip(rule.slots, target.slots, strict=True)]
        for name, symbol, buffer in places:
            self.values[symbol] = self._fresh(f"{symbol.name}_old")
            self.loads.append((self.values[symbol], buffer))
            self.operands.append((Operand(name, dtype, True, target.shape), buffer))
        self.computed: list[Compute] = []
        self.stored: list[tuple[str, Buffer]] = []
        for name, expr in rule.updates:
            value = self._fresh(f"{name}_new")
            symbols = tuple(sorted(expr.free_symbols, key=lambda s: str(s.name)))
            arguments = tuple((self.values[s], dtype) for s in symbols)
            self.computed.append(Compute(value, dtype, expr, arguments, symbols))
            self.values[new(name)] = value
            self.stored.append(
                (value, target.weight if name == "w" else target.slots[rule.slots.index(name)])
            )

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def statements(self, access: Access, position: int) -> tuple[list[Statement], list[Store]]:
        """Return the statements and stores, with the operands from a position on."""
        places = {buffer: position + k for k, (_, buffer) in enumerate(self.operands)}
        loads = [Load(name, self.dtype, places[buffer], access) for name, buffer in self.loads]
        return [*loads, *self.computed], [
            Store(places[buffer], access, value) for value, buffer in self.stored
        ]

    @property
    def operations(self) -> int:
        """Operations for each element."""
        return sum(max(1, scalar.flops(s.expr)) for s in self.computed)


def _in_epilogue(call: Call, target: Target) -> Call | None:
    """Return a product's call that updates weights in place of storing their gradient; None where that is not it."""
    kernel, epilogue = call.kernel, call.kernel.epilogue
    if epilogue is None or epilogue.axes != _PRODUCT or target.weight in call.buffers:
        return None
    (store,) = (s for s in epilogue.stores if call.buffers[s.operand] == target.gradient)
    names = {o.name for o in kernel.operands}
    formulas = _Formulas(target, {"acc", *names, *(s.name for s in epilogue.statements)}, store.value)
    statements, stores = formulas.statements(store.access, len(kernel.operands))
    operands = [*kernel.operands, *(o for o, _ in formulas.operands)]
    buffers = [*call.buffers, *(b for _, b in formulas.operands)]
    others = tuple(s for s in epilogue.stores if s is not store)
    epilogue = replace(epilogue, statements=(*epilogue.statements, *statements), stores=(*others, *stores))
    values = {"acc", *_ARGUMENTS, *(s.name for s in epilogue.statements), *(n for n, _ in formulas.scalars)}
    touched = product(target.shape) * ITEMSIZE[target.weight.dtype]
    updated = replace(
        kernel,
        operands=apart_from(values, operands, epilogue.fixed),
        epilogue=epilogue,
        flops=kernel.flops + product(target.shape) * formulas.operations,
        bytes=kernel.bytes + touched * 2 * len(formulas.operands),
        scalars=tuple(formulas.scalars),
    )
    del buffers[store.operand]
    return replace(call, kernel=drop_operand(updated, store.operand, store.operand), buffers=tuple(buffers))


def _loop(call: Call, target: Target) -> Call:
    """Return the call of a loop that updates weights from a gradient in the arena; ``call`` has written it."""
    formulas = _Formulas(target, {"g"}, "g")
    dtype = target.weight.dtype
    access = Access(contiguous_strides(target.shape))
    statements, stores = formulas.statements(access, 1)
    read = Load("g", dtype, 0, access)
    sweep = Sweep(kept_statements=(read, *statements), kept_stores=tuple(stores))
    operands = [Operand("gradient", dtype, False, target.shape), *(o for o, _ in formulas.operands)]
    size = product(target.shape)
    kernel = Kernel(
        "loops",
        merge_axes(LoopSpec(target.shape, (False,) * len(target.shape), (), (sweep,))),
        apart_from(formulas.taken, operands),
        None,
        "update",
        size * formulas.operations,
        size * ITEMSIZE[dtype] * (2 * len(operands) - 1),
        dtype,
        True,
        tuple(formulas.scalars),
    )
    buffers = (target.gradient, *(b for _, b in formulas.operands))
    return replace(call, kernel=kernel, buffers=buffers)
