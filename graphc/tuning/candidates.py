"""The variants of a task that are worth measuring, and modules with an entry point for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphc.emit.kernels import anchor_context
from graphc.graph.node import Node, Op, apply
from graphc.initialisers import Constant as ConstantInitialiser
from graphc.isa import Isa
from graphc.ops.anchor import Anchor
from graphc.ops.conv2d import Conv2dBackwardWeight
from graphc.ops.leaves import Input, Parameter, Scope
from graphc.ops.matmul import MatMul
from graphc.ops.packed import PackedConv2d, PackedConv2dBackwardWeight, PackedMatMul
from graphc.ops.winograd import WinogradConv2d, WinogradConv2dBackwardWeight
from graphc.passes.pack import Layouts, kernel_of
from graphc.passes.variants import AnyTask, Task, Variant
from graphc.pipeline import Builder, Request
from graphc.program.ir import Kernel, Program
from graphc.types import DType, at, static_shape

_SERVED = (2, 4, 8, 16, 32)
_SUMS = {PackedConv2d: (4,), PackedConv2dBackwardWeight: (8, 16), PackedMatMul: (4, 12, 16)}
_SHARES = (1, 4, 8, 16)
_TILE_BYTES = (2**15, 2**17)  # the second is the most that a thread's stack is asked for
_WORKSPACE_BYTES = (2**20, 2**21)  # no more than by default: the arena must not grow
_WINOGRAD_CHANNELS = 16  # fewer never pay
_NAME = "tuning"
# What says how much is wanted; what comes of it stands in other numbers of the templates.
_WISHES = ("sums", "served", "tile_limit")


@dataclass(frozen=True)
class Trial:
    """A task with the variants that give different kernels, the cost model's first; an entry point for each."""

    task: AnyTask
    variants: tuple[Variant, ...]
    entries: tuple[str, ...]


def alternatives(task: Task, chosen: Op, isa: Isa) -> Iterator[Variant]:
    """Give the variants beside the cost model's, whose op is ``chosen``."""
    dtype = task.operands[0].dtype
    if isinstance(chosen, (WinogradConv2d, WinogradConv2dBackwardWeight)):
        yield Variant(winograd=False)
        yield from (Variant(workspace=size) for size in _WORKSPACE_BYTES)
        return
    if _may_be_winograd(task):
        yield Variant(winograd=True)
    if isinstance(chosen, (PackedConv2d, PackedConv2dBackwardWeight, PackedMatMul)):
        for lanes in _lanes(chosen, isa, dtype):
            yield Variant(lanes=lanes)
        yield from (Variant(sums=s) for s in _SUMS[type(chosen)] if s <= isa.room(chosen.lanes, dtype))
    if isinstance(chosen, PackedConv2d):
        yield from (Variant(served=served) for served in _SERVED)
        for size in _TILE_BYTES:
            yield Variant(tile_bytes=size)
            yield Variant(tile_bytes=size, served=_SERVED[-1])
    if isinstance(chosen, PackedConv2dBackwardWeight):
        yield from (Variant(served=served) for served in _SERVED)
        yield from (Variant(shares=shares) for shares in _SHARES if shares <= task.batch)


def _may_be_winograd(task: Task) -> bool:
    op, dtype = task.op, task.operands[0].dtype
    if not task.winograd or dtype != "float32":
        return False
    if isinstance(op, PackedConv2d):
        shape, plain = task.operands[1].shape, op.stride == op.dilation == op.border.spread == (1, 1)
    elif isinstance(op, Conv2dBackwardWeight):
        shape, plain = op.shape, op.geometry.stride == op.geometry.dilation == (1, 1)
    else:
        return False
    o, c, *kernel = static_shape(shape)
    return plain and kernel == [3, 3] and min(o, c) >= _WINOGRAD_CHANNELS


def _lanes(chosen: Any, isa: Isa, dtype: DType) -> list[int]:
    """Return the other lengths of a vector: half of one or all of it."""
    gradient = isinstance(chosen, PackedConv2dBackwardWeight)
    full = isa.register_lanes(2**20, dtype) if gradient else isa.lanes(2**20, dtype)
    return [lanes for lanes in (full // 2, full) if lanes != chosen.lanes and lanes >= 4]


def result(task: Task, variant: Variant, isa: Isa, operands: Sequence[Node]) -> Node:
    """Return the packed node that computes a task in a variant."""
    layouts = Layouts(isa, task.batch, task.winograd, lambda _: variant, task.trained)
    return kernel_of(task, layouts, operands)


def work(task: Task, isa: Isa) -> int:
    """Return the operations of a task at the largest batch, by the cost model's variant."""
    node = result(task, Variant(), isa, _operands(task, 0))
    return (
        at(node.op.flops(node.type, *(i.type for i in node.inputs)), task.batch)
        if isinstance(node.op, Anchor)
        else 0
    )


def trials(request: Request, tasks: Sequence[Task]) -> tuple[list[Trial], Program]:
    """Return what is to be measured for each task, and one module with all of it; equal kernels are built once."""
    made: list[list[tuple[Variant, Node]]] = []
    for number, task in enumerate(tasks):
        operands = _operands(task, number)
        first = result(task, Variant(), request.isa, operands)
        variants = [Variant(), *alternatives(task, first.op, request.isa)]
        made.append([(v, result(task, v, request.isa, operands)) for v in variants])
    every = {f"{number}_{k}": node for number, row in enumerate(made) for k, (_, node) in enumerate(row)}
    builder = Builder(replace(request, name=_NAME, loss=None, metrics={}, optimizer=None), every)
    found = [
        _trial(builder, number, task, row) for number, (task, row) in enumerate(zip(tasks, made, strict=True))
    ]
    return found, builder.finish().program


def _trial(builder: Builder, number: int, task: Task, made: Sequence[tuple[Variant, Node]]) -> Trial:
    """Add the entry points of one task to the module."""
    seen: list[list[Any]] = []
    kept: list[tuple[Variant, str]] = []
    for k, (variant, node) in enumerate(made):
        name = f"kernel{number}_{k}"
        outputs = {f"out{p}": apply(pool, (node,)) for p, pool in enumerate(task.pools)} or {"out": node}
        calls = builder.alone(name, outputs, folded=not task.trained)
        form = [_form(call.kernel, task.batch) for call in calls]
        if form in seen:
            builder.forget(name)
        else:
            seen.append(form)
            kept.append((variant, name))
    return Trial(task, tuple(v for v, _ in kept), tuple(n for _, n in kept))


def _operands(task: Task, number: int) -> list[Node]:
    """Return what stands for a task's operands: weights are parameters, everything else is passed."""
    made = []
    weights = isinstance(task.op, (PackedConv2d, MatMul))
    for position, operand in enumerate(task.operands):
        shape = tuple(d for d in operand.shape if isinstance(d, int))
        if weights and position == 1 and len(shape) == operand.rank:
            scope = Scope("weight", f"weight{number}")
            made.append(Parameter(operand.dtype, shape, ConstantInitialiser(0.0), scope, "")())
        else:
            made.append(Input(f"in{number}_{position}", operand.dtype, operand.shape)())
    return made


def _form(kernel: Kernel, batch: int) -> Any:
    """Return what tells the text of one kernel from another's."""
    if not kernel.template.startswith(("packed", "winograd_conv2d")):
        return kernel
    values = vars(anchor_context(kernel, batch)["s"])
    return kernel.template, {name: value for name, value in values.items() if name not in _WISHES}
