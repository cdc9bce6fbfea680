"""What the losses share: checks with clear errors, labels, weights and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.errors import DTypeError, RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.ops.control import bounded
from graphc.ops.elementwise import not_equal, where
from graphc.ops.leaves import constant
from graphc.ops.movement import expand, reshape
from graphc.ops.reduce import mean, sum
from graphc.types import Shape, shape_text

INTEGERS = {"uint8": (0, 255), "int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
"""The dtypes that labels may have, with their ranges."""

Weight = Node | np.ndarray | Sequence[float] | Sequence[Sequence[float]] | float


def check_floats(op: str, **tensors: Node) -> None:
    """Refuse anything but floating-point tensors.

    Raises:
        DTypeError: one is no tensor, or not of a floating-point dtype.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Node):
            kind = type(tensor).__name__
            raise located(DTypeError, op, None, f"{name} must be a tensor, got {kind}")
        if not tensor.type.is_float:
            raise located(DTypeError, op, None, f"{name} must be floating-point, got {tensor.type}")


def check_same_shape(op: str, first: str, a: Node, second: str, b: Node) -> None:
    """Refuse tensors of different shapes: broadcasting inside a loss is almost always a mistake.

    Raises:
        ShapeError: the shapes differ.
    """
    if a.shape != b.shape:
        shapes = f"{first} {shape_text(a.shape)} and {second} {shape_text(b.shape)}"
        raise located(ShapeError, op, None, f"expected equal shapes, got {shapes}")


def check_reduction(op: str, reduction: str, known: tuple[str, ...] = ("none", "mean", "sum")) -> None:
    """Refuse an unknown reduction.

    Raises:
        RangeError: the reduction is unknown.
    """
    if reduction not in known:
        listed = ", ".join(map(repr, known))
        raise located(RangeError, op, None, f"reduction must be one of {listed}, got {reduction!r}")


def check_number(op: str, name: str, value: float, low: float, high: float = math.inf) -> float:
    """Return a finite number in [low, high].

    Raises:
        RangeError: it is not.
    """
    number = float(value) if isinstance(value, (int, float, np.number)) else math.nan
    if not (low <= number <= high and math.isfinite(number)):
        bounds = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and at least {low:g}"
        raise located(RangeError, op, None, f"{name} must be {bounds}, got {value!r}")
    return number


def check_labels(op: str, target: Node, shape: Shape) -> None:
    """Refuse labels that are not integers of the given shape.

    Raises:
        DTypeError, ShapeError: dtype or shape do not fit.
    """
    if not isinstance(target, Node):
        raise located(DTypeError, op, None, f"target must be a tensor, got {type(target).__name__}")
    if target.dtype not in INTEGERS:
        known = ", ".join(INTEGERS)
        raise located(DTypeError, op, None, f"labels must be {known}, got {target.type}")
    if target.shape != shape:
        got = shape_text(target.shape)
        raise located(ShapeError, op, None, f"expected labels of shape {shape_text(shape)}, got {got}")


def signs(op: str, target: Node, like: Node) -> Node:
    """Return labels that must be -1 or +1; integers are checked before anything runs, floats are not.

    Raises:
        DTypeError, ShapeError: dtype or shape do not fit.
    """
    check_floats(op, input=like)
    if isinstance(target, Node) and target.type.is_float:
        check_same_shape(op, "input", like, "target", target)
        return target
    check_labels(op, target, like.shape)
    if target.dtype == "uint8":
        raise located(DTypeError, op, None, f"labels are -1 or +1, which {target.type} cannot hold")
    return bounded(target, 1, 2, also=-1)


def as_weight(op: str, name: str, weight: Weight, dtype: str) -> Node:
    """Return weights as a tensor; numbers and arrays become constants of the dtype.

    Raises:
        DTypeError: they are not floating-point.
    """
    if isinstance(weight, Node):
        check_floats(op, **{name: weight})
        return weight
    try:
        return constant(np.asarray(weight, dtype=np.float64), dtype)
    except (TypeError, ValueError):
        raise located(DTypeError, op, None, f"{name} must be numbers, got {weight!r}") from None


def class_weights(op: str, weight: Weight, scores: Node, axis: int) -> Node:
    """Return one factor a class, expanded to the shape of the scores.

    Raises:
        ShapeError, DTypeError: there is not one number for each class.
    """
    tensor = as_weight(op, "weight", weight, scores.dtype)
    if tensor.shape != (scores.shape[axis],):
        wanted, got = shape_text((scores.shape[axis],)), shape_text(tensor.shape)
        raise located(ShapeError, op, None, f"weight must have shape {wanted}, one number a class, got {got}")
    return expand(reshape(tensor, (scores.shape[axis], *(1,) * (scores.rank - axis - 1))), scores.shape)


def element_weights(op: str, name: str, weight: Weight, like: Node) -> Node:
    """Return factors that broadcast to a tensor.

    Raises:
        ShapeError, DTypeError: they do not.
    """
    tensor = as_weight(op, name, weight, like.dtype)
    pairs = zip(reversed(tensor.shape), reversed(like.shape), strict=False)
    if tensor.rank > like.rank or any(a not in (1, b) for a, b in pairs):
        message = f"{name} {shape_text(tensor.shape)} does not broadcast to {shape_text(like.shape)}"
        raise located(ShapeError, op, None, message)
    return tensor


def reduced(op: str, values: Node, reduction: str) -> Node:
    """Return the values, their sum or their mean.

    Raises:
        RangeError: the reduction is unknown.
    """
    check_reduction(op, reduction)
    if reduction == "none":
        return values
    return sum(values) if reduction == "sum" else mean(values)


def quotient(total: Node, weight: Node) -> Node:
    """Return ``total / weight``; NaN with a gradient of zero where the weight is zero, as in PyTorch."""
    some = not_equal(weight, 0)
    return where(some, total / where(some, weight, 1.0), math.nan)


def squeezed(values: Node, axis: int) -> Node:
    """Return the values without an axis of extent 1."""
    return reshape(values, tuple(d for a, d in enumerate(values.shape) if a != axis))


def draw_labels(classes: int, *also: int) -> Any:
    """Return a sample's ``values``: normal arrays, and labels below ``classes`` for the last input."""

    def draw(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        floats = [rng.standard_normal(s) for s in shapes[:-1]]
        choices = np.array([*range(classes), *also])
        return [*floats, rng.choice(choices, size=shapes[-1])]

    return draw
