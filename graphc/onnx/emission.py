"""ONNX nodes in the making: operators, constants, sizes that depend on the run-time batch, and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from graphc.errors import GraphError
from graphc.graph.node import Node, Op, topological
from graphc.onnx.package import onnx_package
from graphc.ops.leaves import Input
from graphc.types import DType, Extent, N, Shape, Size, coefficients_of

OPSET, IR_VERSION = 21, 10
"""Of 2024: old enough for most runtimes that are in use, new enough for every operator that is written."""

Writer = Callable[["Emission", Node], str]
WRITERS: dict[type[Op], Writer] = {}
_W = TypeVar("_W", bound=Writer)


@dataclass(frozen=True)
class Match:
    """One operator for several nodes: what it reads, how it is written, and the node that names it."""

    operands: tuple[Node, ...]
    write: Callable[[Emission, Sequence[str]], str]
    named: Node


Matcher = Callable[[Node], Match | None]


def writes(*ops: type[Op]) -> Callable[[_W], _W]:
    """Enter what writes nodes of some ops and returns the name of the result."""

    def enter(writer: _W) -> _W:
        WRITERS.update(dict.fromkeys(ops, writer))
        return writer

    return enter


class Emission:
    """The nodes and constants of one ONNX graph; the values of leaves are there from the start."""

    def __init__(self, leaves: Mapping[Node, str], reserved: Sequence[str] = ()):
        """Start with the names of inputs, parameters and whatever else is given from outside."""
        self.names: dict[Node, str] = dict(leaves)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.positions: dict[Node, str] = {}
        """Where in its image each maximum lies, by the node of a window's index."""
        self._taken = {*leaves.values(), *reserved}
        self._counts: dict[str, int] = {}
        self._known: dict[Any, str] = {}
        self._sizes: dict[Size, str] = {}
        self._at: Node | None = None

    def graph(self, outputs: Sequence[Node], match: Matcher | None = None) -> list[str]:
        """Write everything that the outputs need, several nodes as one where they match; return their names.

        Raises:
            GraphError: an op has no form in ONNX.
        """
        order = topological(outputs)
        needed, matched = set(outputs), {}
        for node in reversed(order):
            if node in needed and node not in self.names:
                found = match(node) if match is not None else None
                if found is not None:
                    matched[node] = found
                needed |= set(node.inputs if found is None else found.operands)
        for node in order:
            if node not in needed or node in self.names:
                continue
            if node in matched:
                found = matched[node]
                self._at = found.named
                self.names[node] = found.write(self, [self.names[o] for o in found.operands])
            else:
                self._at = node
                self.names[node] = _writer_of(node)(self, node)
        return [self.names[o] for o in outputs]

    def inputs(self, node: Node) -> list[str]:
        """Return the names of a node's operands."""
        return [self.names[i] for i in node.inputs]

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; return the name of its first result."""
        return self.op_with(kind, inputs, 1, **attributes)[0]

    def op_with(self, kind: str, inputs: Sequence[str], results: int, **attributes: Any) -> list[str]:
        """Add an operator; return the names of its results."""
        at = self._at
        name = self._unique(at.name if at is not None and at.name else kind.lower())
        outputs = [name, *(self._unique(f"{name}.{k}") for k in range(1, results))]
        made = onnx_package().helper.make_node(kind, list(inputs), outputs, name, **attributes)
        self.nodes.append(made)
        return outputs

    def constant(self, values: Any, dtype: DType | str) -> str:
        """Return the name of a constant; equal ones are one."""
        array = np.ascontiguousarray(values, dtype=dtype).reshape(np.shape(values))
        key = (str(dtype), array.shape, array.tobytes())
        if key not in self._known:
            name = self._unique(_constant_name(array))
            self._known[key], self.constants[name] = name, array
        return self._known[key]

    def integers(self, values: Sequence[int]) -> str:
        """Return a constant list of axes, sizes or places."""
        return self.constant(np.array(values, np.int64).reshape(len(values)), "int64")

    def sizes(self, shape: Shape) -> str:
        """Return a shape as a tensor, computed where it depends on the batch."""
        if not any(isinstance(d, Extent) for d in shape):
            return self.integers([d for d in shape if isinstance(d, int)])
        parts = [self.size(d) for d in shape]
        return self.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def size(self, size: Size) -> str:
        """Return one size as a tensor with one element."""
        if isinstance(size, int):
            return self.integers([size])
        if size not in self._sizes:
            self._sizes[size] = self._batch() if size == N else self._polynomial(coefficients_of(size))
        return self._sizes[size]

    def reshape(self, x: str, shape: Shape) -> str:
        """Reshape; the only extent that depends on the batch follows from the others."""
        symbolic = [d for d in shape if isinstance(d, Extent)]
        if len(symbolic) > 1:
            return self.op("Reshape", x, self.sizes(shape))
        return self.op("Reshape", x, self.integers([d if isinstance(d, int) else -1 for d in shape]))

    def full(self, shape: Shape, value: float, dtype: str) -> str:
        """Return one number in every element of a shape."""
        if (
            not any(isinstance(d, Extent) for d in shape)
            and np.prod([d for d in shape if isinstance(d, int)]) <= 64
        ):
            return self.constant(np.full(shape, value), dtype)
        onnx = onnx_package()
        number = onnx.numpy_helper.from_array(np.array([value], dtype))
        return self.op("ConstantOfShape", self.sizes(shape), value=number)

    def cast(self, x: str, dtype: str) -> str:
        """Convert to another dtype."""
        kind = onnx_package().helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.op("Cast", x, to=kind)

    def _batch(self) -> str:
        for node, name in self.names.items():
            if isinstance(node.op, Input) and N in node.shape:
                axis = node.shape.index(N)
                return self.op("Shape", name, start=axis, end=axis + 1)
        raise GraphError("to_onnx: no input has the batch in its shape, so that nothing tells it")

    def _polynomial(self, coefficients: Sequence[int]) -> str:
        """Return the value for the batch, by Horner's rule."""
        total = self.integers([coefficients[-1]])
        for c in reversed(coefficients[:-1]):
            total = self.op("Mul", total, self.size(N))
            total = self.op("Add", total, self.integers([c])) if c else total
        return total

    def _unique(self, name: str) -> str:
        while True:
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            chosen = name if count == 0 else f"{name}_{count}"
            if chosen not in self._taken:
                self._taken.add(chosen)
                return chosen


def _writer_of(node: Node) -> Writer:
    writer = WRITERS.get(type(node.op))
    if any(
        str(i.dtype) == "uint64" for i in node.inputs
    ):  # other widths are computed in int64, which it exceeds
        raise GraphError(f"to_onnx: {node.op.title} of uint64 cannot be written in ONNX, at {node.source}")
    if writer is None:
        raise GraphError(f"to_onnx: {node.op.title} cannot be written in ONNX, at {node.source}")
    return writer


def _constant_name(array: np.ndarray) -> str:
    if array.dtype == np.int64 and array.ndim == 1 and 0 < array.size <= 4:
        return "sizes_" + "_".join(str(v).replace("-", "minus") for v in array.tolist())
    return "number" if array.ndim == 0 else "constant"
