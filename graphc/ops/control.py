"""Ops that guide the compiler: what differs between training and inference, updates of state, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.errors import DTypeError, GraphcError, ShapeError
from graphc.graph.node import Node, Op, operators
from graphc.ops.leaves import State, full
from graphc.types import TensorType, broadcast_shapes


class Control(Op):
    """An op that is gone before lowering."""


@dataclass(frozen=True)
class ModeSwitch(Control):
    """The first input in training, the second in inference."""

    label: ClassVar[str] = "mode_switch"

    def infer(self, *types: TensorType) -> TensorType:
        """Require one type."""
        if types[0] != types[1]:
            raise ShapeError(f"training gives {types[0]}, inference {types[1]}")
        return types[0]

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Let the cotangent flow into the side that is taken."""
        zeros = full(node.shape, 0.0, node.dtype)
        return ModeSwitch()(cotangent, zeros), ModeSwitch()(zeros, cotangent)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Refuse: a graph is specialised before it is interpreted."""
        raise GraphcError("mode_switch: specialise the graph first")


@dataclass(frozen=True)
class Updating(Control):
    """The first input; a training step then assigns the third input to the state in the second."""

    label: ClassVar[str] = "updating"

    def infer(self, *types: TensorType) -> TensorType:
        """Require that the new value has the state's type."""
        if types[1] != types[2]:
            raise ShapeError(f"state {types[1]} cannot become {types[2]}")
        return types[0]

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Pass the cotangent to the value."""
        return cotangent, None, None

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Refuse: a graph is specialised before it is interpreted."""
        raise GraphcError("updating: specialise the graph first")


@dataclass(frozen=True)
class Bounded(Control):
    """An integer input whose values must lie in [low, high) or equal ``also``; checked before anything runs."""

    label: ClassVar[str] = "bounded"
    low: int
    high: int
    also: int | None = None

    @property
    def attributes(self) -> str:
        """The bounds."""
        return f"[{self.low}, {self.high})" + (f" or {self.also}" if self.also is not None else "")

    def infer(self, *types: TensorType) -> TensorType:
        """Require integers."""
        if types[0].dtype not in ("int32", "int64", "uint8"):
            raise DTypeError(f"needs integers, got {types[0]}")
        return types[0]

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Return nothing: integers carry no gradient."""
        return (None,)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Pass the values on."""
        return arrays[0]


@dataclass(frozen=True)
class StopGradient(Control):
    """The input as a constant: no gradient flows through."""

    label: ClassVar[str] = "stop_gradient"

    def infer(self, *types: TensorType) -> TensorType:
        """Keep the type."""
        return types[0]

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Return nothing."""
        return (None,)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Pass the values on."""
        return arrays[0]


@dataclass(frozen=True)
class KnownSlope(Control):
    """The first input, whose derivative for the second is the third, elementwise: a rule given by hand.

    The slope is an ordinary tensor, so that differentiating twice stays exact.
    """

    label: ClassVar[str] = "known_slope"

    def infer(self, *types: TensorType) -> TensorType:
        """Require a value that broadcasts to the slope, and a slope of the variable's type."""
        value, variable, slope = types
        if slope != variable or broadcast_shapes(value.shape, slope.shape) != slope.shape:
            raise ShapeError(f"slope {slope} of {value} for {variable}")
        return value

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Multiply by the slope; what the value was computed from gets nothing else."""
        return None, operators["mul"](cotangent, node.inputs[2]), None

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Pass the values on."""
        return arrays[0]


def mode_switch(training: Node, inference: Node) -> Node:
    """Return a value that depends on whether the graph is compiled for training or for inference."""
    return training if training is inference else ModeSwitch()(training, inference)


def updating(value: Node, state: Node, new: Node) -> Node:
    """Return ``value``; a training step also assigns ``new`` to ``state``.

    Raises:
        GraphcError: the second argument is no state.
    """
    if not isinstance(state.op, State):
        raise GraphcError(f"updating: expected a state, got {state!r}")
    return Updating()(value, state, new)


def bounded(x: Node, low: int, high: int, also: int | None = None) -> Node:
    """Return x, whose values are checked to lie in [low, high) or to equal ``also``."""
    return Bounded(low, high, also)(x)


def stop_gradient(x: Node) -> Node:
    """Return x as a constant for differentiation."""
    return StopGradient()(x)


def known_slope(value: Node, variable: Node, slope: Node) -> Node:
    """Return ``value``, of which the caller knows that ``d(sum of value)/d variable`` is ``slope``."""
    return KnownSlope()(value, variable, slope)
