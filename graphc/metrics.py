"""Metrics: scalars that a step reports beside its loss."""

from __future__ import annotations

from graphc.errors import DTypeError, RangeError, ShapeError
from graphc.functional import pick
from graphc.graph.node import Node, located
from graphc.ops.control import bounded
from graphc.ops.elementwise import cast, equal, greater, less
from graphc.ops.reduce import argmax, mean, sum
from graphc.types import Shape, shape_text


def accuracy(logits: Node, target: Node) -> Node:
    """Return the share of rows whose largest logit, the first of equal ones, is at the target's index.

    Shapes: logits (N, C, ...), integer target the same without C.

    Raises:
        ShapeError, DTypeError: an argument does not fit.
    """
    _check("accuracy", logits, target, (*logits.shape[:1], *logits.shape[2:]))
    return mean(cast(equal(argmax(logits, 1), target), logits.dtype))


def top_k_accuracy(logits: Node, target: Node, k: int = 5) -> Node:
    """Return the share of rows in which fewer than k logits are larger than the target's.

    Shapes: logits (N, C, ...), integer target the same without C.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "top_k_accuracy"
    _check(name, logits, target, (*logits.shape[:1], *logits.shape[2:]))
    classes = logits.shape[1]
    if not isinstance(classes, int) or not isinstance(k, int) or not 1 <= k <= classes:
        raise located(RangeError, name, None, f"k must be an int in 1..{classes}, got {k!r}")
    own = pick(logits, bounded(target, 0, classes), 1)
    larger = sum(cast(greater(logits, own), logits.dtype), 1)
    return mean(cast(less(larger, float(k)), logits.dtype))


def binary_accuracy(logits: Node, target: Node) -> Node:
    """Return the share of elements whose logit is positive where the target is, and only there.

    The labels may be 0 and 1 or -1 and +1, integer or floating-point, in the logits' shape.

    Raises:
        ShapeError: the shapes differ.
    """
    if logits.shape != target.shape:
        shapes = f"{shape_text(logits.shape)} and {shape_text(target.shape)}"
        raise located(ShapeError, "binary_accuracy", None, f"expected equal shapes, got {shapes}")
    return mean(cast(equal(greater(logits, 0.0), greater(target, 0)), logits.dtype))


def _check(op: str, logits: Node, target: Node, shape: Shape) -> None:
    if logits.rank < 2:
        raise located(ShapeError, op, None, f"expected logits (N, C, ...), got {shape_text(logits.shape)}")
    if target.dtype not in ("int32", "int64", "uint8"):
        raise located(DTypeError, op, None, f"needs integer labels, got {target.type}")
    if target.shape != shape:
        got = shape_text(target.shape)
        raise located(ShapeError, op, None, f"expected labels of shape {shape_text(shape)}, got {got}")
