"""Losses that ask for a margin: hinge losses of two and of more classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.errors import RangeError, ShapeError
from graphc.functional import pick
from graphc.graph.node import Node, located
from graphc.losses.common import (
    Weight,
    check_floats,
    check_labels,
    check_number,
    check_reduction,
    class_weights,
    draw_labels,
    reduced,
    signs,
    squeezed,
)
from graphc.ops.control import bounded
from graphc.ops.elementwise import cast, equal, not_equal, relu, square, where
from graphc.ops.movement import reshape
from graphc.ops.reduce import iota, sum
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N, TensorType, shape_text


def hinge(scores: Node, target: Node, *, margin: float = 1.0, reduction: str = "mean") -> Node:
    """Return ``max(0, margin - y*score)`` for labels y of -1 or +1, integer or floating-point.

    Integer labels are checked when the module is called. At the kink the gradient is 0.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    sign = cast(signs("hinge", target, scores), scores.dtype)
    return reduced("hinge", relu(check_number("hinge", "margin", margin, 0) - sign * scores), reduction)


def hinge_embedding(distance: Node, target: Node, *, margin: float = 1.0, reduction: str = "mean") -> Node:
    """Return the distance where y is +1, ``max(0, margin - distance)`` where it is -1.

    Semantics of torch.nn.HingeEmbeddingLoss; at the kink the gradient is 0.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "hinge_embedding"
    same = equal(signs(name, target, distance), 1)
    apart = relu(check_number(name, "margin", margin, 0) - distance)
    return reduced(name, where(same, distance, apart), reduction)


def multi_margin(
    scores: Node,
    target: Node,
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: Weight | None = None,
    reduction: str = "mean",
) -> Node:
    """Return ``sum_k max(0, margin - s_y + s_k)^p / C`` over the classes k other than y.

    Class indices are checked when the module is called; ``weight`` multiplies a row by the factor of its
    class, and the mean still divides by the number of rows. Semantics of torch.nn.MultiMarginLoss.

    Shapes: scores (N, C), target (N,); or (C,) and ().

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "multi_margin"
    check_floats(name, input=scores)
    if scores.rank not in (1, 2) or not isinstance(scores.shape[-1], int):
        raise located(ShapeError, name, None, f"expected (N, C) or (C,), got {shape_text(scores.shape)}")
    if p not in (1, 2):
        raise located(RangeError, name, None, f"p must be 1 or 2, got {p!r}")
    check_reduction(name, reduction)
    axis, classes = scores.rank - 1, scores.shape[-1]
    check_labels(name, target, scores.shape[:-1])
    labels = bounded(target, 0, classes)
    short = relu(scores - pick(scores, labels, axis) + check_number(name, "margin", margin, 0))
    other = not_equal(iota(scores.shape, axis, "int32"), reshape(labels, (*scores.shape[:-1], 1)))
    terms = where(other, square(short) if p == 2 else short, 0.0)
    rows = sum(terms, axis, keepdims=True) / float(classes)
    if weight is not None:
        rows = rows * pick(class_weights(name, weight, scores, axis), labels, axis)
    return reduced(name, squeezed(rows, axis) if reduction == "none" else rows, reduction)


def _signed(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [rng.standard_normal(shapes[0]), rng.choice(np.array([-1, 1]), size=shapes[1])]


def _multi_margin(scores: np.ndarray, labels: np.ndarray, p: int) -> np.ndarray:
    rows = np.arange(len(labels))
    terms = np.maximum(0, 1 - scores[rows, labels][:, None] + scores) ** p
    terms[rows, labels] = 0
    return np.asarray(terms.sum(1) / scores.shape[1])


register(
    "hinge",
    lambda: [
        Sample(
            lambda a, y: hinge(a, y, reduction="none"), (float_type(N, 6), TensorType("int32", (N, 6))),
            lambda a, y: np.maximum(0, 1 - y * a), _signed,
        )
    ],
)  # fmt: skip
register(
    "hinge_embedding",
    lambda: [
        Sample(
            lambda a, y: hinge_embedding(a, y, margin=0.7), (float_type(N, 6), TensorType("int64", (N, 6))),
            lambda a, y: np.where(y == 1, a, np.maximum(0, 0.7 - a)).mean(), _signed,
        )
    ],
)  # fmt: skip
register(
    "multi_margin",
    lambda: [
        Sample(
            lambda a, y: multi_margin(a, y, reduction="sum"), (float_type(N, 5), TensorType("int32", (N,))),
            lambda a, y: _multi_margin(a, y, 1).sum(), draw_labels(5), label="p 1",
        ),
        Sample(
            lambda a, y: multi_margin(a, y, p=2, reduction="none"),
            (float_type(N, 5), TensorType("int32", (N,))),
            lambda a, y: _multi_margin(a, y, 2), draw_labels(5), label="p 2",
        ),
    ],
)  # fmt: skip
