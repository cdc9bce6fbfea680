"""Layers that draw random numbers in training."""

from __future__ import annotations

import numpy as np

from graphc.errors import RangeError
from graphc.graph.node import Node, located
from graphc.ops.control import mode_switch
from graphc.ops.elementwise import cast, greater_equal
from graphc.ops.leaves import RandomKey, RandomUniform
from graphc.ops.registry import Sample, float_type, register
from graphc.philox import uniform
from graphc.types import N


def dropout(x: Node, p: float = 0.5) -> Node:
    """Return x in inference; in training each element is 0 with probability p, else x/(1-p).

    The mask depends on seed, step, layer and element alone, and is computed again in the backward pass
    instead of being stored.

    Raises:
        RangeError: p is not in [0, 1].
    Source: Srivastava et al. 2014, in the inverted form of PyTorch.
    """
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise located(RangeError, "dropout", None, f"p must be in [0, 1], got {p!r}")
    if p == 0:
        return x
    if p == 1:
        return mode_switch(x * 0.0, x)
    return mode_switch(_masked(x, p, RandomKey()), x)


def _masked(x: Node, p: float, stream: RandomKey | int) -> Node:
    """Return what dropout gives in training."""
    noise = RandomUniform(x.dtype, x.shape, stream)()
    return x * (cast(greater_equal(noise, p), x.dtype) * (1 / (1 - p)))


def _reference(x: np.ndarray, p: float) -> np.ndarray:
    """Drop by the same numbers: seed, step and stream are 0 in the contract tests."""
    kept = uniform(x.size, 0, 0, 0).reshape(x.shape) >= p
    return np.where(kept, x / (1 - p), 0.0)


register(
    "dropout",
    lambda: [
        Sample(
            lambda x: _masked(x, 0.3, 0),
            (float_type(N, 3, 7),),
            lambda x: _reference(x, 0.3),
            label="training",
        ),
        # Not differentiated here: an interpreted graph has no mode before it is specialised.
        Sample(
            lambda x: dropout(x, 0.3),
            (float_type(N, 3, 7),),
            lambda x: x,
            smooth=False,
            label="inference",
        ),
    ],
)
