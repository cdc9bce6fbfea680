"""Loop groups: assign every node to a sweep over the reduced axes, then merge axes that need not be apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from graphc import scalar
from graphc.graph.node import Node
from graphc.lower.body import Operands, Reader, Storage, compute, live_nodes
from graphc.lower.names import Names, apart_from
from graphc.ops.movement import View
from graphc.ops.reduce import ArgReduce, Reduce
from graphc.passes.fuse import Group
from graphc.program.ir import (
    Access,
    Accumulate,
    Buffer,
    Compute,
    Index,
    Kernel,
    Load,
    LoopSpec,
    Random,
    Statement,
    Store,
    Sweep,
)
from graphc.types import ITEMSIZE, DType, Shape, Size, product


class _Sweeps:
    """The lists of statements under construction: ``kept[s]`` follows sweep s - 1."""

    def __init__(self, count: int):
        self.full: list[list[Statement]] = [[] for _ in range(count)]
        self.accumulators: list[list[Accumulate]] = [[] for _ in range(count)]
        self.stores: list[list[Store]] = [[] for _ in range(count)]
        self.kept: list[list[Statement]] = [[] for _ in range(count + 1)]
        self.kept_stores: list[list[Store]] = [[] for _ in range(count + 1)]


class _LoopGroup:
    """Lowers one loop group."""

    def __init__(self, group: Group, storage: Storage, place: Callable[[Node], tuple[Buffer, View]]):
        self.group = group
        self.axes = group.axes or ()
        self.nodes = live_nodes([*group.recomputed, *group.nodes], group.outputs)
        self.inside = set(self.nodes)
        self.place = place
        self.operands = Operands()
        self.names = Names()
        self.reader = Reader(group.domain, self.operands, storage, self.names)
        self.kept: dict[Node, str] = {}  # values without reduced axes, by name
        self.kept_level = {n: self._is_kept(n) for n in self.nodes}
        self.stage: dict[Node, int] = {}
        for node in self.nodes:
            below = max((self.stage.get(i, 0) for i in node.inputs), default=0)
            self.stage[node] = below + (1 if isinstance(node.op, (Reduce, ArgReduce)) else 0)

    def _is_kept(self, node: Node) -> bool:
        if isinstance(node.op, (Reduce, ArgReduce)) or not self.axes:
            return True
        # A value computed again here may have fewer axes than the domain: broadcasting repeats it.
        new = len(self.group.domain) - node.rank
        constant = all(a < new or node.shape[a - new] == 1 for a in self.axes)
        return constant and node.shape != self.group.domain

    def lower(self) -> tuple[LoopSpec, Operands]:
        """Return the loop nest and its operands."""
        reductions = [n for n in self.nodes if isinstance(n.op, (Reduce, ArgReduce))]
        last = max((self.stage[n] for n in reductions), default=0)
        full_outputs = [n for n in self.group.outputs if not self.kept_level[n]]
        store_sweep = max([last - 1, *(self.stage[n] for n in full_outputs)]) if full_outputs else last - 1
        count = max(last, store_sweep + 1, 1)
        self.sweeps = _Sweeps(count)
        for stage in range(count + 1):
            for node in self.nodes:
                if self.stage[node] == stage and self.kept_level[node] and node not in reductions:
                    self._kept_compute(node, stage)
            if stage < count:
                wanted = [n for n in reductions if self.stage[n] == stage + 1]
                self._sweep(stage, wanted, full_outputs if stage == store_sweep else [])
        for node in self.group.outputs:
            if self.kept_level[node]:
                stage = max(self.stage[node], 0 if self.axes else 1)
                self.sweeps.kept_stores[max(stage, 1)].append(self._store(node, self.kept[node]))
        s = self.sweeps
        spec = LoopSpec(
            self.group.domain,
            tuple(a in self.axes for a in range(len(self.group.domain))),
            tuple(s.kept[0]),
            tuple(
                Sweep(tuple(s.full[k]), tuple(s.accumulators[k]), tuple(s.stores[k]),
                      tuple(s.kept[k + 1]), tuple(s.kept_stores[k + 1]))
                for k in range(count)
            ),
        )  # fmt: skip
        return spec, self.operands

    def _kept_compute(self, node: Node, stage: int) -> None:
        arguments = [self._kept_value(i, stage) for i in node.inputs]
        self.kept[node] = self.names.fresh(node.op.title)
        self.sweeps.kept[stage].append(compute(node, self.kept[node], arguments))

    def _kept_value(self, node: Node, stage: int) -> str:
        if node not in self.kept:
            assert node not in self.inside
            # Read at the earliest place, so that every later sweep can use it.
            self.kept[node] = self.reader.external(node, self.sweeps.kept[stage].append)
        return self.kept[node]

    def _sweep(self, number: int, reductions: list[Node], outputs: list[Node]) -> None:
        needed: set[Node] = set()
        stack = [n.inputs[0] for n in reductions] + list(outputs)
        while stack:
            node = stack.pop()
            if node not in needed and not (node in self.inside and self.kept_level[node]):
                needed.add(node)
                stack += node.inputs if node in self.inside else ()
        local: dict[Node, str] = {}

        def value(node: Node) -> str:
            if node in self.inside and self.kept_level[node]:
                return self.kept[node]
            if node not in local:
                local[node] = self._external(node, number)
            return local[node]

        for node in self.nodes:
            if node in needed:
                arguments = [value(i) for i in node.inputs]
                local[node] = self.names.fresh(node.op.title)
                self.sweeps.full[number].append(compute(node, local[node], arguments))
        for node in reductions:
            assert isinstance(node.op, (Reduce, ArgReduce))
            name = self.names.fresh(node.op.title)
            self.kept[node] = name
            index = ""
            if isinstance(node.op, ArgReduce):
                index = self.names.fresh("position")
                strides = tuple(1 if a == node.op.axis else 0 for a in range(len(self.group.domain)))
                self.sweeps.full[number].append(Index(index, "int64", Access(strides)))
            operand = value(node.inputs[0])
            dtype = node.inputs[0].dtype
            self.sweeps.accumulators[number].append(Accumulate(name, node.op.kind, dtype, operand, index))
        for node in outputs:
            self.sweeps.stores[number].append(self._store(node, value(node)))

    def _external(self, node: Node, sweep: int) -> str:
        """Read a node from outside; hoist it out of the sweep if it does not vary along the reduced axes."""
        emitted: list[Statement] = []
        name = self.reader.external(node, emitted.append)
        varies = any(
            isinstance(s, (Load, Index, Random)) and any(s.access.strides[a] != 0 for a in self.axes)
            for s in emitted
        )
        if varies:
            self.sweeps.full[sweep].extend(emitted)
        else:
            self.sweeps.kept[sweep].extend(emitted)
        return name

    def _store(self, node: Node, value: str) -> Store:
        buffer, view = self.place(node)
        position = self.operands.add("out", buffer, node.shape, True)
        kept = tuple(0 if d == 1 else s for d, s in zip(node.shape, view.strides, strict=True))
        return Store(position, Access(kept, view.offset), value)


def lower_loops(
    group: Group, storage: Storage, place: Callable[[Node], tuple[Buffer, View]]
) -> tuple[Kernel, list[Buffer]]:
    """Return the kernel of a loop group and the buffers of its call."""
    spec, operands = _LoopGroup(group, storage, place).lower()
    return loop_kernel(spec, operands, group.nodes), operands.buffers


def loop_kernel(spec: LoopSpec, operands: Operands, nodes: list[Node]) -> Kernel:
    """Return the kernel of a loop nest."""
    statements = [*spec.before]
    for sweep in spec.sweeps:
        statements += [*sweep.statements, *sweep.kept_statements]
    elements = product(spec.extents)
    operations = sum(max(1, scalar.flops(s.expr)) for s in statements if isinstance(s, Compute))
    operations += sum(len(s.accumulators) for s in spec.sweeps)
    touched: Size = 0
    for operand in operands.operands:
        touched = touched + product(operand.shape) * ITEMSIZE[operand.dtype]
    floats: list[DType] = [n.dtype for n in nodes if n.type.is_float] or ["float32"]
    formula = "; ".join(
        f"{n.op.title}: {n.op.attributes.split(';')[0]}" if n.op.attributes else n.op.title
        for n in list(dict.fromkeys(nodes))[:6]
    )
    values = {s.name for s in statements} | {a.name for s in spec.sweeps for a in s.accumulators}
    return Kernel(
        "loops", merge_axes(spec), apart_from(values, operands.operands), None, formula,
        elements * operations, touched, floats[0], True,
    )  # fmt: skip


def merge_axes(spec: LoopSpec) -> LoopSpec:
    """Return the same loops with as few axes as the accesses allow: contiguous axes become one."""
    accesses: list[Access] = []

    def noted(access: Access) -> Access:
        accesses.append(access)
        return access

    _map_accesses(spec, noted)
    groups: list[list[int]] = []
    for axis, extent in enumerate(spec.extents):
        if extent == 1:
            continue
        if groups:
            above = groups[-1][-1]
            same = spec.reduced[above] == spec.reduced[axis]
            if same and all(a.strides[above] == a.strides[axis] * extent for a in accesses):
                groups[-1].append(axis)
                continue
        groups.append([axis])
    extents = tuple(product(spec.extents[a] for a in g) for g in groups)
    reduced = tuple(spec.reduced[g[0]] for g in groups)
    merged = _map_accesses(spec, lambda a: Access(tuple(a.strides[g[-1]] for g in groups), a.offset))
    return replace(merged, extents=extents, reduced=reduced)


def _map_accesses(spec: LoopSpec, change: Callable[[Access], Access]) -> LoopSpec:
    def mapped(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(replace(i, access=change(i.access)) if hasattr(i, "access") else i for i in items)

    sweeps = tuple(
        replace(
            s,
            statements=mapped(s.statements),
            stores=mapped(s.stores),
            kept_statements=mapped(s.kept_statements),
            kept_stores=mapped(s.kept_stores),
        )
        for s in spec.sweeps
    )
    return replace(spec, before=mapped(spec.before), sweeps=sweeps)


def copy_kernel(
    node: Node, storage: Storage, buffer: Buffer, access: Access, out_shape: Shape
) -> tuple[Kernel, list[Buffer]]:
    """Return the kernel that writes a node's elements to a place in a buffer."""
    operands = Operands()
    reader = Reader(node.shape, operands, storage, Names())
    statements: list[Statement] = []
    name = reader.external(node, statements.append)
    position = operands.add("out", buffer, out_shape, True)
    strides = tuple(0 if d == 1 else s for d, s in zip(node.shape, access.strides, strict=True))
    sweep = Sweep(
        kept_statements=tuple(statements),
        kept_stores=(Store(position, Access(strides, access.offset), name),),
    )
    spec = LoopSpec(node.shape, (False,) * node.rank, (), (sweep,))
    kernel = loop_kernel(spec, operands, [node])
    return replace(kernel, formula="copy"), operands.buffers
