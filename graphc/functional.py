"""Functions composed of ops: softmax and its kin, written so that fusion makes one stable kernel of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.errors import DTypeError, RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.ops.control import stop_gradient
from graphc.ops.elementwise import cast, equal, exp, log, where
from graphc.ops.leaves import full
from graphc.ops.movement import reshape
from graphc.ops.reduce import Reduce, iota, sum
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N, TensorType, normalise_axes, shape_text


def _axes(op: str, x: Node, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return sorted non-negative axes of a floating-point tensor."""
    if not isinstance(x, Node) or not x.type.is_float:
        got = x.type if isinstance(x, Node) else type(x).__name__
        raise located(DTypeError, op, None, f"needs a floating-point tensor, got {got}")
    try:
        return normalise_axes(axes, x.rank)
    except ShapeError as error:
        raise located(ShapeError, op, None, str(error)) from None


def logsumexp(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """Return ``log(sum(exp(x)))`` over the axes (None: all of them), without overflow.

    Numerics: -inf where all elements are -inf, +inf where one is +inf, NaN where one is NaN.

    Raises:
        ShapeError, DTypeError: an axis is out of range, or x is not floating-point.
    """
    chosen = _axes("logsumexp", x, axes)
    if not chosen:
        return x
    top = stop_gradient(_finite(Reduce("max", chosen)(x)))
    out = top + log(sum(exp(x - top), chosen, keepdims=True))
    return out if keepdims else reshape(out, [d for a, d in enumerate(x.shape) if a not in chosen])


def _finite(top: Node) -> Node:
    """Return the maximum, with 0 in place of an infinity: infinity minus infinity is no number."""
    return where(equal(top - top, 0.0), top, where(equal(top, top), full((), 0.0, top.dtype), top))


def softmax(x: Node, axis: int = -1) -> Node:
    """Return ``exp(x) / sum(exp(x))`` along the axis, without overflow.

    Numerics: as in PyTorch, a slice that holds NaN or +inf, or nothing but -inf, gives NaN.

    Raises:
        ShapeError, DTypeError: the axis is out of range, or x is not floating-point.
    """
    (chosen,) = _axes("softmax", x, axis)
    top = stop_gradient(Reduce("max", (chosen,))(x))
    weights = exp(x - top)
    return weights / Reduce("sum", (chosen,))(weights)


def log_softmax(x: Node, axis: int = -1) -> Node:
    """Return ``x - log(sum(exp(x)))`` along the axis, without overflow.

    Numerics: the maximum is subtracted first, so that large values lose no digits; NaN as in softmax.

    Raises:
        ShapeError, DTypeError: the axis is out of range, or x is not floating-point.
    """
    (chosen,) = _axes("log_softmax", x, axis)
    shifted = x - stop_gradient(Reduce("max", (chosen,))(x))
    return shifted - log(sum(exp(shifted), chosen, keepdims=True))


def one_hot(index: Node, classes: int, axis: int = -1, dtype: str = "float32") -> Node:
    """Return 1 where a new axis of extent ``classes`` equals the index, else 0; never stored.

    An index outside 0..classes-1 gives zeros.

    Raises:
        ShapeError, DTypeError, RangeError: the axis, the index's dtype or the number of classes does not fit.
    """
    _check_index("one_hot", index)
    rank = index.rank + 1
    if not -rank <= axis < rank:
        raise located(ShapeError, "one_hot", None, f"axis {axis} is out of range for rank {rank}")
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise located(RangeError, "one_hot", None, f"classes must be a positive int, got {classes!r}")
    axis %= rank
    shape = (*index.shape[:axis], 1, *index.shape[axis:])
    full_shape = (*index.shape[:axis], classes, *index.shape[axis:])
    positions = iota(full_shape, axis, "int32" if index.dtype != "int64" else "int64")
    return cast(equal(positions, reshape(index, shape)), dtype)


def pick(x: Node, index: Node, axis: int = 1) -> Node:
    """Return the elements of x at an index along an axis, which stays with extent 1.

    Written as a masked sum, which fuses with the reductions of x along that axis. An index outside the
    axis gives 0.

    Raises:
        ShapeError, DTypeError: the index's shape is not x's without the axis, or it holds no integers.
    """
    (axis,) = _axes("pick", x, axis)
    _check_index("pick", index)
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    if index.shape != rest:
        message = f"expected indices of shape {shape_text(rest)}, got {shape_text(index.shape)}"
        raise located(ShapeError, "pick", None, message)
    positions = iota(x.shape, axis, "int32" if index.dtype != "int64" else "int64")
    target = reshape(index, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return sum(where(equal(positions, target), x, 0.0), axis, keepdims=True)


def _check_index(op: str, index: Node) -> None:
    if not isinstance(index, Node) or index.dtype not in ("int32", "int64", "uint8"):
        got = index.type if isinstance(index, Node) else type(index).__name__
        raise located(DTypeError, op, None, f"needs integer indices, got {got}")


def _log_sum(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the logarithm of the sum, keeping the axes, by adding logarithms pair by pair."""
    for axis in axes:
        x = np.logaddexp.reduce(x, axis=axis, keepdims=True)
    return x


def _indexed(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Draw floats for all inputs but the last, which gets indices below 4."""
    return [*(rng.standard_normal(s) for s in shapes[:-1]), rng.integers(0, 4, shapes[-1])]


register(
    "logsumexp",
    lambda: [
        Sample(lambda x: logsumexp(x, 1), (float_type(N, 7),), lambda x: _log_sum(x, (1,))[:, 0]),
        Sample(
            lambda x: logsumexp(x, (0, 2), keepdims=True),
            (float_type(N, 3, 4),),
            lambda x: _log_sum(x, (0, 2)),
        ),
    ],
)
register(
    "softmax",
    lambda: [
        Sample(softmax, (float_type(N, 7),), lambda x: np.exp(x - _log_sum(x, (1,)))),
        Sample(lambda x: softmax(x, 1), (float_type(N, 3, 4),), lambda x: np.exp(x - _log_sum(x, (1,)))),
    ],
)
register(
    "log_softmax",
    lambda: [
        Sample(log_softmax, (float_type(N, 7),), lambda x: x - _log_sum(x, (1,))),
        Sample(lambda x: log_softmax(x, 0), (float_type(N, 4),), lambda x: x - _log_sum(x, (0,))),
    ],
)
register(
    "one_hot",
    lambda: [
        Sample(
            lambda y: one_hot(y, 4, axis=1),
            (TensorType("int64", (N, 3)),),
            lambda y: np.moveaxis(np.eye(4)[y], -1, 1),
            _indexed,
        )
    ],
)
register(
    "pick",
    lambda: [
        Sample(
            lambda x, y: pick(x, y, -2),
            (float_type(N, 4, 3), TensorType("int32", (N, 3))),
            lambda x, y: np.take_along_axis(x, y[:, None], 1),
            _indexed,
        )
    ],
)
