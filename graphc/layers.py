"""A net as a table of layers: shapes, parameters, multiply-accumulates and bytes, before anything is compiled.

A layer is an op with a loop nest of its own (a convolution, a product, a pooling), or whatever else does work,
together with the elementwise nodes that use its parameters: the sum with the bias, the two steps of a batch
norm. A softmax, a local response normalisation and a mean are many nodes, and one layer. Views (reshape,
flatten, transpose, slices) and what inference leaves out (dropout) do no work and are no layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graphc.errors import GraphError
from graphc.graph.node import Node, topological
from graphc.layout import Layout
from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, Conv2dBackwardWeight
from graphc.ops.elementwise import Elementwise
from graphc.ops.gather import Take
from graphc.ops.leaves import Constant, Input, Parameter, Scope, State
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Movement, Place, Reshape
from graphc.ops.pool2d import AvgPool2d, MaxPool2d
from graphc.ops.reduce import Reduce
from graphc.passes.specialise import specialise
from graphc.types import ITEMSIZE, Shape, at, shape_text

_PRODUCTS = (Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, MatMul)

# What graphc writes as several nodes: the last node's op and number of operands, and all ops. From the last
# node back to the one tensor that it all comes from, these ops and no others stand.
_COMPOSITES = {
    ("div", 2, frozenset({"max", "sub", "exp", "sum", "div"})): "softmax",
    ("sub", 2, frozenset({"max", "sub", "exp", "sum", "log"})): "log_softmax",
    ("mul", 2, frozenset({"square", "place", "slice", "add", "mul", "pow"})): "lrn",
    ("mul", 2, frozenset({"sum", "div", "sub", "square", "add", "rsqrt", "mul"})): "normalise",
    ("div", 1, frozenset({"sum", "div"})): "mean",
}
_ENDS = {(end, operands) for end, operands, _ in _COMPOSITES}
_COMPOSED = frozenset[str]().union(*(ops for _, _, ops in _COMPOSITES))
_NORMS = ("batch_norm", "layer_norm")  # whose weight and bias come after a "normalise"


@dataclass(frozen=True)
class LayerRow:
    """One layer. Units: counts and bytes are those of one sample, the shape is that of any batch ``N``.

    ``parameters`` that several layers share count in the first. ``macs`` are the multiply-accumulates of
    convolutions and matrix products. ``bytes_read`` holds every operand, parameter and running statistic
    once, and ``bytes_written`` the result: what moves if each layer is run by itself and caches its operands.
    """

    name: str
    kind: str
    shape: Shape
    parameters: int
    macs: int
    bytes_read: int
    bytes_written: int

    @property
    def intensity(self) -> float:
        """Floating-point operations of the multiply-accumulates (two each) per byte moved."""
        return 2 * self.macs / max(1, self.bytes_read + self.bytes_written)


def layers(outputs: Mapping[str, Node] | Node) -> tuple[LayerRow, ...]:
    """Return the layers of a net in inference, in the order in which it computes them; nothing is compiled.

    Raises:
        GraphError: the outputs are no tensors.
        UnknownNameError: two layers have one name.
    """
    if not isinstance(outputs, (Node, Mapping)):
        raise GraphError(f"layers: expected a tensor or a dict of tensors, got {type(outputs).__name__}")
    named = {"out": outputs} if isinstance(outputs, Node) else dict(outputs)
    for key, node in named.items():
        if not isinstance(node, Node):
            raise GraphError(f"layers: {key!r} must be a tensor, got {type(node).__name__}")
    names = Layout(named, set(), None, "float32").names
    return tuple(_Net(specialise(named, training=False).outputs, names).rows())


def layers_table(rows: Sequence[LayerRow]) -> str:
    """Return the layers as text, one a line, and their totals."""
    head = ("layer", "kind", "output shape", "parameters", "MACs", "bytes read", "bytes written", "FLOP/byte")
    cells: list[tuple[str, ...]] = [head]
    total = LayerRow(
        "total", f"{len(rows)} layers", (),
        sum(r.parameters for r in rows), sum(r.macs for r in rows),
        sum(r.bytes_read for r in rows), sum(r.bytes_written for r in rows),
    )  # fmt: skip
    for row in (*rows, total):
        counts = (f"{n:,}" if n else "-" for n in (row.parameters, row.macs))
        moved = (f"{n:,}" for n in (row.bytes_read, row.bytes_written))
        shape = shape_text(row.shape) if row is not total else ""
        cells.append(
            (row.name, row.kind, shape, *counts, *moved, f"{row.intensity:.2f}" if row.macs else "-")
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    text = [
        "  ".join(
            c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    rule = "-" * len(text[0])
    note = (
        "MACs and bytes at batch 1, in inference, before fusion: each layer reads its operands and parameters "
        "once\nand writes its result. MACs are those of convolutions and matrix products; a MAC is two FLOP."
    )
    return "\n".join([text[0].rstrip(), rule, *text[1:-1], rule, text[-1], "", note]) + "\n"


@dataclass
class _Layer:
    """A layer as nodes, while it grows; ``scopes`` are those of the parameters that its nodes use."""

    kind: str
    name: str | None
    nodes: list[Node]
    scopes: dict[Scope, None] = field(default_factory=dict)


class _Net:
    """Groups the nodes of an inference graph to layers, and counts."""

    def __init__(self, outputs: Mapping[str, Node], names: Mapping[Node, str]):
        """Find out which nodes depend on the inputs, and which stored arrays the others depend on."""
        self.names = names
        self.outputs = set(outputs.values())
        self.order = topological(outputs.values())
        self.position = {node: k for k, node in enumerate(self.order)}
        self.users: dict[Node, list[Node]] = {node: [] for node in self.order}
        self.active: set[Node] = set()
        # The parameters, statistics and constants that a node uses by itself, not through another layer.
        self.stored: dict[Node, dict[Node, None]] = {}
        for node in self.order:
            fixed = [i for i in node.inputs if i not in self.active]
            if len(fixed) < len(node.inputs) or isinstance(node.op, Input):
                self.active.add(node)
            own = {node: None} if isinstance(node.op, (Parameter, State, Constant)) else {}
            self.stored[node] = own | {leaf: None for i in fixed for leaf in self.stored[i]}
            for i in set(node.inputs):
                self.users[i].append(node)
        self.seen: set[Node] = set()  # stored arrays that a layer has used
        self.layer_of: dict[Node, _Layer] = {}

    def rows(self) -> Iterator[LayerRow]:
        """Return the table."""
        counts: dict[str, int] = {}
        counted: set[Node] = set()
        for layer in self._group():
            leaves = dict.fromkeys(leaf for node in layer.nodes for leaf in self.stored[node])
            new = [leaf for leaf in leaves if isinstance(leaf.op, Parameter) and leaf not in counted]
            counted.update(new)
            kind = layer.kind.split()[0]
            if layer.name is None:
                counts[kind] = counts.get(kind, -1) + 1
            products = (n for n in layer.nodes if isinstance(n.op, _PRODUCTS))
            yield LayerRow(
                layer.name or f"{kind}_{counts[kind]}", layer.kind, self._shape(layer),
                sum(at(leaf.type.size, 1) for leaf in new), sum(_macs(n) for n in products),
                _stored_bytes(layer, leaves) + self._operand_bytes(layer), self._result_bytes(layer),
            )  # fmt: skip
        for leaf in self.order:  # what no input meets: a net may return a function of its parameters
            if isinstance(leaf.op, Parameter) and leaf not in counted:
                size = _bytes(leaf)
                yield LayerRow(
                    self.names[leaf], "parameter", leaf.shape, at(leaf.type.size, 1), 0, size, size
                )

    def _group(self) -> list[_Layer]:
        """Return the layers by the position of their last node."""
        found: list[_Layer] = []
        composites = self._composites()
        inner = {node for composite in composites.values() for node in composite.nodes[:-1]}
        for node in self.order:
            idle = node not in self.active or not node.inputs or isinstance(node.op, Movement)
            if idle or node in inner:
                continue
            layer = self._joined(node)
            if layer is None:
                layer = composites.get(node) or _Layer(self._kind(node), self._name(node), [node])
                found.append(layer)
            else:
                layer.nodes.append(node)
            layer.scopes.update(_scopes(self.stored[node]))
            self.seen.update(self.stored[node])
            self.layer_of.update(dict.fromkeys(layer.nodes, layer))
        return sorted(found, key=lambda layer: self.position[layer.nodes[-1]])

    def _joined(self, node: Node) -> _Layer | None:
        """Return the layer whose result the node goes on with, by parameters of the same scope."""
        if not isinstance(node.op, Elementwise):
            return None
        scopes = _scopes(self.stored[node])
        for operand in node.inputs:
            layer = self.layer_of.get(operand)
            if layer is None or layer.nodes[-1] is not operand:
                continue
            if scopes.keys() & layer.scopes.keys():
                return layer
            scope = next((s for s in scopes if s.kind in _NORMS), None)
            if layer.kind == "normalise" and scope is not None:
                layer.kind, layer.name = scope.kind, self._name(node)
                return layer
        return None

    def _claimed(self, node: Node) -> Scope | None:
        """Return the scope that gives a node its name.

        An elementwise node takes it from parameters that no layer before has used: a penalty on the weights
        of a convolution is no second convolution.
        """
        leaves = self.stored[node]
        fresh = [leaf for leaf in leaves if leaf not in self.seen or not isinstance(node.op, Elementwise)]
        return next(iter(_scopes(dict.fromkeys(fresh))), None)

    def _name(self, node: Node) -> str | None:
        """Return the name of the node or of the layer of its parameters."""
        scope = self._claimed(node)
        if node.name is not None or scope is None:
            return node.name
        leaf = next(leaf for leaf in self.stored[node] if _scope(leaf) is scope)
        assert isinstance(leaf.op, (Parameter, State))
        return self.names[leaf].removesuffix(f".{leaf.op.field}")

    def _kind(self, node: Node) -> str:
        """Return what a layer does, with its windows."""
        op = node.op
        if isinstance(op, Conv2d):
            g = op.geometry
            text = f"conv2d {_window(node.inputs[1].shape[2:], g.stride)}"
            text += f", dilation {_pair(g.dilation)}" if g.dilation != (1, 1) else ""
            return text + (f", groups {g.groups}" if g.groups != 1 else "")
        if isinstance(op, (MaxPool2d, AvgPool2d)):
            return f"{op.title} {_window(op.geometry.kernel, op.geometry.stride)}"
        if isinstance(op, MatMul):
            # The layout of a linear layer's weight: one row for each feature.
            weight = node.inputs[1]
            return "linear" if op.transpose_b and weight.rank == 2 and weight not in self.active else "matmul"
        if isinstance(op, Place):
            return "pad"
        scope = self._claimed(node) if isinstance(op, (Elementwise, Take)) else None
        return op.title if scope is None or scope.kind == "parameter" else scope.kind

    def _composites(self) -> dict[Node, _Layer]:
        """Return every softmax and its kin, whole, by its last node."""
        found: dict[Node, _Layer] = {}
        taken: set[Node] = set()
        for end in reversed(self.order):  # so that the mean within a norm is not found first
            operands = sum(i in self.active for i in end.inputs)
            if end in taken or (end.op.title, operands) not in _ENDS:
                continue
            for nodes in self._regions(end):
                kind = _COMPOSITES.get((end.op.title, operands, frozenset(n.op.title for n in nodes)))
                if kind is not None:
                    found[end] = _Layer(_pooling(kind, nodes[0]), end.name, nodes)
                    taken.update(nodes)
                    break
        return found

    def _regions(self, end: Node) -> Iterator[list[Node]]:
        """Return the growing sets of nodes between ``end`` and one tensor that all of them come from.

        Nothing but their last node is used outside, and none of them uses a stored array.
        """
        nodes: list[Node] = []
        before = {end}
        while before:
            latest = max(before, key=self.position.__getitem__)
            plain = latest.op.title in _COMPOSED and not self.stored[latest]
            escapes = latest is not end and (
                latest in self.outputs or not set(self.users[latest]) <= set(nodes)
            )
            if not plain or escapes:
                return
            before.remove(latest)
            nodes.insert(0, latest)
            before |= {i for i in latest.inputs if i in self.active}
            if len(before) == 1:
                yield list(nodes)

    def _shape(self, layer: _Layer) -> Shape:
        """Return the result's shape; a linear layer computes rows, and gives them back their leading axes."""
        last = layer.nodes[-1]
        users = self.users[last]
        if layer.kind == "linear" and len(users) == 1 and isinstance(users[0].op, Reshape):
            if users[0].shape[-1] == last.shape[-1]:
                return users[0].shape
        return last.shape

    def _operand_bytes(self, layer: _Layer) -> int:
        """Return the bytes of the tensors that the layer reads; of a tensor seen through views, what they show."""
        members = set(layer.nodes)
        read: dict[Node, int] = {}
        for operand in dict.fromkeys(i for node in layer.nodes for i in node.inputs):
            base, shown = operand, _bytes(operand)
            while isinstance(base.op, Movement) and base not in members:
                base = base.inputs[0]
                shown = min(shown, _bytes(base))
            if base in self.active and base not in members:
                read[base] = min(read.get(base, 0) + shown, _bytes(base))
        return sum(read.values())

    def _result_bytes(self, layer: _Layer) -> int:
        members = set(layer.nodes)
        return sum(_bytes(n) for n in layer.nodes if n in self.outputs or not set(self.users[n]) <= members)


def _bytes(node: Node) -> int:
    return at(node.type.size, 1) * ITEMSIZE[node.dtype]


def _stored_bytes(layer: _Layer, leaves: Mapping[Node, None]) -> int:
    """Return the bytes of the stored arrays that the layer reads; of a table, the rows that it looks up."""
    first = layer.nodes[0]
    table = first.inputs[0] if isinstance(first.op, Take) else None
    return sum(min(_bytes(leaf), _bytes(first)) if leaf is table else _bytes(leaf) for leaf in leaves)


def _macs(node: Node) -> int:
    assert isinstance(node.op, _PRODUCTS)
    return at(node.op.flops(node.type, *(i.type for i in node.inputs)), 1) // 2


def _scope(leaf: Node) -> Scope | None:
    return leaf.op.scope if isinstance(leaf.op, (Parameter, State)) else None


def _scopes(leaves: Mapping[Node, None]) -> dict[Scope, None]:
    """Return the scopes of the parameters and statistics, in order."""
    return dict.fromkeys(scope for leaf in leaves if (scope := _scope(leaf)) is not None)


def _pooling(kind: str, first: Node) -> str:
    """Return the kind of a composite; a mean over an image is a pooling."""
    image = isinstance(first.op, Reduce) and first.op.axes == (2, 3) and first.rank == 4
    return "global_avg_pool2d" if kind == "mean" and image else kind


def _pair(pair: Sequence[object]) -> str:
    return "x".join(map(str, pair))


def _window(kernel: Sequence[object], stride: tuple[int, int]) -> str:
    """Return ``3x3``, ``3x3/2`` or ``3x1/2x1``."""
    if stride == (1, 1):
        return _pair(kernel)
    return f"{_pair(kernel)}/{stride[0] if stride[0] == stride[1] else _pair(stride)}"
