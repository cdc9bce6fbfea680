"""Values for the inputs of a program, the same every time: for records, and to check gradients with."""

from __future__ import annotations

import numpy as np

from graphc.program.ir import Argument, Bound, Program
from graphc.types import DType, at


def sample_inputs(program: Program, batch: int) -> dict[str, np.ndarray]:
    """Return values for the inputs of all entry points."""
    rng = np.random.default_rng(0)
    arguments: dict[str, Argument] = {}
    bounds: dict[str, Bound] = {}
    for entry in program.entries:
        arguments |= {a.name: a for a in entry.inputs}
        bounds |= {b.input: b for b in entry.bounds}
    found = {}
    for name, argument in sorted(arguments.items()):
        shape = tuple(at(extent, batch) for extent in argument.shape)
        found[name] = _sample(rng, argument.dtype, shape, bounds.get(name))
    return found


def _sample(
    rng: np.random.Generator, dtype: DType, shape: tuple[int, ...], bound: Bound | None
) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind)
    low, high = (bound.low, bound.high) if bound is not None else (0, 2)
    return rng.integers(low, high, shape).astype(kind)
