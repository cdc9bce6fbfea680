"""Losses between a prediction and a target of the same shape, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import sympy as sp

from graphc import scalar
from graphc.graph.node import Node
from graphc.losses.common import (
    Weight,
    check_floats,
    check_number,
    check_reduction,
    check_same_shape,
    element_weights,
    reduced,
)
from graphc.ops.elementwise import Elementwise, abs, apply_elementwise, exp, softplus, square
from graphc.ops.reduce import extent, sum
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N

_x, _y = scalar.argument(0), scalar.argument(1)
# One formula with cases: the derivative is then one formula with cases too, and what overflows in the case
# that is not taken cannot turn it into NaN.
_SMOOTH_L1 = Elementwise(
    "smooth_l1",
    scalar.piecewise((_x**2 / (2 * _y), scalar.compare(sp.Lt, sp.Abs(_x), _y)), (sp.Abs(_x) - _y / 2, True)),
    2,
)
_HUBER = Elementwise(
    "huber",
    scalar.piecewise((_x**2 / 2, scalar.compare(sp.Le, sp.Abs(_x), _y)), (_y * (sp.Abs(_x) - _y / 2), True)),
    2,
)
# The last case is for what is no probability: the logarithm of a negative number is NaN.
_LOG_CLAMPED = Elementwise(
    "log_clamped",
    scalar.piecewise(
        (sp.log(_x), scalar.compare(sp.Gt, _x, scalar.number(math.exp(-100)))),
        (-100, scalar.compare(sp.Ge, _x, 0)),
        (sp.log(_x), True),
    ),
    1,
)
_LOG1M_CLAMPED = Elementwise(
    "log1m_clamped",
    scalar.piecewise((-100, scalar.compare(sp.Eq, _x, 1)), (scalar.log1p(-_x), True)),
    1,
)
_X_LOG_X = Elementwise(
    "x_log_x", scalar.piecewise((0, scalar.compare(sp.Eq, _x, 0)), (_x * sp.log(_x), True)), 1
)


def _check(op: str, prediction: Node, target: Node) -> None:
    check_floats(op, input=prediction, target=target)
    check_same_shape(op, "input", prediction, "target", target)


def mse(prediction: Node, target: Node, *, reduction: str = "mean") -> Node:
    """Return the squared difference. Semantics of torch.nn.MSELoss.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    _check("mse", prediction, target)
    return reduced("mse", square(prediction - target), reduction)


def l1(prediction: Node, target: Node, *, reduction: str = "mean") -> Node:
    """Return the absolute difference; its gradient is 0 where the two are equal. torch.nn.L1Loss.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    _check("l1", prediction, target)
    return reduced("l1", abs(prediction - target), reduction)


def smooth_l1(prediction: Node, target: Node, *, beta: float = 1.0, reduction: str = "mean") -> Node:
    """Return ``d^2/(2*beta)`` for differences ``|d| < beta``, else ``|d| - beta/2``. torch.nn.SmoothL1Loss.

    A beta of 0 gives :func:`l1`.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    _check("smooth_l1", prediction, target)
    width = check_number("smooth_l1", "beta", beta, 0)
    if width == 0:
        return l1(prediction, target, reduction=reduction)
    return reduced("smooth_l1", apply_elementwise(_SMOOTH_L1, (prediction - target, width)), reduction)


def huber(prediction: Node, target: Node, *, delta: float = 1.0, reduction: str = "mean") -> Node:
    """Return ``d^2/2`` for differences ``|d| <= delta``, else ``delta*(|d| - delta/2)``. torch.nn.HuberLoss.

    Source: Huber 1964.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    _check("huber", prediction, target)
    width = check_number("huber", "delta", delta, math.ulp(0.0))
    return reduced("huber", apply_elementwise(_HUBER, (prediction - target, width)), reduction)


def bce(probability: Node, target: Node, *, weight: Weight | None = None, reduction: str = "mean") -> Node:
    """Return ``-(t*log(p) + (1 - t)*log(1 - p))`` with logarithms of at least -100. torch.nn.BCELoss.

    ``weight`` broadcasts to the probabilities and multiplies the losses; the mean divides by their number.

    Numerics: probabilities outside [0, 1] give NaN. The gradient is that of the formula, so that it is 0
    where a logarithm is held at -100; PyTorch limits its own to 1e12 in size instead. Prefer
    :func:`bce_with_logits`, which needs neither.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    _check("bce", probability, target)
    values = -(target * _LOG_CLAMPED(probability) + (1 - target) * _LOG1M_CLAMPED(probability))
    if weight is not None:
        values = values * element_weights("bce", "weight", weight, values)
    return reduced("bce", values, reduction)


def bce_with_logits(
    logits: Node,
    target: Node,
    *,
    weight: Weight | None = None,
    pos_weight: Weight | None = None,
    reduction: str = "mean",
) -> Node:
    """Return :func:`bce` of sigmoid(logits), computed from the logits. torch.nn.BCEWithLogitsLoss.

    ``pos_weight`` multiplies the term of the positive label, ``weight`` the whole loss; both broadcast.

    Numerics: ``t*softplus(-x) + (1 - t)*softplus(x)``: no overflow, and full relative accuracy for labels
    0 and 1, where the usual form loses small losses to cancellation.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "bce_with_logits"
    _check(name, logits, target)
    positive = target * softplus(-logits)
    if pos_weight is not None:
        positive = positive * element_weights(name, "pos_weight", pos_weight, logits)
    values = positive + (1 - target) * softplus(logits)
    if weight is not None:
        values = values * element_weights(name, "weight", weight, logits)
    return reduced(name, values, reduction)


def kl_div(
    log_probabilities: Node, target: Node, *, log_target: bool = False, reduction: str = "mean"
) -> Node:
    """Return ``t*(log(t) - input)``, or ``exp(t)*(t - input)`` for a target of logarithms.

    The input is the logarithm of the approximating distribution. A target of 0 contributes 0. The reduction
    ``"batchmean"`` divides the sum by the first extent, which gives the divergence of the definition;
    ``"mean"`` divides by the number of elements. Semantics of torch.nn.KLDivLoss.

    Raises:
        ShapeError, DTypeError, RangeError: an argument does not fit.
    """
    name = "kl_div"
    _check(name, log_probabilities, target)
    check_reduction(name, reduction, ("none", "mean", "sum", "batchmean"))
    if log_target:
        values = exp(target) * (target - log_probabilities)
    else:
        values = _X_LOG_X(target) - target * log_probabilities
    if reduction != "batchmean":
        return reduced(name, values, reduction)
    return sum(values) / extent(values.shape[0], values) if values.rank else values


def _probabilities(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [rng.uniform(0.1, 0.9, s) for s in shapes]


def _samples(name: str) -> Sequence[Sample]:
    """Return the samples of one loss, with the loss written once more in NumPy."""
    pair = (float_type(N, 4), float_type(N, 4))
    weights = np.array([0.5, 1.0, 2.0, 3.0])

    def between(a: np.ndarray, t: np.ndarray, width: float, inner: float, outer: float) -> np.ndarray:
        d = np.abs(a - t)
        return np.asarray(np.where(d < width, inner * d * d, outer * (d - width / 2)))

    def entropy(p: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.asarray(-(t * np.log(p) + (1 - t) * np.log(1 - p)))

    def logistic(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.asarray(weights * t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x))

    samples = {
        "mse": Sample(mse, pair, lambda a, t: np.asarray(((a - t) ** 2).mean())),
        "l1": Sample(lambda a, t: l1(a, t, reduction="sum"), pair, lambda a, t: np.abs(a - t).sum()),
        "smooth_l1": Sample(
            lambda a, t: smooth_l1(a, t, beta=0.5), pair, lambda a, t: between(a, t, 0.5, 1, 1).mean()
        ),
        "huber": Sample(
            lambda a, t: huber(a, t, delta=1.5, reduction="none"), pair,
            lambda a, t: between(a, t, 1.5, 0.5, 1.5),
        ),
        "bce": Sample(
            lambda a, t: bce(a, t, weight=weights), pair, lambda p, t: (weights * entropy(p, t)).mean(),
            _probabilities,
        ),
        "bce_with_logits": Sample(
            lambda a, t: bce_with_logits(a, t, pos_weight=weights, reduction="none"), pair, logistic
        ),
        "kl_div": Sample(
            lambda a, t: kl_div(a, t, reduction="batchmean"), pair,
            lambda a, t: (t * (np.log(t) - a)).sum() / len(t), _probabilities,
        ),
    }  # fmt: skip
    return [samples[name]]


for _name in ("mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits", "kl_div"):
    register(_name, lambda name=_name: _samples(name))  # type: ignore[misc]
