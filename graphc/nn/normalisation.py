"""Normalisation layers: over the batch, and over the features of each element."""

from __future__ import annotations

import numpy as np

from graphc.errors import RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.nn.arguments import Initial, is_int, make_parameter, make_state
from graphc.ops.control import known_slope, mode_switch, stop_gradient, updating
from graphc.ops.elementwise import maximum, mul, rsqrt, square
from graphc.ops.leaves import Scope
from graphc.ops.movement import reshape
from graphc.ops.reduce import extent, mean
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N, product, shape_text


def moments(x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
    """Return x minus its mean over the axes, and its biased variance, with the axes kept."""
    deviation = x - mean(x, axes, keepdims=True)
    variance = mean(square(deviation), axes, keepdims=True)
    # The deviations sum to zero, so nothing flows back through the mean inside the variance; writing
    # the slope down spares the backward pass the reduction that would compute that zero.
    count = extent(product(x.shape[a] for a in axes), x)
    return deviation, known_slope(variance, x, deviation * (2.0 / count))


def _check_eps(layer: str, name: str | None, eps: float) -> None:
    if not eps >= 0:
        raise located(RangeError, layer, name, f"eps must be non-negative, got {eps!r}")


def batch_norm(
    x: Node,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = True,
    track: bool = True,
    name: str | None = None,
    weight: Node | Initial = 1.0,
    bias: Node | Initial = 0.0,
    trainable: bool = True,
    running_mean: Node | Initial = 0.0,
    running_var: Node | Initial = 1.0,
) -> Node:
    """Return x normalised per channel (axis 1), for (n, c) and (n, c, ...) alike.

    Training uses the batch's mean and biased variance and moves the running statistics by ``momentum``
    towards the batch's mean and unbiased variance; inference uses the running statistics. Without
    ``track`` there are none, and inference uses the batch's statistics too. ``running_mean`` and ``running_var``
    are what they start at, or states to share.

    Numerics: two passes over the batch, so that a large mean costs no digits of the variance. With one
    value a channel (a batch of one row) the variance is 0 and the result is the bias; the unbiased
    variance, which is not defined then, counts as 0, where PyTorch refuses the batch.

    Raises:
        ShapeError: x has no channel axis, or given weights do not fit.
        RangeError: eps is negative, or the momentum is not in [0, 1].
    Source: Ioffe and Szegedy 2015; conventions of torch.nn.BatchNorm2d.
    """
    if x.rank < 2 or not isinstance(x.shape[1], int):
        raise located(ShapeError, "batch_norm", name, f"expected (N, C, ...), got {shape_text(x.shape)}")
    _check_eps("batch_norm", name, eps)
    if not 0 <= momentum <= 1:
        raise located(RangeError, "batch_norm", name, f"momentum must be in [0, 1], got {momentum!r}")
    channels = x.shape[1]
    axes = (0, *range(2, x.rank))
    shape = (1, channels, *[1] * (x.rank - 2))
    scope = Scope("batch_norm", name)
    deviation, variance = moments(x, axes)
    trained = deviation * rsqrt(variance + eps)
    if affine:
        gamma = reshape(make_parameter(scope, "weight", (channels,), weight, x.dtype, trainable), shape)
        beta = reshape(make_parameter(scope, "bias", (channels,), bias, x.dtype, trainable), shape)
        trained = trained * gamma + beta
    if not track:
        return trained
    average = make_state(scope, "running_mean", (channels,), running_mean, x.dtype)
    spread = make_state(scope, "running_var", (channels,), running_var, x.dtype)
    count = extent(product(x.shape[a] for a in axes), x)
    others = maximum(count - 1, 1.0) if isinstance(count, Node) else max(count - 1, 1.0)

    def moved(state: Node, towards: Node) -> Node:
        # In the shape of the statistics, so that the kernel that computes them can move the state too.
        return reshape(reshape(state, shape) * (1 - momentum) + towards * momentum, (channels,))

    trained = updating(trained, average, stop_gradient(moved(average, mean(x, axes, keepdims=True))))
    trained = updating(trained, spread, stop_gradient(moved(spread, variance * (count / others))))
    scale = rsqrt(reshape(spread, shape) + eps)
    scale = scale * gamma if affine else scale
    shift = -reshape(average, shape) * scale
    return mode_switch(trained, mul(x, scale) + (shift + beta if affine else shift))


def layer_norm(
    x: Node,
    axes: int = 1,
    *,
    eps: float = 1e-5,
    affine: bool = True,
    bias: bool | Node | Initial = True,
    name: str | None = None,
    weight: Node | Initial = 1.0,
    trainable: bool = True,
) -> Node:
    """Return x normalised over its last ``axes`` axes.

    Numerics: two passes, so that a large mean costs no digits of the variance.

    Raises:
        ShapeError: x has fewer axes, the batch is among them, or given weights do not fit.
        RangeError: eps is negative.
    Source: Ba et al. 2016; conventions of torch.nn.LayerNorm.
    """
    good = is_int(axes) and 1 <= axes <= x.rank
    shape = tuple(d for d in x.shape[x.rank - axes :] if isinstance(d, int)) if good else ()
    if not good or len(shape) != axes:
        message = f"cannot normalise over the last {axes} axes of {shape_text(x.shape)}"
        raise located(ShapeError, "layer_norm", name, message)
    _check_eps("layer_norm", name, eps)
    deviation, variance = moments(x, tuple(range(x.rank - axes, x.rank)))
    out = deviation * rsqrt(variance + eps)
    if not affine:
        return out
    scope = Scope("layer_norm", name)
    out = out * make_parameter(scope, "weight", shape, weight, x.dtype, trainable)
    if bias is False:
        return out
    first = 0.0 if bias is True else bias
    return out + make_parameter(scope, "bias", shape, first, x.dtype, trainable)


def _normalised(x: np.ndarray, axes: tuple[int, ...], eps: float = 1e-5) -> np.ndarray:
    """Normalise with NumPy's own moments."""
    return np.asarray((x - np.mean(x, axes, keepdims=True)) / np.sqrt(np.var(x, axes, keepdims=True) + eps))


register(
    "batch_norm",
    lambda: [
        Sample(
            lambda x, w, b: batch_norm(x, weight=w, bias=b, track=False),
            (float_type(N, 3, 2, 5), float_type(3), float_type(3)),
            lambda x, w, b: _normalised(x, (0, 2, 3)) * w[:, None, None] + b[:, None, None],
        ),
        # A batch of one row is all zeros here, with a gradient that differences resolve badly: add rows.
        Sample(
            lambda x: batch_norm(x, affine=False, track=False, eps=0.1),
            (float_type(7, 4),),
            lambda x: _normalised(x, (0,), 0.1),
        ),
    ],
)
register(
    "layer_norm",
    lambda: [
        Sample(
            lambda x, w, b: layer_norm(x, weight=w, bias=b),
            (float_type(N, 3, 6), float_type(6), float_type(6)),
            lambda x, w, b: _normalised(x, (-1,)) * w + b,
        ),
        Sample(
            lambda x: layer_norm(x, 2, affine=False, eps=1e-3),
            (float_type(N, 2, 3),),
            lambda x: _normalised(x, (1, 2), 1e-3),
        ),
    ],
)
