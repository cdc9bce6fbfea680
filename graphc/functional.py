"""Functions composed of ops: softmax and its kin, written so that fusion makes one stable kernel of each."""

from __future__ import annotations

from graphc.errors import ShapeError
from graphc.graph.node import Node
from graphc.ops.control import stop_gradient
from graphc.ops.elementwise import cast, equal, exp, log, where
from graphc.ops.leaves import full
from graphc.ops.movement import reshape
from graphc.ops.reduce import Reduce, iota, sum
from graphc.types import normalise_axes, shape_text


def logsumexp(x: Node, axes: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Node:
    """Return ``log(sum(exp(x)))`` over the axes, without overflow; -inf where all elements are -inf."""
    chosen = normalise_axes(axes, x.rank)
    top = stop_gradient(_finite(Reduce("max", chosen)(x)))
    out = top + log(sum(exp(x - top), chosen, keepdims=True))
    return out if keepdims else reshape(out, [d for a, d in enumerate(x.shape) if a not in chosen])


def _finite(top: Node) -> Node:
    """Return the maximum, with 0 in place of an infinity: infinity minus infinity is no number."""
    return where(equal(top - top, 0.0), top, where(equal(top, top), full((), 0.0, top.dtype), top))


def softmax(x: Node, axis: int = -1) -> Node:
    """Return ``exp(x) / sum(exp(x))`` along the axis, without overflow."""
    (chosen,) = normalise_axes(axis, x.rank)
    top = stop_gradient(Reduce("max", (chosen,))(x))
    weights = exp(x - top)
    return weights / Reduce("sum", (chosen,))(weights)


def log_softmax(x: Node, axis: int = -1) -> Node:
    """Return ``x - log(sum(exp(x)))`` along the axis, without overflow."""
    (chosen,) = normalise_axes(axis, x.rank)
    return x - logsumexp(x, chosen, keepdims=True)


def one_hot(index: Node, classes: int, axis: int = -1, dtype: str = "float32") -> Node:
    """Return 1 where a new axis of extent ``classes`` equals the index, else 0; never stored."""
    rank = index.rank + 1
    axis %= rank
    shape = (*index.shape[:axis], 1, *index.shape[axis:])
    full_shape = (*index.shape[:axis], classes, *index.shape[axis:])
    positions = iota(full_shape, axis, "int32" if index.dtype != "int64" else "int64")
    return cast(equal(positions, reshape(index, shape)), dtype)


def pick(x: Node, index: Node, axis: int = 1) -> Node:
    """Return the elements of x at an index along an axis, which stays with extent 1.

    Written as a masked sum, which fuses with the reductions of x along that axis.

    Raises:
        ShapeError: the index's shape is not x's without the axis.
    """
    axis %= x.rank
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    if index.shape != rest:
        raise ShapeError(f"expected indices of shape {shape_text(rest)}, got {shape_text(index.shape)}")
    positions = iota(x.shape, axis, "int32" if index.dtype != "int64" else "int64")
    target = reshape(index, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return sum(where(equal(positions, target), x, 0.0), axis, keepdims=True)
