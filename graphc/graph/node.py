"""Nodes: the immutable SSA values of a graph, interned so that equal subexpressions are one node."""

from __future__ import annotations

import functools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np

from graphc.errors import GraphcError, GraphError
from graphc.graph.source import Source, attribute_to, user_source
from graphc.types import DType, Shape, TensorType

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Op(ABC):
    """What a node computes. Subclasses are frozen dataclasses whose fields are the op's attributes.

    One subclass is one place: its shape rule (:meth:`infer`), its derivative (:meth:`vjp`), its float64
    reference (:meth:`reference`), its sample inputs (``samples``), and how it is lowered (which of the
    families of ``graphc.ops`` it belongs to). Registration in ``graphc.ops.registry`` refuses an op that
    lacks one.
    """

    label: ClassVar[str] = ""

    @property
    def title(self) -> str:
        """The op's name as it is printed and as errors name it."""
        return self.label

    @property
    def attributes(self) -> str:
        """The op's attributes as text, for printing a graph."""
        return ""

    @abstractmethod
    def infer(self, *types: TensorType) -> TensorType:
        """Return the type of the result, or raise ShapeError or DTypeError with the rule and the values."""

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Return the cotangent of every input (None: no gradient flows there)."""
        raise GraphcError(f"{self.title} has no derivative")

    @abstractmethod
    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Return the result in float64 by plain NumPy."""

    def __call__(self, *inputs: Node, name: str | None = None) -> Node:
        """Return the node that applies this op to the inputs."""
        return apply(self, inputs, name)


# Arithmetic on nodes (``a + b``) is defined by the elementwise ops, which live above this module: they
# enter themselves here.
operators: dict[str, Callable[..., Node]] = {}


class Node:
    """One value of a graph: an op applied to inputs. Compared and hashed by identity (nodes are interned)."""

    __slots__ = ("__weakref__", "inputs", "name", "op", "source", "type")
    __array_ufunc__ = None  # NumPy must hand ``array * node`` to the node

    op: Op
    inputs: tuple[Node, ...]
    type: TensorType
    source: Source
    name: str | None

    def __init__(self, op: Op, inputs: tuple[Node, ...], type_: TensorType, source: Source, name: str | None):
        """Set the fields once; use :func:`apply` to make nodes."""
        for slot, value in (
            ("op", op), ("inputs", inputs), ("type", type_), ("source", source), ("name", name)
        ):  # fmt: skip
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse: nodes are immutable."""
        raise AttributeError(f"nodes are immutable; cannot set {name!r}")

    @property
    def shape(self) -> Shape:
        """The shape; the run-time batch is an :class:`~graphc.types.Extent`."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """The dtype."""
        return self.type.dtype

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.type.shape)

    def __repr__(self) -> str:
        """Return one short line (never the whole graph)."""
        name = f" {self.name!r}" if self.name else ""
        return f"<{self.op.title}{name} {self.type} at {self.source}>"

    def __add__(self, other: Any) -> Node:
        return operators["add"](self, other)

    def __radd__(self, other: Any) -> Node:
        return operators["add"](other, self)

    def __sub__(self, other: Any) -> Node:
        return operators["sub"](self, other)

    def __rsub__(self, other: Any) -> Node:
        return operators["sub"](other, self)

    def __mul__(self, other: Any) -> Node:
        return operators["mul"](self, other)

    def __rmul__(self, other: Any) -> Node:
        return operators["mul"](other, self)

    def __truediv__(self, other: Any) -> Node:
        return operators["div"](self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return operators["div"](other, self)

    def __pow__(self, other: Any) -> Node:
        return operators["pow"](self, other)

    def __rpow__(self, other: Any) -> Node:
        return operators["pow"](other, self)

    def __matmul__(self, other: Any) -> Node:
        return operators["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Node:
        return operators["matmul"](other, self)

    def __neg__(self) -> Node:
        return operators["neg"](self)

    def __abs__(self) -> Node:
        return operators["abs"](self)

    def __lt__(self, other: Any) -> Node:
        return operators["less"](self, other)

    def __le__(self, other: Any) -> Node:
        return operators["less_equal"](self, other)

    def __gt__(self, other: Any) -> Node:
        return operators["greater"](self, other)

    def __ge__(self, other: Any) -> Node:
        return operators["greater_equal"](self, other)

    def __getitem__(self, index: Any) -> Node:
        return operators["getitem"](self, index)

    def __bool__(self) -> bool:
        """Refuse: a node has no value while the graph is being written."""
        raise GraphcError(f"{self!r} has no truth value; use gc.where for a choice inside the graph")

    def __iter__(self) -> Any:
        """Refuse: iterating over a tensor is almost always a mistake in a static graph."""
        raise GraphcError(f"{self!r} cannot be iterated over; use gc.split")

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Compare by identity: interning makes equal subexpressions one node."""
        return self is other


_interned: weakref.WeakValueDictionary[tuple[Op, tuple[Node, ...]], Node] = weakref.WeakValueDictionary()


def apply(op: Op, inputs: Iterable[Node], name: str | None = None, source: Source | None = None) -> Node:
    """Return the one node that applies ``op`` to ``inputs``.

    Raises:
        GraphcError: what ``op.infer`` raised, with the op, its name and the user's line added.
    """
    key = (op, tuple(inputs))
    node = _interned.get(key)
    if node is not None:
        return node
    source = source or user_source()
    try:
        type_ = op.infer(*(i.type for i in key[1]))
    except GraphcError as error:
        raise located(type(error), op.title, name, str(error), source) from None
    return _interned.setdefault(key, Node(op, key[1], type_, source, name))


def located(
    kind: type[GraphcError], op: str, name: str | None, message: str, source: Source | None = None
) -> GraphcError:
    """Return an error that names the op, the layer, what is wrong and the user's line."""
    label = f" {name!r}" if name else ""
    error = kind(f"{op}{label}: {message}, at {source or user_source()}")
    error.located = True
    return error


def names_the_line(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a public function whose errors end with the user's line, where they do not name it already."""

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except GraphcError as error:
            if error.located:
                raise
            placed = type(error)(f"{error}, at {user_source()}")
            placed.located = True
            raise placed from None

    return checked


def topological(outputs: Iterable[Node]) -> list[Node]:
    """Return all nodes that the outputs need, inputs first, in an order that the graph alone fixes.

    Raises:
        GraphError: the graph has a cycle (possible only if a node was tampered with).
    """
    order: list[Node] = []
    state: dict[Node, bool] = {}  # False: on the current path, True: done
    for output in outputs:
        stack: list[tuple[Node, int]] = [(output, 0)]
        while stack:
            node, position = stack.pop()
            if position == 0:
                if node in state:
                    if not state[node]:
                        raise GraphError(f"the graph has a cycle through {node!r}")
                    continue
                state[node] = False
            if position < len(node.inputs):
                stack.append((node, position + 1))
                child = node.inputs[position]
                if state.get(child) is False:
                    raise GraphError(f"the graph has a cycle through {child!r}")
                if child not in state:
                    stack.append((child, 0))
            else:
                state[node] = True
                order.append(node)
    return order


def rebuild(outputs: Sequence[Node], rule: Callable[[Node, tuple[Node, ...]], Node | None]) -> list[Node]:
    """Return the outputs rewritten bottom-up.

    ``rule(node, new_inputs)`` returns the replacement, or None for the same op on the new inputs. Names
    and source lines of the old nodes pass over to the new ones.
    """
    done: dict[Node, Node] = {}
    for node in topological(outputs):
        inputs = tuple(done[i] for i in node.inputs)
        with attribute_to(node.source):
            new = rule(node, inputs)
        if new is None:
            new = node if inputs == node.inputs else apply(node.op, inputs, node.name, node.source)
        done[node] = new
    return [done[o] for o in outputs]
