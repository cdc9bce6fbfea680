"""Losses over classes: cross-entropy and negative log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.errors import RangeError, ShapeError
from graphc.functional import pick
from graphc.graph.node import Node, located
from graphc.losses.common import (
    INTEGERS,
    Weight,
    check_floats,
    check_labels,
    check_number,
    check_reduction,
    check_same_shape,
    class_weights,
    draw_labels,
    quotient,
    reduced,
    squeezed,
)
from graphc.ops.control import bounded, stop_gradient
from graphc.ops.elementwise import cast, exp, log, not_equal, where
from graphc.ops.movement import reshape
from graphc.ops.reduce import Reduce, sum
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N, TensorType, shape_text


def cross_entropy(
    logits: Node,
    target: Node,
    *,
    weight: Weight | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Node:
    """Return the cross-entropy of softmax(logits) against class indices or probabilities.

    Class indices are integers, in 0..C-1 or ``ignore_index``; anything else is refused when the module is
    called. Rows that carry ``ignore_index`` count neither in the sum nor in the mean; by default there is no
    such index, where PyTorch silently ignores -100.
    Probabilities have the logits' shape and dtype. ``weight`` is one factor a class; the mean over class
    indices is then the weighted mean. Semantics of torch.nn.CrossEntropyLoss.

    Shapes: logits (N, C), (N, C, d1, ...) or (C,); indices the same without C.

    Numerics: the row's maximum is subtracted first, and from the picked logit too, so that nothing overflows
    and large logits lose no digits. The mean over no row is NaN, with a gradient of zero.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "cross_entropy"
    classes, axis = _class_axis(name, logits)
    check_reduction(name, reduction)
    smoothing = check_number(name, "label_smoothing", label_smoothing, 0, 1)
    shifted = logits - stop_gradient(Reduce("max", (axis,))(logits))
    log_total = log(Reduce("sum", (axis,))(exp(shifted)))
    factors = None if weight is None else class_weights(name, weight, logits, axis)
    if isinstance(target, Node) and target.type.is_float:
        check_same_shape(name, "logits", logits, "probabilities", target)
        shares = target * (1 - smoothing) + smoothing / classes if smoothing else target
        rows = _expected(shifted, log_total, shares if factors is None else shares * factors, axis)
        return reduced(name, squeezed(rows, axis) if reduction == "none" else rows, reduction)
    labels = _Labels(name, logits, target, ignore_index, axis)
    rows = log_total - labels.pick(shifted)
    share = None if factors is None else labels.pick(factors)
    rows = rows if share is None else rows * share
    if smoothing:
        even = log_total * float(classes) - sum(shifted, axis, keepdims=True)
        if factors is not None:
            even = _expected(shifted, log_total, factors, axis)
        rows = rows * (1 - smoothing) + even * (smoothing / classes)
    return labels.reduced(rows, share, reduction)


def nll(
    log_probabilities: Node,
    target: Node,
    *,
    weight: Weight | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Node:
    """Return minus the log-probability of each row's class. Semantics of torch.nn.NLLLoss.

    Shapes, labels, ``weight`` and ``ignore_index`` as for :func:`cross_entropy`.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "nll"
    _, axis = _class_axis(name, log_probabilities)
    check_reduction(name, reduction)
    labels = _Labels(name, log_probabilities, target, ignore_index, axis)
    rows = -labels.pick(log_probabilities)
    if weight is None:
        return labels.reduced(rows, None, reduction)
    factors = class_weights(name, weight, log_probabilities, axis)
    share = labels.pick(factors)
    return labels.reduced(rows * share, share, reduction)


def _class_axis(op: str, scores: Node) -> tuple[int, int]:
    """Return the number of classes and their axis."""
    check_floats(op, input=scores)
    axis = 0 if scores.rank == 1 else 1
    if scores.rank == 0 or not isinstance(scores.shape[axis], int):
        raise located(ShapeError, op, None, f"expected (N, C, ...) or (C,), got {shape_text(scores.shape)}")
    classes = scores.shape[axis]
    assert isinstance(classes, int)
    return classes, axis


def _expected(shifted: Node, log_total: Node, shares: Node, axis: int) -> Node:
    """Return ``sum_k shares_k * (log_total - shifted_k)``; neither term is negative: nothing cancels."""
    return sum(shares, axis, keepdims=True) * log_total - sum(shares * shifted, axis, keepdims=True)


class _Labels:
    """Class indices, some of which may say that their row does not count."""

    def __init__(self, op: str, scores: Node, target: Node, ignore_index: int | None, axis: int):
        """Check the labels against the scores; nothing of the graph is made for what does not occur."""
        check_labels(op, target, tuple(d for a, d in enumerate(scores.shape) if a != axis))
        classes = scores.shape[axis]
        assert isinstance(classes, int)
        low, high = INTEGERS[target.dtype]
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise located(RangeError, op, None, f"ignore_index must be an int or None, got {ignore_index!r}")
        ignored = ignore_index if ignore_index is not None and low <= ignore_index <= high else None
        self.op, self.axis, self.dtype = op, axis, scores.dtype
        outside = ignored is not None and not 0 <= ignored < classes
        self.index = bounded(target, 0, classes, also=ignored if outside else None)
        kept = reshape(self.index, tuple(1 if a == axis else d for a, d in enumerate(scores.shape)))
        self.counts = None if ignored is None else not_equal(kept, ignored)

    def pick(self, values: Node) -> Node:
        """Return the values at the labels; 0 where a label is no class."""
        return pick(values, self.index, self.axis)

    def reduced(self, rows: Node, share: Node | None, reduction: str) -> Node:
        """Return the rows' losses, their sum, or their mean weighted by their shares (None: evenly)."""
        if self.counts is not None:
            rows = where(self.counts, rows, 0.0)
            share = cast(self.counts, self.dtype) if share is None else where(self.counts, share, 0.0)
        if reduction == "none":
            return squeezed(rows, self.axis)
        if reduction == "mean" and share is not None:
            everything = tuple(range(rows.rank))
            # Extents of 1 are kept until the end: then both sums and their quotient are one kernel.
            return reshape(quotient(Reduce("sum", everything)(rows), Reduce("sum", everything)(share)), ())
        return reduced(self.op, rows, reduction)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return 1 at the label along a new axis 1; all zeros for a label that is no class."""
    positions = np.arange(classes).reshape(-1, *[1] * (labels.ndim - 1))
    return np.asarray(labels[:, None] == positions, dtype=np.float64)


def _cross_entropy_samples() -> Sequence[Sample]:
    factors = np.array([0.5, 1.0, 2.0, 0.25])

    def plain(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.asarray(-(_log_softmax(logits) * _one_hot(labels, 7)).sum(1))

    def everything(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        column = factors[:, None]
        shares = (0.9 * _one_hot(labels, 4) + 0.1 / 4) * column * (labels != -1)[:, None]
        total = (factors[:, None] * _one_hot(labels, 4)).sum()
        return np.asarray(-(_log_softmax(logits) * shares).sum() / total if total else np.nan)

    def probabilities(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.asarray(-(_log_softmax(logits) * (0.8 * target + 0.2 / 5)).sum(1).mean())

    return [
        Sample(
            lambda a, y: cross_entropy(a, y, reduction="none"),
            (float_type(N, 7), TensorType("int32", (N,))), plain, draw_labels(7), label="none",
        ),
        Sample(
            lambda a, y: cross_entropy(a, y, weight=factors, ignore_index=-1, label_smoothing=0.1),
            (float_type(N, 4, 3), TensorType("int64", (N, 3))), everything, draw_labels(4, -1),
            label="weight, ignore_index, label_smoothing",
        ),
        Sample(
            lambda a, t: cross_entropy(a, t, label_smoothing=0.2), (float_type(N, 5), float_type(N, 5)),
            probabilities, label="probabilities",
        ),
    ]  # fmt: skip


register("cross_entropy", _cross_entropy_samples)
register(
    "nll",
    lambda: [
        Sample(
            lambda a, y: nll(a, y, ignore_index=2, reduction="sum"),
            (float_type(N, 3), TensorType("uint8", (N,))),
            lambda a, y: np.asarray(-(a * _one_hot(y, 3))[y != 2].sum()), draw_labels(3),
        )
    ],
)  # fmt: skip
