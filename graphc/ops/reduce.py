"""Reductions: sum, max and min over axes, and the index of an extreme. Reduced axes stay with extent 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphc.errors import DTypeError, RangeError, ShapeError
from graphc.graph.node import Node, Op, names_the_line, operators
from graphc.ops.leaves import BatchExtent, Iota
from graphc.ops.movement import expand, reshape
from graphc.ops.registry import float_type, op
from graphc.types import N, Shape, Size, TensorType, normalise_axes, product

ReduceKind = Literal["sum", "max", "min", "argmax", "argmin"]


def _reduced_shape(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(1 if a in axes else d for a, d in enumerate(shape))


@op(
    lambda cls: [
        (cls("sum", (1,)), (float_type(N, 3, 2),)),
        (cls("sum", (0,)), (float_type(N, 5),)),
        (cls("sum", (0, 2, 3)), (float_type(N, 3, 4, 5),)),
        (cls("sum", (0, 1)), (float_type(N, 37),)),
        (cls("max", (1,)), (float_type(N, 19),)),
        (cls("min", (0, 1)), (float_type(N, 4),)),
    ]
)
@dataclass(frozen=True)
class Reduce(Op):
    """Sum, maximum or minimum over axes, which stay with extent 1.

    Numerics: NaN wins in max and min, as in PyTorch; ties share the gradient evenly (torch.amax).
    """

    label: ClassVar[str] = "reduce"
    kind: Literal["sum", "max", "min"]
    axes: tuple[int, ...]

    @property
    def title(self) -> str:
        """The kind of reduction."""
        return self.kind

    @property
    def attributes(self) -> str:
        """The reduced axes."""
        return f"axes {self.axes}"

    def infer(self, *types: TensorType) -> TensorType:
        """Set the reduced extents to 1."""
        if types[0].dtype == "bool":
            raise DTypeError(f"{self.kind} of a bool tensor; cast it first")
        return types[0].with_shape(_reduced_shape(types[0].shape, self.axes))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Spread the cotangent over what was reduced: evenly for a sum, over the extremes otherwise."""
        (x,) = node.inputs
        if self.kind == "sum":
            return (expand(cotangent, x.shape),)
        extreme = operators["cast"](operators["equal"](x, node), x.dtype)
        return (extreme * (cotangent / Reduce("sum", self.axes)(extreme)),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Reduce."""
        return np.asarray(getattr(np, self.kind)(arrays[0], axis=self.axes, keepdims=True))


@op(lambda cls: [(cls("argmax", 1), (float_type(N, 7),)), (cls("argmin", 2), (float_type(N, 2, 5),))])
@dataclass(frozen=True)
class ArgReduce(Op):
    """The index of the first maximum or minimum along one axis, which stays with extent 1; int64."""

    label: ClassVar[str] = "arg_reduce"
    kind: Literal["argmax", "argmin"]
    axis: int

    @property
    def title(self) -> str:
        """The kind of reduction."""
        return self.kind

    @property
    def attributes(self) -> str:
        """The axis."""
        return f"axis {self.axis}"

    @property
    def axes(self) -> tuple[int, ...]:
        """The reduced axes."""
        return (self.axis,)

    def infer(self, *types: TensorType) -> TensorType:
        """Set the reduced extent to 1; indices are int64."""
        return TensorType("int64", _reduced_shape(types[0].shape, self.axes))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Return nothing: an index is piecewise constant."""
        return (None,)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Find the index."""
        find = np.argmax if self.kind == "argmax" else np.argmin
        return np.asarray(find(arrays[0], axis=self.axis, keepdims=True))


def _squeezed(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return x if keepdims else reshape(x, [d for a, d in enumerate(x.shape) if a not in axes])


def _reduce(
    kind: Literal["sum", "max", "min"], x: Node, axes: int | Sequence[int] | None, keepdims: bool
) -> Node:
    chosen = normalise_axes(axes, x.rank)
    return _squeezed(Reduce(kind, chosen)(x) if chosen else x, chosen, keepdims)


@names_the_line
def sum(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """Return the sum over the axes (None: all of them)."""
    return _reduce("sum", x, axes, keepdims)


@names_the_line
def max(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """Return the maximum over the axes; NaN wins; ties share the gradient."""
    return _reduce("max", x, axes, keepdims)


@names_the_line
def min(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """Return the minimum over the axes; NaN wins; ties share the gradient."""
    return _reduce("min", x, axes, keepdims)


def extent(size: Size, like: Node) -> Node | float:
    """Return a size as a number: a float where it is fixed, a scalar node where it depends on the batch."""
    return float(size) if isinstance(size, int) else BatchExtent(like.dtype, size)()


@names_the_line
def mean(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """Return the mean over the axes (None: all of them).

    Raises:
        DTypeError: x is not floating-point.
    """
    if not x.type.is_float:
        raise DTypeError(f"mean: needs a floating-point tensor, got {x.type}")
    chosen = normalise_axes(axes, x.rank)
    total = sum(x, chosen, keepdims=True) / extent(product(x.shape[a] for a in chosen), x)
    return _squeezed(total, chosen, keepdims)


def _arg(kind: Literal["argmax", "argmin"], x: Node, axis: int | None, keepdims: bool) -> Node:
    if axis is None:
        x, axis = reshape(x, (x.type.size,)), 0
    if not -x.rank <= axis < x.rank:
        raise RangeError(f"{kind}: axis {axis} is out of range for rank {x.rank}")
    return _squeezed(ArgReduce(kind, axis % x.rank)(x), (axis % x.rank,), keepdims)


@names_the_line
def argmax(x: Node, axis: int | None = None, keepdims: bool = False) -> Node:
    """Return the int64 index of the first maximum along the axis (None: of the flattened tensor)."""
    return _arg("argmax", x, axis, keepdims)


@names_the_line
def argmin(x: Node, axis: int | None = None, keepdims: bool = False) -> Node:
    """Return the int64 index of the first minimum along the axis (None: of the flattened tensor)."""
    return _arg("argmin", x, axis, keepdims)


def sum_to(x: Node, shape: Shape) -> Node:
    """Return x summed over what broadcasting had repeated, so that it has the given shape again."""
    new = x.rank - len(shape)
    axes = tuple(a for a in range(x.rank) if a < new or (shape[a - new] == 1 and x.shape[a] != 1))
    if not axes and x.shape != shape:
        raise ShapeError(f"cannot sum {x.type} to {shape}")
    return reshape(Reduce("sum", axes)(x), shape) if axes else x


def iota(shape: Shape, axis: int, dtype: Literal["int32", "int64"] = "int64") -> Node:
    """Return the index along one axis."""
    return Iota(dtype, shape, axis)()


operators["sum_to"] = sum_to
