"""One node of an ONNX graph as its rule sees it, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from graphc.graph.node import Node, topological
from graphc.onnx.names import identifier
from graphc.onnx.values import Known, Listed, Value, shape_of
from graphc.ops.leaves import Input
from graphc.types import Shape, Size


class UnsupportedError(Exception):
    """Why a node cannot be imported. ``inputs`` are inputs of the graph whose values would have to be known."""

    def __init__(self, reason: str, inputs: Sequence[str] = ()):
        """Say why."""
        super().__init__(reason)
        self.inputs = tuple(inputs)


def axis_of(axis: int, rank: int) -> int:
    """Return an axis as a non-negative one.

    Raises:
        UnsupportedError: there is no such axis.
    """
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise UnsupportedError(f"axis {axis} of a tensor of {rank} axes")
    return axis % rank


class Host(Protocol):
    """What imports the node, and can do more for it."""

    def materialise(self, known: Known, learned: bool = True) -> Node:
        """Return a tensor of a known array: a parameter of a weight, a constant of any other.

        A parameter that is not to be ``learned`` is fixed, whatever the user's patterns say.
        """

    def state(self, known: Known) -> Node:
        """Return the state that starts at the value of an initializer."""

    @property
    def restore_batch_norm(self) -> bool:
        """Whether batch normalisations in inference form become those that can be trained."""

    def tensor(self, value: Value) -> Node:
        """Return a value as a tensor of the graph."""

    def inline(self, graph: Any, given: Sequence[Value]) -> list[Value]:
        """Import the nodes of a graph that is an attribute, such as a branch of an If; return its results."""


@dataclass(frozen=True)
class Site:
    """A node that is being imported: its operator, its values and its attributes.

    ``version`` is that of the operator set that the model asks for, ``outputs`` the number of results up to the last
    one that has a name.
    """

    op: str
    name: str
    version: int
    values: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    outputs: int
    host: Host

    @property
    def label(self) -> str | None:
        """The node's name as that of a tensor, if it has one."""
        return identifier(self.name, dots=True) if self.name else None

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.values) and self.values[position] is not None

    def value(self, position: int) -> Value:
        """Return an input that must be there, as it is."""
        value = self.values[position] if position < len(self.values) else None
        if value is None:
            raise UnsupportedError(f"input {position} is missing")
        return value

    def tensor(self, position: int) -> Node:
        """Return an input as a tensor of the graph."""
        return self.host.tensor(self.value(position))

    def fixed(self, position: int) -> Node:
        """Return an input as a tensor that is never learned, such as a running mean."""
        value = self.value(position)
        return value if isinstance(value, Node) else self.host.materialise(value, learned=False)

    def tensors(self) -> list[Node]:
        """Return all inputs as tensors of the graph."""
        return [self.tensor(k) for k in range(len(self.values))]

    def known(self, position: int, what: str) -> np.ndarray:
        """Return an input that has to be known while the model is read, such as the shape of a Reshape.

        Raises:
            UnsupportedError: it is computed when the model runs.
        """
        value = self.value(position)
        if isinstance(value, Listed):
            raise UnsupportedError(f"its {what} is a sequence")
        if isinstance(value, Known):
            return value.array
        needed = [n.op.name for n in topological([value]) if isinstance(n.op, Input)]
        listed = ", ".join(map(repr, needed))
        raise UnsupportedError(
            f"its {what} depends on the inputs {listed}, and must be known when importing", needed
        )

    def sizes(self, position: int, what: str) -> list[Size]:
        """Return an input that must be known as a list of sizes."""
        return [
            d if not isinstance(d, (int, np.integer)) else int(d) for d in self.known(position, what).ravel()
        ]

    def ints(self, position: int, what: str) -> list[int]:
        """Return an input that must be known as ints, none of which depends on the batch."""
        found = [d for d in self.sizes(position, what) if isinstance(d, int)]
        if len(found) != self.known(position, what).size:
            raise UnsupportedError(f"its {what} depends on the run-time batch")
        return found

    def shape(self, position: int) -> Shape:
        """Return the shape of an input."""
        return shape_of(self.value(position))

    def rank(self, position: int) -> int:
        """Return the number of axes of an input."""
        return len(self.shape(position))

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute: an int, a float, a text, an array, or a list of these."""
        return self.attributes.get(name, default)

    def refuse(self, name: str, *allowed: Any) -> None:
        """Refuse an attribute that is given with another value than those that are allowed."""
        if name in self.attributes and self.attributes[name] not in allowed:
            raise UnsupportedError(f"{name}={self.attributes[name]!r} is not supported")


Result: TypeAlias = Value | Sequence[Value]
Rule: TypeAlias = Callable[[Site], Result]
_R = TypeVar("_R", bound=Rule)

RULES: dict[tuple[str, str], Rule] = {}
"""How each operator is written in graphc, by its domain ("" is ONNX's own) and name."""
FOLDED: dict[tuple[str, str], Rule] = {}
"""How operators on shapes are computed from arrays that are known, and may hold the run-time batch."""


def rule(*operators: str, domain: str = "") -> Callable[[_R], _R]:
    """Enter a function as the rule of operators."""
    return _enter(RULES, operators, domain)


def folded(*operators: str, domain: str = "") -> Callable[[_R], _R]:
    """Enter a function as what computes operators whose inputs are all known."""
    return _enter(FOLDED, operators, domain)


def _enter(table: dict[tuple[str, str], Rule], operators: Sequence[str], domain: str) -> Callable[[_R], _R]:
    def decorate(function: _R) -> _R:
        for operator in operators:
            assert (domain, operator) not in table, f"{operator} has two rules"
            table[domain, operator] = function
        return function

    return decorate
