"""The meaning of a graph: every node evaluated by its op's float64 NumPy reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import GraphError
from graphc.graph.node import Node, Op, topological
from graphc.ops.leaves import BatchExtent, Constant, Full, Iota, RandomUniform
from graphc.philox import uniform
from graphc.types import Extent, at, integer_range

_LARGEST = 2**63 - 2**10  # below 2**63 in float64


@functools.lru_cache(maxsize=4096)
def at_batch(op: Op, batch: int) -> Any:
    """Return the op with every run-time extent among its attributes replaced by its value."""

    def bind(value: Any) -> Any:
        if isinstance(value, Extent):
            return value.at(batch)
        return tuple(bind(v) for v in value) if type(value) is tuple else value

    if not dataclasses.is_dataclass(op):
        return op
    old = {f.name: getattr(op, f.name) for f in dataclasses.fields(op)}
    new = {name: bind(value) for name, value in old.items()}
    return op if new == old else dataclasses.replace(op, **new)


def interpret(
    outputs: Sequence[Node],
    values: Mapping[Node, np.ndarray],
    *,
    batch: int = 1,
    seed: int = 0,
    step: int = 0,
) -> list[np.ndarray]:
    """Return the outputs in float64 (integers as int64), given the values of inputs, parameters and state.

    Raises:
        GraphError: a leaf has no value.
    """
    env: dict[Node, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for node in topological(outputs):
            env[node] = _value(node, env, values, batch, seed, step)
    return [env[o] for o in outputs]


def _value(
    node: Node,
    env: Mapping[Node, np.ndarray],
    values: Mapping[Node, np.ndarray],
    batch: int,
    seed: int,
    step: int,
) -> np.ndarray:
    op = node.op
    shape = tuple(at(d, batch) for d in node.shape)
    if node in values:
        array = np.asarray(values[node])
    elif isinstance(op, Full):
        array = np.full(shape, op.value)
    elif isinstance(op, Constant):
        array = op.values
    elif isinstance(op, Iota):
        array = np.broadcast_to(
            np.arange(shape[op.axis]).reshape([-1 if a == op.axis else 1 for a in range(len(shape))]), shape
        )
    elif isinstance(op, BatchExtent):
        array = np.asarray(float(at(op.size, batch)))
    elif isinstance(op, RandomUniform):
        stream = op.stream if isinstance(op.stream, int) else 0
        array = uniform(int(np.prod(shape)), seed, step, stream).reshape(shape)
    elif not node.inputs:
        raise GraphError(f"interpret: no value for {node!r}")
    else:
        array = at_batch(op, batch).reference(*(env[i] for i in node.inputs))
    if array.shape != shape:
        raise GraphError(f"interpret: {node!r} gave shape {array.shape}, expected {shape}")
    return array.astype(np.float64) if node.type.is_float else _as_integers(node, array)


def _as_integers(node: Node, array: np.ndarray) -> np.ndarray:
    """Return values as the node's dtype holds them, in int64: a cast of floats ends at its bounds, all else wraps."""
    low, high = integer_range(node.dtype)
    if any(i.type.is_float for i in node.inputs):
        array = np.clip(np.nan_to_num(array, posinf=np.inf, neginf=-np.inf), low, min(high, _LARGEST))
    whole = array.astype(np.int64)
    return whole if high > 2**32 else (whole - low) % (high - low + 1) + low
