"""What layers share: reading pairs and paddings, and making parameters and running statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.errors import GraphError, RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.initialisers import Initialiser, as_initialiser
from graphc.ops.leaves import Parameter, Scope, State
from graphc.types import DType, shape_text

Pair = tuple[int, int]
Padding = int | Pair | tuple[Pair, Pair]
Initial = Initialiser | float | np.ndarray  # how a parameter gets its first values


def is_int(value: Any) -> bool:
    """Whether a value is a whole number and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def as_pair(value: Any, layer: str, what: str, least: int, name: str | None = None) -> Pair:
    """Return an int twice, or a pair of ints as it is.

    Raises:
        RangeError: the value is neither, or below ``least``.
    """
    pair = (value, value) if is_int(value) else value
    good = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(is_int(v) for v in pair)
    if not good or min(pair) < least:
        message = f"{what} must be an int or a pair of ints, at least {least}, got {value!r}"
        raise located(RangeError, layer, name, message)
    return int(pair[0]), int(pair[1])


def as_count(value: Any, layer: str, name: str | None, what: str) -> int:
    """Return a positive int.

    Raises:
        RangeError: it is none.
    """
    if not is_int(value) or value < 1:
        raise located(RangeError, layer, name, f"{what} must be a positive int, got {value!r}")
    return int(value)


def make_parameter(
    scope: Scope, field: str, shape: tuple[int, ...], value: Node | Initial, dtype: DType, trainable: bool
) -> Node:
    """Return a new parameter of the layer, or the tensor that the caller gave to share.

    Raises:
        ShapeError: a shared tensor or an initial array has another shape.
    """
    if isinstance(value, Node):
        return _shared(scope, field, shape, value)
    leaf = Parameter(dtype, shape, _first(scope, field, shape, value), scope, field, trainable)
    return leaf(name=f"{scope.name or scope.kind}.{field}")


def make_state(scope: Scope, field: str, shape: tuple[int, ...], value: Node | Initial, dtype: DType) -> Node:
    """Return a new running statistic of the layer, or the state that the caller gave to share.

    Raises:
        ShapeError: a shared state or an initial array has another shape.
        GraphError: a shared tensor is no state.
    """
    if isinstance(value, Node):
        if not isinstance(value.op, State):
            message = f"{field} must be a state or what it starts at, got {value.op.title}"
            raise located(GraphError, scope.kind, scope.name, message)
        return _shared(scope, field, shape, value)
    leaf = State(dtype, shape, _first(scope, field, shape, value), scope, field)
    return leaf(name=f"{scope.name or scope.kind}.{field}")


def _shared(scope: Scope, field: str, shape: tuple[int, ...], value: Node) -> Node:
    if value.shape != shape:
        message = f"{field} must have shape {shape_text(shape)}, got {shape_text(value.shape)}"
        raise located(ShapeError, scope.kind, scope.name, message)
    return value


def _first(scope: Scope, field: str, shape: tuple[int, ...], value: Initial) -> Initialiser:
    if isinstance(value, np.ndarray) and value.shape != shape:
        message = f"{field} must have shape {shape_text(shape)}, got an array of shape {value.shape}"
        raise located(ShapeError, scope.kind, scope.name, message)
    return as_initialiser(value)
