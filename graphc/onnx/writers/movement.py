"""Movement, copies into a part of a tensor, and concatenation."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.graph.node import Node
from graphc.onnx.emission import Emission, writes
from graphc.ops.movement import Concat, Expand, Flip, Place, Reshape, Slice, Transpose
from graphc.types import Shape, Size

_END = 2**63 - 1


@writes(Reshape)
def write_reshape(e: Emission, node: Node) -> str:
    """Write Reshape, or Flatten of all but the batch."""
    return e.reshape(e.names[node.inputs[0]], node.shape)


@writes(Transpose)
def write_transpose(e: Emission, node: Node) -> str:
    """Write Transpose."""
    assert isinstance(node.op, Transpose)
    return e.op("Transpose", e.names[node.inputs[0]], perm=list(node.op.order))


@writes(Expand)
def write_expand(e: Emission, node: Node) -> str:
    """Write Expand; an axis that keeps its extent is asked for 1."""
    (x,) = node.inputs
    old: Shape = (*(1,) * (node.rank - x.rank), *x.shape)
    asked: list[Size] = [1 if d == o else d for d, o in zip(node.shape, old, strict=True)]
    return e.op("Expand", e.names[x], e.sizes(tuple(asked)))


@writes(Slice)
def write_slice(e: Emission, node: Node) -> str:
    """Write Slice along the axes that lose something."""
    assert isinstance(node.op, Slice)
    (x,) = node.inputs
    return slice_of(e, e.names[x], x.shape, node.op.begin, node.op.step, node.shape)


def slice_of(e: Emission, x: str, old: Shape, begin: Sequence[int], step: Sequence[int], shape: Shape) -> str:
    """Return every ``step``-th element from ``begin``."""
    axes = [a for a, (d, s) in enumerate(zip(old, shape, strict=True)) if d != s]
    if not axes:
        return x
    ends = [begin[a] + (d - 1) * step[a] + 1 for a in axes if isinstance(d := shape[a], int)]
    lists = [[begin[a] for a in axes], ends, axes, [step[a] for a in axes]]
    return e.op("Slice", x, *map(e.integers, lists))


@writes(Flip)
def write_flip(e: Emission, node: Node) -> str:
    """Write Slice with steps of -1."""
    assert isinstance(node.op, Flip)
    count = len(node.op.axes)
    lists = [[-1] * count, [-_END] * count, list(node.op.axes), [-1] * count]
    return e.op("Slice", e.names[node.inputs[0]], *map(e.integers, lists))


@writes(Place)
def write_place(e: Emission, node: Node) -> str:
    """Write Pad; where elements lie apart, each gets an axis of its own that is padded first."""
    assert isinstance(node.op, Place)
    (x,) = node.inputs
    name, shape = e.names[x], x.shape
    fill = e.constant(node.op.fill, node.dtype)
    if any(s != 1 and d != 1 for s, d in zip(node.op.step, shape, strict=True)):
        name, shape = _spread(e, name, shape, node.op.step, fill)
    pads = [(b, f - b - d) for b, d, f in zip(node.op.begin, shape, node.shape, strict=True)
            if isinstance(d, int) and isinstance(f, int)]  # fmt: skip
    axes = [a for a, d in enumerate(shape) if isinstance(d, int)]
    lists = [p[0] for p in pads] + [p[1] for p in pads]
    return e.op("Pad", name, e.integers(lists), fill, e.integers(axes))


def _spread(e: Emission, x: str, shape: Shape, step: Sequence[int], fill: str) -> tuple[str, Shape]:
    """Return x with ``step - 1`` fillings between its elements, and its shape."""
    apart: list[Size] = []
    padded: list[int] = []
    for d, s in zip(shape, step, strict=True):
        apart += [d, 1]
        padded += [0, s - 1]
    wide = tuple(d * s for d, s in zip(shape, step, strict=True))
    spread = tuple(
        d if s == 1 or not isinstance(d, int) else (d - 1) * s + 1 for d, s in zip(shape, step, strict=True)
    )
    y = e.reshape(x, tuple(apart))
    y = e.op("Pad", y, e.integers([0] * len(padded) + padded), fill)
    y = e.reshape(y, wide)
    return slice_of(e, y, wide, (0,) * len(shape), (1,) * len(shape), spread), spread


@writes(Concat)
def write_concat(e: Emission, node: Node) -> str:
    """Write Concat."""
    assert isinstance(node.op, Concat)
    return e.op("Concat", *e.inputs(node), axis=node.op.axis)
