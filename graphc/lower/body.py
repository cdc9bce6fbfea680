"""Straight-line bodies: reading nodes at a loop index, and the operands that a kernel gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from graphc.graph.node import Node
from graphc.lower.names import Names, c_name
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import BatchExtent, Full, Input, Iota, Parameter, RandomUniform, State
from graphc.ops.movement import Movement, View
from graphc.passes.generated import generator_view, is_generated
from graphc.program.ir import Access, Buffer, Compute, Index, Load, Number, Operand, Random, Statement
from graphc.types import Shape


class Storage(Protocol):
    """Where values are, while an entry point is lowered."""

    def locate(self, node: Node) -> tuple[Buffer, View]:
        """Return the buffer of a node and how to read it."""

    def is_stored(self, node: Node) -> bool:
        """Return whether a node has a buffer of its own."""


@dataclass
class Operands:
    """The parameters of one kernel under construction, and the buffers that a call passes for them."""

    operands: list[Operand] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)

    def add(self, name: str, buffer: Buffer, shape: Shape, written: bool) -> int:
        """Return the position of a parameter; reading a buffer twice is one parameter."""
        for position, (known, bound) in enumerate(zip(self.operands, self.buffers, strict=True)):
            if bound == buffer and known.written == written:
                return position
        taken = {o.name for o in self.operands}
        unique = (
            name
            if name not in taken
            else next(f"{name}{k}" for k in range(1, 999) if f"{name}{k}" not in taken)
        )
        self.operands.append(Operand(unique, buffer.dtype, written, shape))
        self.buffers.append(buffer)
        return len(self.operands) - 1


def role(node: Node) -> str:
    """Return the name of a kernel's parameter: the same for equal layers, so that they share code."""
    if isinstance(node.op, (Parameter, State)):
        return c_name(node.op.field) if node.op.field else "parameter"
    return c_name(node.op.name if isinstance(node.op, Input) else node.op.title)


def live_nodes(nodes: Sequence[Node], outputs: Sequence[Node]) -> list[Node]:
    """Return the nodes of a group that its outputs need; others are computed again wherever they are read."""
    needed = set(outputs)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.inputs)
    return [n for n in nodes if n in needed]


def broadcast_strides(shape: Shape, strides: Shape, domain: Shape) -> Shape:
    """Return strides over the axes of the domain: 0 wherever the tensor is repeated."""
    new = len(domain) - len(shape)
    return tuple(
        0 if a < new or (shape[a - new] == 1 and domain[a] != 1) or domain[a] == 1 else strides[a - new]
        for a in range(len(domain))
    )


class Reader:
    """Emits the statements that make a node's value available at the index of a domain."""

    def __init__(self, domain: Shape, operands: Operands, storage: Storage, names: Names):
        """Read for loops over ``domain``."""
        self.domain = domain
        self.operands = operands
        self.storage = storage
        self.names = names

    def external(self, node: Node, emit: Callable[[Statement], None]) -> str:
        """Emit what reads a node from outside the kernel (or generates it) and return its name."""
        if is_generated(node):
            return self._generated(node, emit)
        if isinstance(node.op, Elementwise) and not self.storage.is_stored(node):
            arguments = [self.external(i, emit) for i in node.inputs]  # cheaper to compute again than to keep
            name = self.names.fresh(node.op.title)
            emit(compute(node, name, arguments))
            return name
        buffer, view = self.storage.locate(node)
        base = node
        while isinstance(base.op, Movement):
            base = base.inputs[0]
        position = self.operands.add(role(base), buffer, base.shape, False)
        name = self.names.fresh(f"{self.operands.operands[position].name}_i")
        emit(Load(name, buffer.dtype, position, self._access(view)))
        return name

    def _access(self, view: View) -> Access:
        return Access(broadcast_strides(view.shape, view.strides, self.domain), view.offset)

    def _generated(self, node: Node, emit: Callable[[Statement], None]) -> str:
        op = node.op
        name = self.names.fresh(op.title)
        if isinstance(op, Elementwise):
            arguments = tuple((self._generated(i, emit), i.dtype) for i in node.inputs)
            emit(Compute(name, node.dtype, op.expr, arguments))
            return name
        located = generator_view(node)
        assert located is not None
        base, view = located
        if isinstance(base.op, Full):
            emit(Number(name, node.dtype, base.op.value))
        elif isinstance(base.op, BatchExtent):
            emit(Number(name, node.dtype, base.op.size))
        elif isinstance(base.op, Iota):
            emit(Index(name, node.dtype, self._access(view)))
        elif isinstance(base.op, RandomUniform):
            assert isinstance(base.op.stream, int)
            emit(Random(name, node.dtype, self._access(view), base.op.stream))
        return name


def compute(node: Node, name: str, arguments: list[str]) -> Compute:
    """Return the statement of an elementwise node."""
    assert isinstance(node.op, Elementwise)
    pairs = tuple((a, i.dtype) for a, i in zip(arguments, node.inputs, strict=True))
    return Compute(name, node.dtype, node.op.expr, pairs)
