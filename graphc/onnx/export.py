"""Writes a net as an ONNX file: what it predicts, or a whole step of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphc.errors import GraphError
from graphc.graph.node import Node, topological
from graphc.layout import name_leaves
from graphc.onnx import writers as _  # noqa: F401  # enters the writers
from graphc.onnx.emission import IR_VERSION, OPSET, Emission
from graphc.onnx.package import onnx_package
from graphc.onnx.patterns import match, users_of
from graphc.onnx.training import LR, STEP, TrainingGraph, training_graph, write_update
from graphc.onnx.writing import save
from graphc.ops.leaves import Constant, Input, Parameter, RandomUniform, State
from graphc.passes.specialise import specialise
from graphc.pipeline import Request, written_graph
from graphc.types import DType, Shape, TensorType


@dataclass(frozen=True)
class Given:
    """What a module holds when it is written: weights, statistics, the optimizer's values by slot, and numbers."""

    weights: Mapping[str, np.ndarray]
    slots: Mapping[str, Mapping[str, np.ndarray]]
    step: int
    lr: float | None


def write_onnx(path: str | Path, request: Request, given: Given, *, train: bool) -> Path:
    """Write the file and return its path. See ``graphc.Module.to_onnx``.

    Raises:
        GraphError: there is nothing to write, an op has no form in ONNX, names clash, or the file cannot be written.
    """
    writer = _Model(request, given)
    model = writer.training() if train else writer.inference()
    model.producer_name = "graphc"
    return save(model, Path(path))


class _Model:
    """Collects what an ONNX model is made of."""

    def __init__(self, request: Request, given: Given):
        self.request, self.given = request, given
        self.written = written_graph(request)
        leaves = [
            n for n in topological(self.written.values()) if isinstance(n.op, (Parameter, State, Constant))
        ]
        self.leaf_names = name_leaves(leaves)
        self.inputs: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def inference(self) -> Any:
        """Return the model of the outputs; weights are no inputs, so that runtimes may fold what depends on them."""
        outputs = {name: self.written[name] for name in self.request.outputs}
        if not outputs:
            raise GraphError(f"to_onnx: module {self.request.name!r} has no outputs to predict")
        graph = specialise(outputs, training=False).outputs
        emission = self._emission(graph, list(graph), {}, defaults=False)
        names = dict(zip(graph, _written(emission, graph), strict=True))
        return self._finish(emission, names, {name: node.type for name, node in graph.items()})

    def training(self) -> Any:
        """Return the model of a training step; weights are inputs that have their present values by default."""
        request = self.request
        if request.loss is None:
            raise GraphError(f"to_onnx: module {request.name!r} was compiled without a loss")
        step = training_graph(self.written, request, self.leaf_names)
        optimizer = request.optimizer
        slots = (
            {f"optimizer.{s}.{n}": a for s, arrays in self.given.slots.items() for n, a in arrays.items()}
            if optimizer is not None else {}
        )  # fmt: skip
        numbers: dict[str, np.ndarray] = {}
        if optimizer is not None:
            numbers = {LR: np.array(float(self.given.lr or 0.0)), STEP: np.array(self.given.step, np.int64)}
        emission = self._emission(
            step.outputs, self._results(step, slots), {**numbers, **slots}, defaults=True
        )
        names = dict(zip(step.outputs, _written(emission, step.outputs), strict=True))
        types = {name: node.type for name, node in step.outputs.items()}
        if optimizer is not None:
            updated = write_update(emission, step, optimizer, request.dtype, names)
            names |= updated
            types |= {name: self._type(name.removeprefix("new.")) for name in updated}
        return self._finish(emission, names, types)

    def _results(self, step: TrainingGraph, slots: Mapping[str, np.ndarray]) -> list[str]:
        updated = [*step.parameters.values(), *slots, STEP] if self.request.optimizer is not None else []
        return [*step.outputs, *(f"new.{name}" for name in updated)]

    def _emission(
        self, graph: Mapping[str, Node], results: list[str], more: Mapping[str, np.ndarray], *, defaults: bool
    ) -> Emission:
        """Enter the leaves of a graph as inputs and initializers."""
        names: dict[Node, str] = {}
        for node in topological(graph.values()):
            if isinstance(node.op, (Input, RandomUniform)):
                # The numbers of graphc's generator have no form in ONNX: whoever runs the file draws them.
                name = node.op.name if isinstance(node.op, Input) else f"random.{node.op.stream}"
                names[node] = name
                self._input(name, node.dtype, node.shape)
            elif node in self.leaf_names:
                names[node] = name = self.leaf_names[node]
                held = self.given.weights.get(name)
                if held is None and isinstance(node.op, Constant):
                    held = node.op.values.astype(node.dtype)
                assert held is not None
                self.arrays[name] = held
                if defaults and not isinstance(node.op, Constant):
                    self._input(name, node.dtype, node.shape)
        for name, array in more.items():
            self.arrays[name] = array
            self._input(name, str(array.dtype), array.shape)
        taken = [*names.values(), *more, *results]
        twice = sorted({name for name in taken if taken.count(name) > 1})
        if twice:
            raise GraphError(
                f"to_onnx: {', '.join(map(repr, twice))}: inputs, parameters and outputs need names of their own in "
                "an ONNX graph"
            )
        return Emission(names, taken)

    def _input(self, name: str, dtype: DType | str, shape: Shape) -> None:
        self.inputs.append(_value_info(name, dtype, shape))

    def _type(self, name: str) -> TensorType:
        array = self.arrays[name]
        return TensorType(str(array.dtype), array.shape)  # type: ignore[arg-type]  # dtypes of graphc

    def _finish(self, emission: Emission, names: Mapping[str, str], types: Mapping[str, TensorType]) -> Any:
        """Give the results their names and return the model."""
        onnx = onnx_package()
        _rename(emission, names)
        arrays = {**self.arrays, **emission.constants}
        graph = onnx.helper.make_graph(
            emission.nodes, self.request.name, self.inputs,
            [_value_info(name, t.dtype, t.shape) for name, t in types.items()],
            [onnx.numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), n) for n, a in arrays.items()],
        )  # fmt: skip
        return onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )


def _written(emission: Emission, graph: Mapping[str, Node]) -> list[str]:
    """Return the names of the outputs after everything that they need has been written."""
    outputs = list(graph.values())
    users = users_of(topological(outputs), outputs)
    return emission.graph(outputs, lambda node: match(node, users))


def _value_info(name: str, dtype: DType | str, shape: Shape) -> Any:
    onnx = onnx_package()
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(
        name, kind, [d if isinstance(d, int) else str(d) for d in shape]
    )


def _rename(emission: Emission, names: Mapping[str, str]) -> None:
    """Call every result as the outputs do; a second name for the same, or one for a leaf, is an Identity."""
    made = {name for node in emission.nodes for name in node.output}
    new: dict[str, str] = {}
    copies: list[tuple[str, str]] = []
    for output, value in names.items():
        if value in made and value not in new:
            new[value] = output
        else:
            copies.append((value, output))
    for node in emission.nodes:
        for fields in (node.input, node.output):
            fields[:] = [new.get(name, name) for name in fields]
    for value, output in copies:
        source = new.get(value, value)
        emission.nodes.append(onnx_package().helper.make_node("Identity", [source], [output], output))
