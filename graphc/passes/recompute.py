"""Decide which values kernels hand over in memory, and which the reading kernel computes again.

before: kernel 1 stores d = x - mean and r = relu(d * s); kernel 7 (backward) reads d
after:  kernel 1 stores r only; kernel 7 reads x and mean, and computes d again

A value is computed again if that costs a few additions and multiplications on one stored tensor of its
size (and on small ones): reading it would cost as much, and the memory is saved. Values that are
compared for equality, or whose extreme is taken, are stored: two kernels may round differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy as sp

from graphc import scalar
from graphc.graph.node import Node
from graphc.ops.elementwise import Elementwise
from graphc.ops.movement import Movement
from graphc.ops.reduce import Reduce
from graphc.passes.fuse import Group, partition
from graphc.passes.generated import is_generated
from graphc.types import at

_CHEAP = 6  # operations
_SMALL = 8  # an operand is small if it has at most 1/8 of the elements
_WORTH = 1024  # elements: smaller values are stored


class _Decision:
    def __init__(
        self, groups: Sequence[Group], results: set[Node], readers: Mapping[Node, list[Node]], batch: int
    ):
        self.of = {n: g for g in groups for n in g.nodes}
        self.results = results
        self.readers = readers
        self.batch = batch
        self.stored = {n for n in self.of if self._read_outside(n) and not self._may_recompute(n)}
        self.position = {n: k for k, n in enumerate(n for g in groups for n in g.nodes)}

    def _size(self, node: Node) -> int:
        return at(node.type.size, self.batch)

    def _outside(self, node: Node) -> list[Node]:
        return [r for r in self.readers.get(node, []) if self.of.get(r) is not self.of[node]]

    def _read_outside(self, node: Node) -> bool:
        return node in self.results or bool(self._outside(node))

    def _may_recompute(self, node: Node) -> bool:
        """Whether every kernel that reads the node could compute it itself."""
        return self._is_cheap(node) and all(self._can_compute(r) for r in self._outside(node))

    def _can_compute(self, reader: Node) -> bool:
        group = self.of.get(reader)
        if group is None or group.anchor is not None:
            return False
        if isinstance(reader.op, Elementwise):
            return reader.op.result is None
        return isinstance(reader.op, Reduce) and reader.op.kind == "sum"

    def _is_cheap(self, node: Node) -> bool:
        if not isinstance(node.op, Elementwise) or node in self.results or self._size(node) < _WORTH:
            return False
        if node.op.result is not None or not _is_arithmetic(node.op.expr):
            return False
        large = {i for i in node.inputs if not is_generated(i) and self._size(i) * _SMALL > self._size(node)}
        return len(large) <= 1 and not any(isinstance(i.op, Movement) for i in large)

    def recompute_for(self, group: Group) -> list[Node]:
        """Return the nodes that a loop group computes again, in order; what they read becomes stored."""
        wanted: dict[Node, None] = {}
        stack = [i for n in group.nodes for i in n.inputs]
        while stack:
            node = stack.pop()
            if node not in self.of or self.of[node] is group or node in self.stored or node in wanted:
                continue
            if not self._is_cheap(node):
                self.stored.add(node)
                continue
            wanted[node] = None
            stack += [_below_views(i) for i in node.inputs]
        return sorted(wanted, key=self.position.__getitem__)


def _below_views(node: Node) -> Node:
    while isinstance(node.op, Movement):
        node = node.inputs[0]
    return node


def _is_arithmetic(expr: sp.Expr) -> bool:
    """Whether a formula is made of a few additions, multiplications and choices."""
    if scalar.flops(expr) > _CHEAP:
        return False
    return all(
        isinstance(e, (sp.Add, sp.Mul, sp.Symbol, sp.Number, sp.Piecewise))
        or (isinstance(e, sp.Pow) and e.exp == 2)
        or scalar.is_condition(e)
        or not isinstance(e, sp.Expr)
        for e in sp.preorder_traversal(expr)
    )


def choose_stored(
    groups: Sequence[Group], results: set[Node], readers: Mapping[Node, list[Node]], batch: int
) -> None:
    """Set ``outputs`` (what is stored) and ``recomputed`` (what is computed again) of every group."""
    decision = _Decision(groups, results, readers, batch)
    for group in groups:
        if group.anchor is None:
            group.recomputed = decision.recompute_for(group)
    for group in groups:
        group.outputs = [n for n in group.nodes if n in decision.stored]


def fuse(outputs: Mapping[str, Node], batch: int, apart: bool = False, pools: bool = True) -> list[Group]:
    """Return the kernels of a graph: the partition, with what each stores and what it computes again.

    ``apart`` gives every node a kernel of its own that stores its value, to find where a value goes wrong;
    ``pools`` lets convolutions pool their results.
    """
    groups, results, readers = partition(outputs, batch, apart, pools)
    if apart:
        for group in groups:
            group.outputs = list(group.nodes)
    else:
        choose_stored(groups, results, readers, batch)
    return groups
