"""The optimizers that ONNX has as operators: new values of tensors from their gradients and states."""

from __future__ import annotations

import math
from collections.abc import Callable

from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew

_DOMAIN = "ai.onnx.preview.training"
_Step = Callable[..., tuple[Node, ...]]


def _each(site: Site, states: int, step: _Step) -> list[Node]:
    """Apply a step to every tensor; inputs and outputs list all tensors, then all gradients, then all states."""
    tensors = [site.tensor(k) for k in range(2, len(site.values))]
    count, rest = divmod(len(tensors), 2 + states)
    if rest or not count:
        raise UnsupportedError(
            f"{len(tensors)} tensors are no tensors, gradients and {states} states of each"
        )
    groups = [tensors[k * count : (k + 1) * count] for k in range(2 + states)]
    found = [step(*members) for members in zip(*groups, strict=True)]
    return [values[k] for k in range(1 + states) for values in found]


def _count(site: Site) -> Node:
    """Return the number of earlier updates as a floating-point scalar."""
    rate = site.tensor(0)
    return ew.cast(site.tensor(1), rate.dtype if rate.type.is_float else "float32")


def _regularised(site: Site, x: Node, gradient: Node) -> Node:
    return gradient + ew.mul(x, site.get("norm_coefficient", 0.0))


@rule("Momentum", domain=_DOMAIN)
def momentum(site: Site) -> list[Node]:
    """Stochastic gradient descent with momentum, or with Nesterov's; the first update takes no damping."""
    site.refuse("mode", "standard", "nesterov")
    rate, alpha, beta = site.tensor(0), site.get("alpha"), site.get("beta")
    damping = ew.where(ew.greater(_count(site), 0.0), beta, 1.0)

    def step(x: Node, gradient: Node, velocity: Node) -> tuple[Node, Node]:
        slope = _regularised(site, x, gradient)
        moved = ew.mul(velocity, alpha) + slope * damping
        towards = slope + ew.mul(moved, alpha) if site.get("mode") == "nesterov" else moved
        return x - rate * towards, moved

    return _each(site, 1, step)


@rule("Adam", domain=_DOMAIN)
def adam(site: Site) -> list[Node]:
    """Adam, whose bias is corrected from the second update on."""
    alpha, beta = site.get("alpha", 0.9), site.get("beta", 0.999)
    if not (0 < alpha < 1 and 0 < beta < 1):
        raise UnsupportedError(f"alpha={alpha}, beta={beta}, which must lie between 0 and 1")
    count, rate = _count(site), site.tensor(0)
    first, second = (1.0 - ew.exp(ew.mul(count, math.log(b))) for b in (alpha, beta))
    started = ew.greater(count, 0.0)
    rate = rate * ew.where(started, ew.sqrt(second) / ew.where(started, first, 1.0), 1.0)

    def step(x: Node, gradient: Node, velocity: Node, square: Node) -> tuple[Node, Node, Node]:
        slope = _regularised(site, x, gradient)
        moved = ew.mul(velocity, alpha) + ew.mul(slope, 1 - alpha)
        spread = ew.mul(square, beta) + ew.mul(ew.square(slope), 1 - beta)
        new = x - rate * moved / ew.add(ew.sqrt(spread), site.get("epsilon", 1e-6))
        return ew.mul(new, 1 - site.get("norm_coefficient_post", 0.0)), moved, spread

    return _each(site, 2, step)


@rule("Adagrad", domain=_DOMAIN)
def adagrad(site: Site) -> list[Node]:
    """Steps divided by the root of all squares so far."""
    rate = site.tensor(0) / ew.add(ew.mul(_count(site), site.get("decay_factor", 0.0)), 1.0)

    def step(x: Node, gradient: Node, squares: Node) -> tuple[Node, Node]:
        slope = _regularised(site, x, gradient)
        total = squares + ew.square(slope)
        return x - rate * slope / ew.add(ew.sqrt(total), site.get("epsilon", 1e-6)), total

    return _each(site, 1, step)
