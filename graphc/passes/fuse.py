"""Partition a graph into the groups of nodes that become one kernel each.

before: conv2d -> add bias -> relu -> max_pool2d        max -> exp -> sum -> log (over the same rows)
after:  one group anchored at conv2d                    one loop group that sweeps each row twice

Two kinds of group exist. An *anchored* group is one op with a template of its own (a convolution, a
matrix product, ...) and the elementwise work on its result. A *loop* group iterates over one domain:
elementwise work of that shape, reductions over the same axes of it, and work on what is kept. Views
(reshape, transpose, ...) belong to no group: they change how a kernel reads. Values that an index
determines (constants, iota, random numbers, and formulas over them) are computed wherever they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphc.graph.node import Node, topological
from graphc.graph.text import name_nodes
from graphc.ops.anchor import Anchor
from graphc.ops.elementwise import Elementwise
from graphc.ops.movement import Movement
from graphc.ops.pool2d import MaxPool2d, MaxPool2dIndex
from graphc.ops.pooled import takes_pooling
from graphc.ops.reduce import ArgReduce, Reduce
from graphc.passes.generated import is_generated
from graphc.types import Shape, at, product, shape_text

# A loop group whose reduction leaves one element runs on one thread. It may still sweep its domain again
# if that is small; otherwise the second sweep becomes a parallel kernel of its own.
_SMALL_DOMAIN = 4096


@dataclass(eq=False)
class Group:
    """Nodes that become one kernel: ``nodes`` in topological order, ``outputs`` what it stores for others."""

    nodes: list[Node]
    anchor: Node | None = None
    pooled: bool = False
    domain: Shape = ()
    axes: tuple[int, ...] | None = None
    outputs: list[Node] = field(default_factory=list)
    recomputed: list[Node] = field(default_factory=list)  # nodes of other groups, computed again here

    @property
    def kept_shape(self) -> Shape:
        """The domain with reduced extents 1."""
        return tuple(1 if self.axes and a in self.axes else d for a, d in enumerate(self.domain))


def is_virtual(node: Node) -> bool:
    """Whether a node has no kernel of its own."""
    return not node.inputs or isinstance(node.op, Movement) or is_generated(node)


def _below_views(node: Node) -> Node:
    """Return what a chain of movements views."""
    while isinstance(node.op, Movement):
        node = node.inputs[0]
    return node


class _Partition:
    """The groups under construction, and the questions asked of them."""

    def __init__(self, outputs: Mapping[str, Node], batch: int, pools: bool):
        self.pools = pools
        self.order = topological(outputs.values())
        self.position = {n: k for k, n in enumerate(self.order)}
        self.batch = batch
        self.of: dict[Node, Group] = {}
        self.readers: dict[Node, list[Node]] = {}
        self.results = set(outputs.values())
        for node in self.order:
            for operand in node.inputs:
                self.readers.setdefault(operand, []).append(node)
        self.recomputed = {n for n in self.order if self._is_recomputed(n)}
        self.needs: dict[Group, set[Group]] = {}  # the groups whose results each group reads
        self.merged: dict[Group, Group] = {}

    def _is_recomputed(self, node: Node) -> bool:
        """Whether to compute a node again wherever it is read: a comparison of what is in memory anyway."""
        if not isinstance(node.op, Elementwise) or node.op.result != "bool" or node in self.results:
            return False
        cheap = all(is_generated(i) or not _below_views(i).inputs for i in node.inputs)
        return cheap and all(isinstance(r.op, Elementwise) for r in self.readers.get(node, []))

    def is_virtual(self, node: Node) -> bool:
        """Whether a node has no kernel of its own in this graph."""
        return is_virtual(node) or node in self.recomputed

    def producers(self, node: Node) -> list[tuple[Group, bool]]:
        """Return the groups that the node's operands come from, and whether each is read directly."""
        found = []
        for operand in node.inputs:
            stack = [(operand, True)]
            while stack:
                source, direct = stack.pop()
                if source in self.of:
                    found.append((self.of[source], direct))
                elif self.is_virtual(source):
                    stack += [(i, False) for i in source.inputs]
        return found

    def reaches(self, start: Group, goal: Group) -> bool:
        """Return whether ``start`` needs a result of ``goal``, directly or through others."""
        seen, stack = {start}, [start]
        while stack:
            group = stack.pop()
            if group is goal:
                return True
            for needed in self.needs[group]:
                producer = self.current(needed)
                if producer not in seen:
                    seen.add(producer)
                    stack.append(producer)
        return False

    def current(self, group: Group) -> Group:
        """Return the group that a merged one became part of."""
        while group in self.merged:
            group = self.merged[group]
        return group

    def can_join(self, node: Node, group: Group) -> bool:
        """Return whether the node may become part of the group."""
        fits = self._fits_anchor(node, group) if group.anchor is not None else self._fits_loops(node, group)
        if not fits:
            return False
        for producer, direct in self.producers(node):
            if producer is group and not direct:
                return False
            if producer is not group and self.reaches(producer, group):
                return False
        return True

    def _fits_anchor(self, node: Node, group: Group) -> bool:
        last = group.nodes[-1]
        anchor = group.anchor
        if anchor is None or not isinstance(anchor.op, Anchor):
            return False  # padding and concatenation are copies, with nothing to fuse to
        if isinstance(node.op, Elementwise):
            if not anchor.op.epilogue_axes(anchor.shape) or node.shape != last.shape:
                return False
            inside = [i for i in node.inputs if i in group.nodes]
            # The epilogue must not make the kernel store more: either the value replaces its operand, or
            # it has to be stored in any case. Otherwise it belongs to the loops that read it.
            replaces = any(set(self.readers[i]) == {node} and i not in self.results for i in inside)
            return bool(inside) and (replaces or self._is_stored_anyway(node))
        if isinstance(node.op, (MaxPool2d, MaxPool2dIndex)):
            (image,) = node.inputs
            alone = image not in self.results and all(
                isinstance(r.op, (MaxPool2d, MaxPool2dIndex)) and r.op.geometry == node.op.geometry
                for r in self.readers[image]
            )
            inner = group.nodes[: group.nodes.index(image)] if image in group.nodes else []
            hidden = all(n not in self.results and self._inside(n, group) for n in inner)
            fits = image in group.nodes and alone and hidden
            return self.pools and fits and takes_pooling(anchor, node.op.geometry, bare=image is anchor)
        return False

    def _is_stored_anyway(self, node: Node) -> bool:
        loops = (Elementwise, Reduce, ArgReduce)
        return node in self.results or not all(isinstance(r.op, loops) for r in self.readers.get(node, []))

    def _inside(self, node: Node, group: Group) -> bool:
        return all(r in group.nodes for r in self.readers.get(node, []))

    def _fits_loops(self, node: Node, group: Group) -> bool:
        if isinstance(node.op, (Reduce, ArgReduce)):
            (x,) = node.inputs
            return x.shape == group.domain and group.axes in (None, node.op.axes)
        if not isinstance(node.op, Elementwise):
            return False
        if group.axes is None or node.shape == group.kept_shape:
            return node.shape in (group.domain, group.kept_shape)
        if node.shape != group.domain:
            return False
        kept = at(product(group.kept_shape), self.batch)
        return kept >= 4 or at(product(group.domain), self.batch) <= _SMALL_DOMAIN

    def can_merge(self, a: Group, b: Group) -> bool:
        """Return whether loop group b may become part of a: over a's domain, or over what a keeps of it."""
        if a.anchor is not None or b.anchor is not None:
            return False
        over_kept = a.axes is not None and b.axes is None and b.domain == a.kept_shape
        if a.domain != b.domain and not over_kept:
            return False
        if a.axes is not None and b.axes is not None and a.axes != b.axes:
            return False
        return not self._reaches_around(a, b) and not self._reaches_around(b, a)

    def _reaches_around(self, start: Group, goal: Group) -> bool:
        """Return whether ``start`` needs ``goal`` other than by reading it directly."""
        needed = {self.current(g) for g in self.needs[start]}
        if any(g is not goal and self.reaches(g, goal) for g in needed):
            return True
        return goal in needed and any(
            producer is goal and not direct
            for node in start.nodes
            for producer, direct in self.producers(node)
        )

    def join(self, node: Node, group: Group) -> None:
        """Make the node part of the group."""
        self.needs.setdefault(group, set()).update(p for p, _ in self.producers(node) if p is not group)
        group.nodes.append(node)
        self.of[node] = group
        if isinstance(node.op, (Reduce, ArgReduce)):
            group.axes = node.op.axes
        if isinstance(node.op, (MaxPool2d, MaxPool2dIndex)) and group.anchor is not None:
            group.pooled = True

    def merge(self, a: Group, b: Group) -> None:
        """Move all of b into a."""
        a.nodes = sorted(a.nodes + b.nodes, key=self.position.__getitem__)
        a.axes = a.axes if a.axes is not None else b.axes
        for node in b.nodes:
            self.of[node] = a
        b.nodes = []
        self.merged[b] = a
        self.needs[a] = {self.current(g) for g in self.needs[a] | self.needs.pop(b)} - {a}

    def candidates(self, node: Node) -> list[Group]:
        """Return the groups worth joining: those read directly, latest first, then siblings of a reduction."""
        direct = [g for g, is_direct in self.producers(node) if is_direct]
        found = list(dict.fromkeys(reversed(direct)))
        if isinstance(node.op, (Reduce, ArgReduce)):
            # Reductions that read what one kernel wrote sweep it together.
            sources = [s for g in direct for s in g.nodes] + list(node.inputs)
            found += [self.of[r] for s in sources for r in self.readers.get(s, []) if r in self.of]
        if isinstance(node.op, MaxPool2dIndex):
            found += [self.of[r] for r in self.readers[node.inputs[0]] if r in self.of]
        return list(dict.fromkeys(found))

    def open(self, node: Node) -> Group:
        """Start a group with the node."""
        group = Group([])
        if isinstance(node.op, (Reduce, ArgReduce)):
            group.domain = node.inputs[0].shape
        elif isinstance(node.op, Elementwise):
            group.domain = node.shape
        else:
            group.anchor = node
        self.join(node, group)
        return group


def partition(
    outputs: Mapping[str, Node], batch: int, apart: bool = False, pools: bool = True
) -> tuple[list[Group], set[Node], dict[Node, list[Node]]]:
    """Return the groups in an order in which every group follows those that it reads; results; readers.

    ``apart`` gives every node a group of its own; ``pools`` lets convolutions pool their results.
    """
    parts = _Partition(outputs, batch, pools)
    for node in parts.order:
        if parts.is_virtual(node):
            continue
        candidates = [] if apart else parts.candidates(node)
        home = next((g for g in candidates if parts.can_join(node, g)), None)
        if home is None:
            parts.open(node)
            continue
        parts.join(node, home)
        for other in candidates:
            if other is not home and other.nodes and parts.can_merge(home, other):
                parts.merge(home, other)
    groups = _ordered(list(dict.fromkeys(parts.of.values())), parts)
    return groups, parts.results, parts.readers


def _ordered(groups: list[Group], parts: _Partition) -> list[Group]:
    """Return the groups depth first along what they read, in the order of the graph."""
    done: dict[Group, None] = {}
    for root in groups:
        stack = [(root, False)]
        while stack:
            group, expanded = stack.pop()
            if group in done:
                continue
            if expanded:
                done[group] = None
                continue
            stack.append((group, True))
            needs = {parts.current(g) for g in parts.needs[group]} - {group}
            first = sorted(needs, key=lambda g: parts.position[g.nodes[0]], reverse=True)
            stack += [(p, False) for p in first if p not in done]
    return list(done)


def print_groups(groups: list[Group]) -> str:
    """Return the groups as text, one kernel a paragraph."""
    names = name_nodes([n for g in groups for n in g.nodes])
    lines = []
    for number, group in enumerate(groups):
        kind = group.anchor.op.title if group.anchor is not None else f"loops over {shape_text(group.domain)}"
        lines.append(f"kernel {number}: {kind}; gives {', '.join(names[n] for n in group.outputs)}")
        for node in group.nodes:
            operands = ", ".join(names.get(i, i.name or i.op.title) for i in node.inputs)
            lines.append(f"    {names[node]}: {node.type} = {node.op.title}({operands})  # {node.source}")
    return "\n".join(lines) + "\n"
