"""One objective that contains logistic regression, support vector machines and deep classifiers.

Minimise, over the parameters w of scores F(w, x, y) of labels y::

    C/2*|w|^2 + sum_i [ eps*ln sum_k exp((L(y_i, k) + F(w, x_i, k))/eps) - F(w, x_i, y_i) ]

where L(y, k) is the loss of the task for answering k when y is right, and eps >= 0 is a temperature.
``soft_margin`` is the sum, ``l2`` the regulariser. What follows from it, with L01 the zero-one loss:

===============================  ==========================  =====  =====
model                            F(w, x, y)                  L      eps
===============================  ==========================  =====  =====
binary logistic regression       y*f(x)/2, y in {-1, +1}     0      1
binary support vector machine    y*f(x)/2, y in {-1, +1}     L01    0
multinomial logistic regression  w_y . x                     0      1
multiclass SVM                   w_y . x                     L01    0
deep classifier (cross-entropy)  the logits of a net         0      1
===============================  ==========================  =====  =====

Derivation for two labels. With the score y*f/2, the two scores differ by f, so at eps = 1 and L = 0 the
term is ``ln(e^(f/2) + e^(-f/2)) - y*f/2 = ln(1 + e^(-y*f))``, the logistic loss. At eps = 0 and L = L01 it is
``max(y*f/2, 1 - y*f/2) - y*f/2 = max(0, 1 - y*f)``, the hinge loss.

Sources: Crammer and Singer 2001 (multiclass SVM); Tsochantaridis et al. 2005 (margins scaled by a task
loss); Hazan and Urtasun 2010 (the family in eps); the table is derived here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from graphc.errors import DTypeError, GraphError, ShapeError
from graphc.functional import pick
from graphc.graph.node import Node, located, topological
from graphc.losses.common import (
    as_weight,
    check_floats,
    check_labels,
    check_number,
    draw_labels,
    reduced,
    signs,
    squeezed,
)
from graphc.ops.control import bounded, stop_gradient
from graphc.ops.elementwise import cast, exp, greater, log, not_equal, square
from graphc.ops.gather import take
from graphc.ops.leaves import Parameter
from graphc.ops.movement import reshape
from graphc.ops.reduce import Reduce, iota, sum
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N, TensorType, shape_text

TaskLoss = str | Node | np.ndarray | Sequence[Sequence[float]] | int | float | None

_SMALLEST = 1e-30
"""Temperatures below this are computed as 0: eps*ln(K) is far below what a score can resolve, and 1/eps must
not overflow in single precision."""


def soft_margin(
    F: Node,
    y: Node,
    *,
    task_loss: TaskLoss = "zero_one",
    epsilon: float = 1.0,
    reduction: str = "sum",
) -> Node:
    """Return ``eps*ln sum_k exp((L(y, k) + F_k)/eps) - F_y`` for every row, or their sum or mean.

    ``task_loss`` is L: ``"zero_one"`` (0 for the right label, else 1), a matrix (K, K) as an array or a
    tensor, whose row is the right label and whose column the answer, or None or 0 for none. ``epsilon`` is
    a temperature; at 0 the smooth maximum is the maximum, and labels that tie for it share the gradient
    evenly, which is the limit of the gradient for epsilon to 0.

    The gradient with respect to F_k is ``p_k - [k = y]`` with p the softmax of ``(L + F)/eps``.

    Shapes: F (N, K), y (N,) class indices, which are checked when the module is called.

    Numerics: the row's maximum is subtracted from all scores first, so nothing overflows for any epsilon
    (below 1e-30 it counts as 0). A score of -inf forbids a label.

    Source: the module's docstring.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "soft_margin"
    check_floats(name, F=F)
    if F.rank != 2 or not isinstance(F.shape[1], int):
        raise located(ShapeError, name, None, f"expected scores (N, K), got {shape_text(F.shape)}")
    check_labels(name, y, F.shape[:1])
    temperature = check_number(name, "epsilon", epsilon, 0)
    labels = bounded(y, 0, F.shape[1])
    margin = _task_loss(name, task_loss, F, labels)
    scores = F if margin is None else F + margin
    top = Reduce("max", (1,))(scores)
    if temperature < _SMALLEST:
        rows = top - pick(F, labels, 1)
    else:
        # The derivatives with respect to the maximum cancel, here as in a cross-entropy.
        top = stop_gradient(top)
        total = sum(exp((scores - top) / temperature), 1, keepdims=True)
        rows = temperature * log(total) - pick(F - top, labels, 1)
    return reduced(name, squeezed(rows, 1) if reduction == "none" else rows, reduction)


def _task_loss(op: str, task_loss: TaskLoss, F: Node, labels: Node) -> Node | None:
    """Return L(y_i, k) as a tensor (N, K), or None for no task loss."""
    classes = F.shape[1]
    if task_loss is None or (isinstance(task_loss, (int, float)) and task_loss == 0):
        return None
    if isinstance(task_loss, str):
        if task_loss != "zero_one":
            message = f"task_loss must be 'zero_one', a K x K matrix, None or 0, got {task_loss!r}"
            raise located(DTypeError, op, None, message)
        wrong = not_equal(iota(F.shape, 1, "int32"), reshape(labels, (F.shape[0], 1)))
        return cast(wrong, F.dtype)
    matrix = as_weight(op, "task_loss", task_loss, F.dtype)
    if matrix.shape != (classes, classes):
        wanted, got = shape_text((classes, classes)), shape_text(matrix.shape)
        raise located(ShapeError, op, None, f"task_loss must have shape {wanted}, got {got}")
    return take(matrix, labels)


def binary_scores(f: Node) -> Node:
    """Return the scores (N, 2) of the labels -1 and +1 that one score f gives: ``y*f/2``.

    Column 0 is the label -1, column 1 the label +1. Shapes: f (N,) or (N, 1).

    Raises:
        ShapeError, DTypeError: f does not fit.
    """
    check_floats("binary_scores", f=f)
    if f.rank not in (1, 2) or f.shape[1:] not in ((), (1,)):
        raise located(
            ShapeError, "binary_scores", None, f"expected (N,) or (N, 1), got {shape_text(f.shape)}"
        )
    halves = cast(iota((1, 2), 1, "int32"), f.dtype) - 0.5
    return reshape(f, (f.shape[0], 1)) * halves


def binary_labels(y: Node) -> Node:
    """Return the columns 0 and 1 of :func:`binary_scores` for labels -1 and +1, as int32.

    Integer labels are checked when the module is called.

    Raises:
        DTypeError: the labels are unsigned or boolean.
    """
    if isinstance(y, Node) and y.type.is_float:
        return cast(greater(y, 0.0), "int32")
    return cast(greater(signs("binary_labels", y, _like(y)), 0), "int32")


def _like(y: Node) -> Node:
    """Return a floating-point tensor of the shape of y, for a check that compares shapes."""
    return cast(y, "float32") if isinstance(y, Node) else y


def l2(params: Node | Iterable[Node], C: float = 1.0) -> Node:
    """Return ``C/2 * |w|^2`` over all elements of one or several tensors.

    Raises:
        GraphError: there is no tensor.
        DTypeError, RangeError: a tensor is not floating-point, or C is negative.
    """
    tensors = [params] if isinstance(params, Node) else list(params)
    if not tensors:
        raise located(GraphError, "l2", None, "expected at least one tensor, got none")
    half = check_number("l2", "C", C, 0) / 2
    total: Node | None = None
    for tensor in tensors:
        check_floats("l2", params=tensor)
        part = sum(square(tensor))
        total = part if total is None else total + part
    assert total is not None
    return half * total


def weights_of(*tensors: Node, biases: bool = False) -> list[Node]:
    """Return the trainable parameters that the tensors depend on; those with one axis only if asked for.

    The usual regulariser leaves biases out: ``l2(weights_of(F), C)``.
    """
    found = [n for n in topological(tensors) if isinstance(n.op, Parameter) and n.op.trainable]
    return [n for n in found if biases or n.rank >= 2]


_MATRIX = np.array([[0.0, 1.0, 2.0], [1.5, 0.0, 0.5], [3.0, 1.0, 0.25]])


def _reference(F: np.ndarray, L: np.ndarray, y: np.ndarray, epsilon: float) -> np.ndarray:
    rows = np.arange(len(y))
    scores = F + L[y]
    if epsilon == 0:
        return np.asarray(scores.max(1) - F[rows, y])
    return np.asarray(epsilon * np.logaddexp.reduce(scores / epsilon, axis=1) - F[rows, y])


def _samples() -> Sequence[Sample]:
    zero_one = 1 - np.eye(3)
    types = (float_type(N, 3), TensorType("int32", (N,)))
    return [
        Sample(
            lambda F, y: soft_margin(F, y, reduction="none"), types,
            lambda F, y: _reference(F, zero_one, y, 1), draw_labels(3), label="zero_one",
        ),
        Sample(
            lambda F, y: soft_margin(F, y, task_loss=_MATRIX, epsilon=0.3), types,
            lambda F, y: _reference(F, _MATRIX, y, 0.3).sum(), draw_labels(3), label="matrix, epsilon 0.3",
        ),
        Sample(
            lambda F, y: soft_margin(F, y, task_loss=None, epsilon=0, reduction="mean"), types,
            lambda F, y: _reference(F, 0 * zero_one, y, 0).mean(), draw_labels(3), label="epsilon 0",
        ),
    ]  # fmt: skip


register("soft_margin", _samples)
