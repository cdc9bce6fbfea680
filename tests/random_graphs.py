"""Random graphs for the tests: a tape of integers decides every choice, so that hypothesis can shrink it.

Values are computed while a graph grows. An operation is taken back where its result would be huge, or
where it has a kink (relu at zero, a comparison of near-equal numbers, a near-tie of a maximum) so close
to the values at hand that correct roundings may fall on either side of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from helpers import weighted_sum

import graphc as gc
from graphc.graph.interpret import interpret
from graphc.graph.node import Node
from graphc.types import Extent, N, Shape, at, product

LARGEST = 4  # the batch that modules are compiled for
BATCHES = (3, 1)  # what they are run on
KINK = 1e-4  # closer than this to a kink, an operation is taken back
HUGE = 50.0
_LARGEST_SIZE = 4000


class Tape:
    """Integers that decide; a tape that has run out decides 0."""

    def __init__(self, numbers: Sequence[int]):
        self.numbers = list(numbers)
        self.position = 0

    def below(self, count: int) -> int:
        """Return the next number, reduced to 0..count-1."""
        self.position += 1
        return self.numbers[self.position - 1] % count if self.position <= len(self.numbers) else 0

    def pick(self, items: Sequence[object]) -> object:
        """Return one of the items."""
        return items[self.below(len(items))]

    @property
    def empty(self) -> bool:
        return self.position >= len(self.numbers)


@dataclass
class RandomGraph:
    """A graph with everything that a comparison needs; all names start with ``prefix``."""

    prefix: str
    inputs: list[Node] = field(default_factory=list)
    params: list[Node] = field(default_factory=list)
    values: dict[int, dict[Node, np.ndarray]] = field(default_factory=dict)  # leaves, by batch
    floats: list[Node] = field(default_factory=list)
    outputs: dict[str, Node] = field(default_factory=dict)

    @property
    def loss(self) -> Node:
        """A scalar that depends on every floating-point output, not linearly."""
        parts = [weighted_sum(o) for o in self.outputs.values() if o.type.is_float]
        total = parts[0]
        for part in parts[1:]:
            total = total + part * 0.5
        return total

    @property
    def wrt(self) -> list[Node]:
        """What to differentiate for."""
        return [i for i in self.inputs if i.type.is_float] + self.params


_SHAPES: list[Shape] = [
    (N, 3), (3,), (N,), (), (2, 3), (N, 2, 3), (N, 1, 3), (N, 37), (37,), (5, 1), (N, 2, 5), (1,), (N, 20, 3),
]  # fmt: skip
_IMAGES: list[Shape] = [(N, 2, 5, 6), (N, 4, 6, 6), (2, 3, 7, 4), (N, 1, 8, 20)]


class Grower:
    """Grows one graph from a tape."""

    def __init__(self, tape: Tape, prefix: str):
        self.tape = tape
        self.graph = RandomGraph(prefix)
        self.env: dict[int, dict[Node, np.ndarray]] = {b: {} for b in BATCHES}
        self.rng = np.random.default_rng(tape.below(1000))
        self.floats: list[Node] = []
        self.labels: Node | None = None

    def grow(self) -> RandomGraph:
        tape, graph = self.tape, self.graph
        for _ in range(1 + tape.below(3)):
            shapes = _IMAGES if tape.below(3) == 2 else _SHAPES
            self._leaf(tape.pick(shapes), is_input=True)  # type: ignore[arg-type]
        for _ in range(1 + tape.below(2)):
            static = [s for s in _SHAPES if all(isinstance(d, int) for d in s)]
            self._leaf(tape.pick(static), is_input=False)  # type: ignore[arg-type]
        for _ in range(8 + tape.below(24)):
            if tape.empty:
                break
            self._step()
        self._choose_outputs()
        graph.floats = self.floats
        graph.values = {b: {n: env[n] for n in (*graph.inputs, *graph.params)} for b, env in self.env.items()}
        return graph

    def _leaf(self, shape: Shape, *, is_input: bool) -> Node:
        graph = self.graph
        if is_input:
            name = f"{graph.prefix}x{len(graph.inputs)}"
            node = gc.input(name, ["N" if isinstance(d, Extent) else d for d in shape])
            graph.inputs.append(node)
        else:
            assert all(isinstance(d, int) for d in shape)
            initial = self.rng.uniform(-2, 2, shape)
            node = gc.parameter(f"{graph.prefix}w{len(graph.params)}", shape, initial)  # type: ignore[arg-type]
            graph.params.append(node)
            for env in self.env.values():
                env[node] = initial
            self.floats.append(node)
            return node
        for batch, env in self.env.items():
            env[node] = self.rng.uniform(-2, 2, [at(d, batch) for d in shape])
        self.floats.append(node)
        return node

    def _label_input(self) -> Node:
        if self.labels is None:
            self.labels = gc.input(
                f"{self.graph.prefix}labels", ("N",), dtype=("int32", "int64", "uint8")[self.tape.below(3)]
            )
            self.graph.inputs.append(self.labels)
            for batch, env in self.env.items():
                env[self.labels] = self.rng.integers(0, 3, batch)
        return self.labels

    def _value(self, node: Node) -> dict[int, np.ndarray]:
        """Return the node's values by batch, keeping them."""
        return {b: interpret([node], env, batch=b)[0] for b, env in self.env.items()}

    def _any(self, condition: Callable[[Node], bool] = lambda n: True) -> Node | None:
        """Return one of the tensors so far that fits, a recent one more often."""
        fitting = [n for n in self.floats if condition(n)]
        if not fitting:
            return None
        recent = fitting[-4:]
        return (
            recent[self.tape.below(len(recent))]
            if self.tape.below(3)
            else fitting[self.tape.below(len(fitting))]
        )

    def _clear_of(self, node: Node, kink: float = 0.0) -> bool:
        """Whether no value is near a kink without being exactly on it."""
        for value in self._value(node).values():
            distance = np.abs(value - kink)
            if np.any((distance < KINK) & (distance > 0)):
                return False
        return True

    def _spread(self, node: Node, axes: tuple[int, ...]) -> bool:
        """Whether extremes along the axes are clear, or exact ties at zero."""
        for value in self._value(node).values():
            rest = [a for a in range(value.ndim) if a not in axes]
            rows = value.transpose(*rest, *axes).reshape([value.shape[a] for a in rest] + [-1])
            ordered = np.sort(rows, axis=-1)
            gaps = np.diff(ordered, axis=-1)
            ties = (gaps == 0) & (ordered[..., 1:] == 0)
            if np.any((gaps < KINK) & ~ties):
                return False
        return True

    def _keep(self, node: Node | None) -> None:
        if node is None or at(product(node.shape), LARGEST) > _LARGEST_SIZE or node.rank > 5:
            return
        values = self._value(node)
        if any(not np.all(np.isfinite(v)) or np.abs(v).max(initial=0) > HUGE for v in values.values()):
            return
        for batch, value in values.items():
            self.env[batch][node] = value
        if node not in self.floats:
            self.floats.append(node)

    def _step(self) -> None:
        steps = [
            self._unary, self._binary, self._reduce, self._movement, self._matmul, self._image, self._softmax,
            self._choice, self._gather, self._join, self._extreme, self._generated, self._linear,
            self._unary, self._binary, self._image, self._image,
        ]  # fmt: skip
        step = steps[self.tape.below(len(steps))]
        self._keep(step())

    def _unary(self) -> Node | None:
        smooth = [
            gc.tanh, gc.sigmoid, gc.sin, gc.softplus, gc.silu, gc.gelu, gc.cos, gc.neg,
            lambda a: gc.exp(a * 0.3), lambda a: gc.sqrt(gc.square(a) + 0.5), lambda a: a * 0.5,
            lambda a: gc.log(1.5 + gc.square(a)), gc.erf, lambda a: gc.reciprocal(2.0 + gc.square(a)),
            lambda a: gc.pow(gc.square(a) + 1.0, 0.3),
        ]  # fmt: skip
        kinked = [gc.relu, gc.leaky_relu, gc.elu, gc.abs]
        a = self._any()
        assert a is not None
        if self.tape.below(4) == 3:
            return kinked[self.tape.below(len(kinked))](a) if self._clear_of(a) else None
        return smooth[self.tape.below(len(smooth))](a)

    def _partner(self, a: Node) -> Node | None:
        def fits(b: Node) -> bool:
            try:
                gc.add(a, b)
            except gc.GraphcError:
                return False
            return b is not a

        return self._any(fits)

    def _binary(self) -> Node | None:
        a = self._any()
        assert a is not None
        b = self._partner(a)
        if b is None:
            return a * a
        kind = self.tape.below(7)
        if kind in (4, 5):
            if not self._clear_of(a - b):
                return None
            return gc.maximum(a, b) if kind == 4 else gc.minimum(a, b)
        if kind == 6:
            return gc.elementwise("bump", "a*exp(-b**2/4) + 0.1*a", a, b)
        return [lambda: a + b, lambda: a - b, lambda: a * b, lambda: a / (1.0 + gc.square(b))][kind]()

    def _axes(self, rank: int) -> tuple[int, ...]:
        mask = 1 + self.tape.below(2**rank - 1) if rank else 0
        return tuple(a for a in range(rank) if mask >> a & 1)

    def _reduce(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0)
        if a is None:
            return None
        axes, keep = self._axes(a.rank), bool(self.tape.below(2))
        kind = self.tape.below(4)
        if kind == 3:
            return gc.logsumexp(a, axes, keepdims=keep) if self._spread(a, axes) else None
        if kind == 2:
            return gc.mean(gc.square(a), axes, keepdims=keep)
        return (gc.mean if kind else gc.sum)(a, axes, keepdims=keep)

    def _extreme(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0)
        if a is None:
            return None
        axes = self._axes(a.rank)
        kind = self.tape.below(3)
        if not self._spread(a, axes if kind < 2 else axes[:1]):
            return None
        if kind == 2:
            return gc.cast(gc.argmax(a, axes[0], keepdims=bool(self.tape.below(2))), "float32") * 0.25
        return (gc.max, gc.min)[kind](a, axes, keepdims=bool(self.tape.below(2)))

    def _softmax(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0)
        if a is None:
            return None
        axis = self.tape.below(a.rank)
        if not self._spread(a, (axis,)):
            return None
        return (gc.softmax, gc.log_softmax)[self.tape.below(2)](a, axis)

    def _movement(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0)
        if a is None:
            return None
        kind = self.tape.below(8)
        if kind == 0:
            order = list(range(a.rank))
            for k in range(a.rank - 1, 0, -1):
                other = self.tape.below(k + 1)
                order[k], order[other] = order[other], order[k]
            return gc.transpose(a, order)
        if kind == 1:
            return self._reshaped(a)
        if kind == 2:
            return a[tuple(self._slice(d) for d in a.shape)]
        if kind == 3:
            widths = [
                (self.tape.below(3), self.tape.below(2)) if isinstance(d, int) else (0, 0) for d in a.shape
            ]
            return gc.pad(a, widths, (0.0, 0.5)[self.tape.below(2)])
        if kind == 4:
            shape: list[object] = [d if d != 1 else (1, 3)[self.tape.below(2)] for d in a.shape]
            lead = [[], [2], [N]][self.tape.below(3)]
            return gc.expand(a, (*lead, *shape))  # type: ignore[arg-type]
        if kind == 5:
            axis = self.tape.below(a.rank)
            extent = a.shape[axis]
            if not isinstance(extent, int) or extent < 2:
                return None
            first = 1 + self.tape.below(extent - 1)
            parts = gc.split(a, (first, extent - first), axis)
            self._keep(parts[0])
            return parts[1]
        if kind == 6:
            return a[(None, ..., None)] if self.tape.below(2) else a[..., None]
        axes = [
            slice(None, None, -1) if isinstance(d, int) and self.tape.below(2) else slice(None)
            for d in a.shape
        ]
        return a[tuple(axes)]

    def _slice(self, extent: object) -> object:
        if not isinstance(extent, int) or self.tape.below(2):
            return slice(None)
        begin = self.tape.below(extent)
        end = begin + 1 + self.tape.below(extent - begin)
        step = 1 + self.tape.below(3)
        kind = self.tape.below(3)
        if kind == 2:
            return begin
        return slice(begin, end, step) if kind == 0 else slice(end - 1, begin - 1 if begin else None, -step)

    def _reshaped(self, a: Node) -> Node | None:
        kind = self.tape.below(4)
        if kind == 0:
            return gc.reshape(a, (-1,))
        if kind == 1:
            return gc.flatten(a) if a.rank > 1 else gc.reshape(a, (1, *a.shape))
        if kind == 2:  # merge two neighbours
            if a.rank < 2:
                return None
            axis = self.tape.below(a.rank - 1)
            return gc.reshape(a, (*a.shape[:axis], product(a.shape[axis : axis + 2]), *a.shape[axis + 2 :]))
        axis = self.tape.below(a.rank)  # split one
        extent = a.shape[axis]
        for factor in (2, 3, 5, 7):
            if isinstance(extent, int) and extent % factor == 0:
                return gc.reshape(a, (*a.shape[:axis], factor, extent // factor, *a.shape[axis + 1 :]))
        return None

    def _matmul(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0)
        if a is None:
            return None

        def fits(b: Node) -> bool:
            try:
                gc.matmul(a, b)
            except (gc.GraphcError, IndexError):
                return False
            return True

        b = self._any(fits)
        if b is None:
            swapped = (*range(a.rank - 2), a.rank - 1, a.rank - 2) if a.rank > 1 else (0,)
            b = gc.transpose(a, swapped)
        return gc.matmul(a, b) * 0.3

    def _linear(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0 and isinstance(n.shape[-1], int))
        if a is None:
            return None
        weight = self._leaf((4, a.shape[-1]), is_input=False)
        bias = self._leaf((4,), is_input=False)
        return gc.nn.linear(a, 4, weight=weight, bias=bias) * 0.5

    def _image(self) -> Node | None:
        a = self._any(
            lambda n: n.rank == 4 and all(isinstance(d, int) for d in n.shape[1:]) and min(n.shape[2:]) >= 2
        )  # type: ignore[type-var]
        if a is None:
            b = self._any(lambda n: n.rank >= 1 and all(isinstance(d, int) for d in n.shape[1:]))
            if b is None:
                return None
            size = product(b.shape[1:])
            square = {3: (1, 1, 3), 37: (1, 1, 37), 60: (3, 5, 4), 10: (1, 2, 5), 6: (1, 2, 3)}.get(size)  # type: ignore[call-overload]
            return gc.reshape(b, (b.shape[0], *square)) if square else None
        kind = self.tape.below(5)
        if kind < 2:
            channels = a.shape[1]
            assert isinstance(channels, int)
            kernel = (1 + self.tape.below(3), 1 + self.tape.below(2))
            groups = channels if self.tape.below(3) == 2 else 1
            weight = self._leaf((2 * groups, channels // groups, *kernel), is_input=False)
            bias = self._leaf((2 * groups,), is_input=False) if self.tape.below(2) else False
            try:
                out = gc.nn.conv2d(
                    a, 2 * groups, kernel, groups=groups,
                    stride=1 + self.tape.below(2), padding=self.tape.below(2),
                    weight=weight, bias=bias,
                )  # fmt: skip
            except gc.GraphcError:
                return None
            return out * 0.3 if self.tape.below(2) else out
        if kind == 2:
            try:
                return gc.nn.avg_pool2d(
                    a, 2, 1 + self.tape.below(2), self.tape.below(2), bool(self.tape.below(2))
                )
            except gc.GraphcError:
                return None
        rows = [self._spread(a, (2, 3))]
        if not rows[0]:
            return None
        try:
            stride, padding = 1 + self.tape.below(2), self.tape.below(2)
            return gc.nn.max_pool2d(a, 2, stride, padding, ceil_mode=bool(self.tape.below(2)))
        except gc.GraphcError:
            return None

    def _choice(self) -> Node | None:
        a = self._any()
        assert a is not None
        b = self._partner(a)
        if b is None or not self._clear_of(a - b):
            return None
        compare = [gc.less, gc.greater_equal, gc.not_equal, gc.greater][self.tape.below(4)]
        condition = compare(a, b)
        kind = self.tape.below(3)
        if kind == 0:
            return gc.where(condition, gc.tanh(a), b)
        if kind == 1:
            return gc.cast(condition, "float32")
        c = self._partner(condition)
        return gc.where(condition, a, 0.5) if c is None else gc.where(condition, c, b)

    def _gather(self) -> Node | None:
        labels = self._label_input()
        kind = self.tape.below(3)
        if kind == 0:
            return gc.one_hot(labels, 3)
        if kind == 1:
            table = self._any(lambda n: n.rank >= 1 and n.shape[0] in (2, 3, 5, 37))
            return None if table is None else gc.take(table, labels)
        a = self._any(lambda n: n.rank == 2 and n.shape[0] == N and n.shape[1] in (3, 4, 37))
        return None if a is None else gc.pick(a, labels)

    def _join(self) -> Node | None:
        a = self._any(lambda n: n.rank > 0)
        if a is None:
            return None
        axis = self.tape.below(a.rank)
        if not isinstance(a.shape[axis], int):
            return None

        def fits(b: Node) -> bool:
            try:
                gc.concat([a, b], axis)
            except gc.GraphcError:
                return False
            return isinstance(b.shape[axis], int)

        b = self._any(fits)
        assert b is not None
        return gc.concat([a, b, a] if self.tape.below(2) else [b, a], axis)

    def _generated(self) -> Node | None:
        a = self._any()
        assert a is not None
        from graphc.ops.leaves import full
        from graphc.ops.reduce import iota

        kind = self.tape.below(4)
        if kind == 0 and a.rank:
            return gc.cast(iota(a.shape, self.tape.below(a.rank)), "float32") * 0.1
        if kind == 1:
            return full(a.shape, 0.75)
        if kind == 2:
            shape = [at(d, 1) if isinstance(d, int) else 1 for d in a.shape]
            return gc.constant(self.rng.uniform(-1, 1, shape))
        return a * full((), 2.0) + full(a.shape, 0.25)

    def _choose_outputs(self) -> None:
        chosen = [self.floats[-1]]
        for _ in range(1 + self.tape.below(4)):
            chosen.append(self.floats[self.tape.below(len(self.floats))])
        prefix = self.graph.prefix
        for k, node in enumerate(chosen):
            self.graph.outputs[f"{prefix}out{k}"] = node
        if self.tape.below(4) == 3:
            node = chosen[0]
            self.graph.outputs[f"{prefix}flag"] = gc.greater(node, 0.1) if self._clear_of(node, 0.1) else node


def grow(numbers: Sequence[int], prefix: str) -> RandomGraph:
    """Return the graph that the numbers describe."""
    return Grower(Tape(numbers), prefix).grow()
