"""Activation functions."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.arithmetic import operand
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.movement import reshape


def _number(site: Site, name: str, default: float) -> float:
    """Return an attribute as the shortest decimal number that it is the float32 of."""
    return float(str(np.float32(site.get(name, default))))


@rule("Relu")
def relu(site: Site) -> Node:
    """Integers too."""
    x = site.tensor(0)
    return ew.relu(x) if x.type.is_float else ew.maximum(x, 0)


@rule("LeakyRelu")
def leaky_relu(site: Site) -> Node:
    """The slope is an attribute."""
    return ew.leaky_relu(site.tensor(0), _number(site, "alpha", 0.01))


@rule("PRelu")
def prelu(site: Site) -> Node:
    """The slope is a tensor, which broadcasts to the shape of the other; before version 7 it is one a channel."""
    x, slope = site.tensor(0), site.tensor(1)
    if site.version < 7 and slope.rank > 1:
        raise UnsupportedError("before operator set 7 its slopes belong to the axis of channels")
    if site.version < 7 and slope.rank == 1 and x.rank > 2:
        slope = reshape(slope, (*slope.shape, *(1,) * (x.rank - 2)))
    if x.type.is_float:
        return ew.leaky_relu(x, slope)
    return ew.where(ew.less(x, 0), ew.mul(x, slope), x)


@rule("Elu")
def elu(site: Site) -> Node:
    """As ELU is elsewhere."""
    return ew.elu(site.tensor(0), _number(site, "alpha", 1.0))


@rule("Selu")
def selu(site: Site) -> Node:
    """A scaled ELU, whose default constants are those of the paper."""
    alpha, gamma = (
        _number(site, "alpha", 1.67326319217681884765625),
        _number(site, "gamma", 1.05070102214813232),
    )
    return ew.mul(ew.elu(site.tensor(0), alpha), gamma)


@rule("Celu")
def celu(site: Site) -> Node:
    """Return x above zero and alpha * (exp(x / alpha) - 1) below, for a positive alpha."""
    alpha = _number(site, "alpha", 1.0)
    if alpha <= 0:
        raise UnsupportedError(f"alpha={alpha} is not supported: it must be positive")
    x = site.tensor(0)
    if alpha == 1:
        return ew.elu(x)
    below = ew.clip(x, None, 0)  # before exp, which would overflow above, and leave gradients NaN
    return ew.add(ew.relu(x), ew.mul(ew.expm1(ew.div(below, alpha)), alpha))


@rule("Gelu")
def gelu(site: Site) -> Node:
    """Exact, or in its tanh form."""
    return ew.gelu(site.tensor(0), site.get("approximate", "none"))


@rule("HardSigmoid")
def hard_sigmoid(site: Site) -> Node:
    """Return max(0, min(1, alpha * x + beta))."""
    x, alpha, beta = site.tensor(0), _number(site, "alpha", 0.2), _number(site, "beta", 0.5)
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        return ew.hard_sigmoid(x)
    return ew.clip(ew.add(ew.mul(x, alpha), beta), 0, 1)


@rule("HardSwish")
def hard_swish(site: Site) -> Node:
    """Return x * max(0, min(1, x/6 + 1/2))."""
    return ew.hard_swish(site.tensor(0))


@rule("Mish")
def mish(site: Site) -> Node:
    """Return x * tanh(softplus(x))."""
    x = site.tensor(0)
    return ew.mul(x, ew.tanh(ew.softplus(x)))


@rule("Softsign")
def softsign(site: Site) -> Node:
    """Return x / (1 + |x|)."""
    x = site.tensor(0)
    return ew.div(x, ew.add(ew.abs(x), 1))


@rule("Swish")
def swish(site: Site) -> Node:
    """Return x * sigmoid(alpha * x)."""
    x, alpha = site.tensor(0), _number(site, "alpha", 1.0)
    return ew.silu(x) if alpha == 1 else ew.mul(x, ew.sigmoid(ew.mul(x, alpha)))


@rule("ThresholdedRelu")
def thresholded_relu(site: Site) -> Node:
    """Return x above alpha, else 0."""
    x = site.tensor(0)
    return ew.where(ew.greater(x, _number(site, "alpha", 1.0)), x, 0)


@rule("Shrink")
def shrink(site: Site) -> Node:
    """Return x moved towards zero by the bias where it is further away than lambd, else 0."""
    x, bias, bound = site.tensor(0), _number(site, "bias", 0.0), _number(site, "lambd", 0.5)
    if not x.type.is_float:
        if not (bias.is_integer() and bound.is_integer()):
            raise UnsupportedError(f"bias={bias} and lambd={bound} for integers must be whole numbers")
        bias, bound = int(bias), int(bound)
    inside = ew.where(ew.greater(x, bound), ew.sub(x, bias), 0)
    return ew.where(ew.less(x, -bound), ew.add(x, bias), inside)


@rule("Clip")
def clip(site: Site) -> Node:
    """Bounds are attributes up to version 10 and inputs later; each may be left out."""
    low = operand(site, 1) if site.has(1) else site.get("min")
    high = operand(site, 2) if site.has(2) else site.get("max")
    return ew.clip(site.tensor(0), low, high)
