"""Movement: ops that only say where an element lies. Each lowers to a strided view or to a copy.

``View`` is NumPy's notion: an offset and a stride per axis into a buffer. Reshape, transpose, expand,
slice and flip rewrite views and cost nothing; ``Place`` and ``Concat`` write into a part of a buffer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphc.errors import ShapeError
from graphc.graph.node import Node, Op, names_the_line, operators
from graphc.ops.leaves import full
from graphc.ops.registry import float_type, op
from graphc.types import (
    Extent,
    N,
    Shape,
    Size,
    TensorType,
    broadcast_shapes,
    contiguous_strides,
    divide,
    product,
    shape_text,
    static_shape,
)


@dataclass(frozen=True, slots=True)
class View:
    """Where the elements of a tensor lie: ``offset + sum(index[a] * strides[a])``, in elements."""

    shape: Shape
    strides: Shape
    offset: Size = 0

    @classmethod
    def contiguous(cls, shape: Shape) -> View:
        """Return the row-major view of a whole buffer."""
        return cls(shape, contiguous_strides(shape))

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements fill their buffer from its start in row-major order."""
        if self.offset != 0:
            return False
        pairs = zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        return all(extent == 1 or stride == want for extent, stride, want in pairs)


class Movement(Op):
    """An op that lowers to another view of the same buffer."""

    @abstractmethod
    def view(self, view: View, shape: Shape) -> View | None:
        """Return the view of the result, or None where no strides express it (then a copy is made)."""


def reshape_view(view: View, shape: Shape) -> View | None:
    """Return strides that read ``view`` as ``shape``, or None; axes are matched up in groups."""
    old = [(d, s) for d, s in zip(view.shape, view.strides, strict=True) if d != 1]
    strides: list[Size] = []
    position = 0
    pending: Size = 1  # what is left of the current group of old axes, below the new axes done so far
    group_stride: Size = 0
    for extent in shape:
        if extent == 1:
            strides.append(0)
            continue
        while pending == 1 or divide(pending, extent) is None:
            if position == len(old):
                return None
            size, stride = old[position]
            if pending != 1 and group_stride != stride * size:
                return None
            pending, group_stride, position = pending * size, stride, position + 1
        rest = divide(pending, extent)
        assert rest is not None
        strides.append(group_stride * rest)
        pending = rest
    return View(shape, tuple(strides), view.offset) if pending == 1 and position == len(old) else None


@op(lambda cls: [(cls((N, 6)), (float_type(N, 2, 3),)), (cls((N, 3, 1, 2)), (float_type(N, 6),))])
@dataclass(frozen=True)
class Reshape(Movement):
    """The same elements in row-major order under another shape."""

    label: ClassVar[str] = "reshape"
    shape: Shape

    @property
    def attributes(self) -> str:
        """The new shape."""
        return shape_text(self.shape)

    def infer(self, *types: TensorType) -> TensorType:
        """Require as many elements after as before."""
        if product(self.shape) != types[0].size:
            raise ShapeError(f"cannot reshape {shape_text(types[0].shape)} to {shape_text(self.shape)}")
        return types[0].with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Reshape back."""
        return (reshape(cotangent, node.inputs[0].shape),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Reshape."""
        return arrays[0].reshape(static_shape(self.shape))

    def view(self, view: View, shape: Shape) -> View | None:
        """Regroup the strides."""
        return reshape_view(view, shape)


@op(lambda cls: [(cls((0, 2, 1)), (float_type(N, 2, 3),)), (cls((2, 0, 1)), (float_type(N, 2, 3),))])
@dataclass(frozen=True)
class Transpose(Movement):
    """The axes in another order."""

    label: ClassVar[str] = "transpose"
    order: tuple[int, ...]

    @property
    def attributes(self) -> str:
        """The order of the axes."""
        return str(self.order)

    def infer(self, *types: TensorType) -> TensorType:
        """Require a permutation of the axes."""
        if sorted(self.order) != list(range(types[0].rank)):
            raise ShapeError(f"{self.order} is no permutation of the axes of {shape_text(types[0].shape)}")
        return types[0].with_shape(tuple(types[0].shape[a] for a in self.order))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Transpose back."""
        return (transpose(cotangent, tuple(int(a) for a in np.argsort(self.order))),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Transpose."""
        return arrays[0].transpose(self.order)

    def view(self, view: View, shape: Shape) -> View | None:
        """Permute the strides."""
        return View(shape, tuple(view.strides[a] for a in self.order), view.offset)


@op(
    lambda cls: [
        (cls((N, 2, 3, 4)), (float_type(N, 1, 3, 1),)),
        (cls((5, 2, 3, 4)), (float_type(3, 1),)),
    ]
)
@dataclass(frozen=True)
class Expand(Movement):
    """Repetition along axes of extent 1 and new leading axes, by NumPy's rule of broadcasting."""

    label: ClassVar[str] = "expand"
    shape: Shape

    @property
    def attributes(self) -> str:
        """The new shape."""
        return shape_text(self.shape)

    def infer(self, *types: TensorType) -> TensorType:
        """Require that broadcasting gives the new shape."""
        if broadcast_shapes(types[0].shape, self.shape) != self.shape:
            raise ShapeError(f"cannot expand {shape_text(types[0].shape)} to {shape_text(self.shape)}")
        return types[0].with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Sum over what was repeated."""
        return (operators["sum_to"](cotangent, node.inputs[0].shape),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Broadcast."""
        return np.broadcast_to(arrays[0], static_shape(self.shape))

    def view(self, view: View, shape: Shape) -> View | None:
        """Give repeated axes stride 0."""
        new = len(shape) - len(view.shape)
        strides = [
            0 if a < new or (view.shape[a - new] == 1 and shape[a] != 1) else view.strides[a - new]
            for a in range(len(shape))
        ]
        return View(shape, tuple(strides), view.offset)


@op(lambda cls: [(cls((0, 1, 0), (1, 2, 1), (N, 2, 2)), (float_type(N, 5, 3),))])
@dataclass(frozen=True)
class Slice(Movement):
    """Every ``step``-th element from ``begin``, ``shape`` of them, per axis."""

    label: ClassVar[str] = "slice"
    begin: tuple[int, ...]
    step: tuple[int, ...]
    shape: Shape

    @property
    def attributes(self) -> str:
        """Begin, step and extent per axis."""
        return ", ".join(f"{b}:{s}:{e}" for b, s, e in zip(self.begin, self.step, self.shape, strict=True))

    def infer(self, *types: TensorType) -> TensorType:
        """Require that every index lies inside; the run-time batch is taken whole."""
        if not len(self.begin) == len(self.step) == len(self.shape) == types[0].rank:
            raise ShapeError(f"slice of rank {len(self.begin)} of {shape_text(types[0].shape)}")
        for axis, (b, s, e, d) in enumerate(
            zip(self.begin, self.step, self.shape, types[0].shape, strict=True)
        ):
            if isinstance(d, int) and isinstance(e, int):
                inside = s >= 1 and b >= 0 and e >= 1 and b + (e - 1) * s < d
            else:
                inside = b == 0 and s == 1 and e == d
            if not inside:
                raise ShapeError(f"axis {axis} of extent {d}: cannot take {e} elements from {b} by {s}")
        return types[0].with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Place the cotangent among zeros."""
        return (Place(node.inputs[0].shape, self.begin, self.step, 0.0)(cotangent),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Slice."""
        return np.asarray(arrays[0][_index(self.begin, self.step, static_shape(self.shape))])

    def view(self, view: View, shape: Shape) -> View | None:
        """Move the offset and multiply the strides."""
        offset = view.offset
        for b, stride in zip(self.begin, view.strides, strict=True):
            offset = offset + b * stride
        return View(shape, tuple(s * t for s, t in zip(self.step, view.strides, strict=True)), offset)


def _index(begin: Sequence[int], step: Sequence[int], shape: Sequence[int]) -> Any:
    return tuple(slice(b, b + (e - 1) * s + 1, s) for b, s, e in zip(begin, step, shape, strict=True))


@op(lambda cls: [(cls((1,)), (float_type(N, 3),)), (cls((0, 2)), (float_type(N, 3, 2),))])
@dataclass(frozen=True)
class Flip(Movement):
    """The elements in reverse order along the axes."""

    label: ClassVar[str] = "flip"
    axes: tuple[int, ...]

    @property
    def attributes(self) -> str:
        """The reversed axes."""
        return str(self.axes)

    def infer(self, *types: TensorType) -> TensorType:
        """Keep the type."""
        return types[0]

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Flip back."""
        return (Flip(self.axes)(cotangent),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Flip."""
        return np.flip(arrays[0], self.axes)

    def view(self, view: View, shape: Shape) -> View | None:
        """Start at the last element and walk backwards."""
        offset, strides = view.offset, list(view.strides)
        for axis in self.axes:
            offset = offset + strides[axis] * (shape[axis] + (-1))
            strides[axis] = -strides[axis]
        return View(shape, tuple(strides), offset)


@op(
    lambda cls: [
        (cls((N, 7, 4), (0, 1, 2), (1, 2, 1), 0.5), (float_type(N, 3, 2),)),
        (cls((N, 5), (0, 2), (1, 1), 0.0), (float_type(N, 3),)),
    ]
)
@dataclass(frozen=True)
class Place(Op):
    """A constant everywhere, except the input at ``begin + index * step``: padding and its kin."""

    label: ClassVar[str] = "place"
    shape: Shape
    begin: tuple[int, ...]
    step: tuple[int, ...]
    fill: float

    @property
    def attributes(self) -> str:
        """Where the elements go."""
        return f"{shape_text(self.shape)} from {self.begin} by {self.step}, rest {self.fill:g}"

    def infer(self, *types: TensorType) -> TensorType:
        """Require that every element lands inside."""
        Slice(self.begin, self.step, types[0].shape).infer(types[0].with_shape(self.shape))
        return types[0].with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Slice the cotangent."""
        return (Slice(self.begin, self.step, node.inputs[0].shape)(cotangent),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Fill, then assign to the slice."""
        out = np.full(static_shape(self.shape), self.fill, dtype=arrays[0].dtype)
        out[_index(self.begin, self.step, arrays[0].shape)] = arrays[0]
        return out


@op(
    lambda cls: [
        (cls(1), (float_type(N, 2, 3), float_type(N, 1, 3), float_type(N, 4, 3))),
        (cls(2), (float_type(N, 2, 1), float_type(N, 2, 3))),
    ]
)
@dataclass(frozen=True)
class Concat(Op):
    """The inputs one after the other along an axis."""

    label: ClassVar[str] = "concat"
    axis: int

    @property
    def attributes(self) -> str:
        """The axis."""
        return f"axis {self.axis}"

    def infer(self, *types: TensorType) -> TensorType:
        """Require equal shapes but for the axis, and equal dtypes."""
        first = types[0]
        if not 0 <= self.axis < first.rank:
            raise ShapeError(f"axis {self.axis} is out of range for rank {first.rank}")
        total: Size = 0
        for t in types:
            rest = [(s[: self.axis], s[self.axis + 1 :]) for s in (t.shape, first.shape)]
            if t.dtype != first.dtype or t.rank != first.rank or rest[0] != rest[1]:
                raise ShapeError(f"axis {self.axis}: {', '.join(str(u) for u in types)} do not match")
            total = total + t.shape[self.axis]
        return first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Give every input its slice."""
        if any(not isinstance(i.shape[self.axis], int) for i in node.inputs):
            raise ShapeError("concat along the run-time batch has no derivative yet")
        parts: list[Node | None] = []
        start = 0
        for i in node.inputs:
            begin = tuple(start if a == self.axis else 0 for a in range(i.rank))
            parts.append(Slice(begin, (1,) * i.rank, i.shape)(cotangent))
            extent = i.shape[self.axis]
            assert isinstance(extent, int)
            start += extent
        return parts

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Concatenate."""
        return np.concatenate(arrays, self.axis)


@names_the_line
def reshape(x: Node, shape: Sequence[Size]) -> Node:
    """Return the elements under another shape; one extent may be -1.

    Raises:
        ShapeError: the numbers of elements differ.
    """
    target = tuple(shape)
    if not all(isinstance(d, Extent) or (isinstance(d, int) and (d >= 1 or d == -1)) for d in target):
        raise ShapeError(f"reshape: extents must be positive ints, x.shape's batch or one -1, got {target}")
    if target.count(-1) == 1:
        known = product(d for d in target if d != -1)
        missing = divide(x.type.size, known)
        if missing is None:
            raise ShapeError(f"reshape: cannot divide {shape_text(x.shape)} into {shape_text(target)}")
        target = tuple(missing if d == -1 else d for d in target)
    if target == x.shape:
        return x
    while isinstance(x.op, Reshape):
        x = x.inputs[0]
    return x if target == x.shape else Reshape(target)(x)


@names_the_line
def transpose(x: Node, order: Sequence[int] | None = None) -> Node:
    """Return the axes in another order; reversed when none is given."""
    listed = tuple(reversed(range(x.rank))) if order is None else tuple(order)
    if not all(isinstance(a, int) and -x.rank <= a < x.rank for a in listed):
        raise ShapeError(f"transpose: {listed} is no permutation of the axes of {shape_text(x.shape)}")
    listed = tuple(a % x.rank for a in listed)
    return x if listed == tuple(range(x.rank)) else Transpose(listed)(x)


@names_the_line
def expand(x: Node, shape: Shape) -> Node:
    """Return x repeated to a larger shape."""
    return x if x.shape == shape else Expand(shape)(x)


def _axis(op: str, axis: int, x: Node) -> tuple[int]:
    """Return a non-negative axis of x."""
    if not isinstance(axis, int) or not -x.rank <= axis < x.rank:
        raise ShapeError(f"{op}: axis {axis!r} is out of range for rank {x.rank}")
    return (axis % x.rank,)


@names_the_line
def concat(tensors: Sequence[Node], axis: int = 0) -> Node:
    """Return the tensors one after the other along an axis."""
    if not tensors:
        raise ShapeError("concat: needs at least one tensor")
    (chosen,) = _axis("concat", axis, tensors[0])
    return tensors[0] if len(tensors) == 1 else Concat(chosen)(*tensors)


@names_the_line
def pad(x: Node, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Node:
    """Return x with (before, after) elements of ``value`` around every axis."""
    if len(widths) != x.rank or any(w < 0 for pair in widths for w in pair):
        raise ShapeError(f"pad: needs {x.rank} pairs of non-negative widths, got {tuple(widths)}")
    if any(isinstance(d, Extent) and (lo or hi) for d, (lo, hi) in zip(x.shape, widths, strict=True)):
        raise ShapeError(f"pad: the run-time batch of {shape_text(x.shape)} cannot be padded")
    if not any(w for pair in widths for w in pair):
        return x
    shape = tuple(d + lo + hi for d, (lo, hi) in zip(x.shape, widths, strict=True))
    return Place(shape, tuple(lo for lo, _ in widths), (1,) * x.rank, float(value))(x)


@names_the_line
def split(x: Node, sections: int | Sequence[int], axis: int = 0) -> list[Node]:
    """Return the parts of x along an axis: equal ones for an int, else of the given extents.

    Raises:
        ShapeError: the parts do not add up to the extent, or the axis is the run-time batch.
    """
    (axis,) = _axis("split", axis, x)
    extent = x.shape[axis]
    if not isinstance(extent, int):
        raise ShapeError("split: the run-time batch cannot be split")
    if isinstance(sections, int):
        if sections < 1 or extent % sections:
            raise ShapeError(f"split: extent {extent} is not divisible into {sections} equal parts")
        sections = [extent // sections] * sections
    if sum(sections) != extent or min(sections, default=0) < 1:
        raise ShapeError(f"split: parts {tuple(sections)} do not add up to extent {extent}")
    parts, start = [], 0
    for part in sections:
        index = tuple(slice(start, start + part) if a == axis else slice(None) for a in range(x.rank))
        parts.append(getitem(x, index))
        start += part
    return parts


@names_the_line
def getitem(x: Node, index: object) -> Node:
    """Return ``x[index]`` for ints, slices, ``None`` and ``...`` (NumPy's basic indexing).

    Raises:
        ShapeError: an index is out of range, or touches the run-time batch.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    given = sum(i is not None and i is not Ellipsis for i in items)
    if given > x.rank or sum(i is Ellipsis for i in items) > 1:
        raise ShapeError(f"index {index!r} does not fit {shape_text(x.shape)}")
    fill = [slice(None)] * (x.rank - given)
    where = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    items[where : where + 1] = fill
    begin, step, extents, flips = [], [], [], []
    shape: list[Size] = []
    axis = 0
    for item in items:
        if item is None:
            shape.append(1)
            continue
        extent = x.shape[axis]
        if item == slice(None):
            bounds: tuple[int, int, Size] = (0, 1, extent)
        elif not isinstance(extent, int):
            raise ShapeError(f"index {index!r}: the run-time batch of {shape_text(x.shape)} is taken whole")
        elif isinstance(item, slice):
            taken = range(*item.indices(extent))
            if not len(taken):
                raise ShapeError(f"index {index!r} of {shape_text(x.shape)} takes no element")
            if taken.step < 0:
                flips.append(axis)
                taken = taken[::-1]
            bounds = (taken.start, taken.step, len(taken))
        elif isinstance(item, int) and -extent <= item < extent:
            bounds = (item % extent, 1, 1)
        else:
            raise ShapeError(f"index {index!r} does not fit {shape_text(x.shape)}")
        if not isinstance(item, int):
            shape.append(bounds[2])
        begin.append(bounds[0])
        step.append(bounds[1])
        extents.append(bounds[2])
        axis += 1
    if tuple(extents) != x.shape or any(s != 1 for s in step):
        x = Slice(tuple(begin), tuple(step), tuple(extents))(x)
    if flips:
        x = Flip(tuple(flips))(x)
    return reshape(x, shape)


def zeros_like(x: Node) -> Node:
    """Return zeros of x's type."""
    return full(x.shape, 0.0, x.dtype)


operators["getitem"] = getitem
