"""graphc as a backend of ONNX's own tests: ``onnx.backend.test.BackendTest(graphc.onnx_backend.Backend)``.

A model is imported, compiled to C, built and called. An input whose value has to be known when compiling, such as
the shape that a Reshape gets as an input, is taken from the first call.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.backend.base import Backend as BaseBackend
from onnx.backend.base import BackendRep
from onnx.helper import tensor_dtype_to_np_dtype

from graphc.api import Module, compile
from graphc.build import BuildOptions
from graphc.errors import GraphcError
from graphc.graph.node import Node, topological
from graphc.onnx.importer import OnnxImportError, Progress
from graphc.onnx.load import Found, import_model
from graphc.onnx.names import unique_names
from graphc.onnx.values import Known, Listed, Value, widened
from graphc.ops.leaves import Constant, Full

_BUILD = BuildOptions(optimisation=("-O1",))


class UnsupportedError(unittest.SkipTest):
    """A model that graphc says it does not take; tests of it are skipped with the reason."""


class Rep(BackendRep):
    """A model, which is imported and compiled at the first call.

    ``known`` names those outputs that importing alone told, so that nothing was compiled for them.
    """

    def __init__(self, model: ModelProto):
        """Keep the model."""
        self._model = model
        self._module: Module | None = None
        self._found: Found | None = None
        self._constants: dict[str, np.ndarray] = {}
        self.known: tuple[str, ...] = ()

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """Return the outputs in their order.

        Raises:
            UnsupportedError: the model cannot be imported or compiled.
        """
        del kwargs
        names = [i.name for i in self._model.graph.input if i.name not in self._initialised()]
        arrays = self._arrays(inputs, names)
        try:
            found, module = self._compiled(arrays)
        except GraphcError as error:
            raise UnsupportedError(str(error)) from error
        held = unique_names(names)
        feeds = {
            held[name]: array for name, array in arrays.items() if name in held and held[name] in found.inputs
        }
        fed: Any = {n: feeds[n] for n in module.input_types} if module is not None else {}
        computed = module.predict(**fed) if module is not None else {}
        results = (_result(name, value, computed) for name, value in found.outputs.items())
        return tuple(map(_narrowed, results, self._model.graph.output))

    def _arrays(self, inputs: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the inputs by name: those without an initializer, or all where there are as many."""
        if not isinstance(inputs, dict):
            every = [i.name for i in self._model.graph.input]
            inputs = dict(zip(every if len(inputs) == len(every) else names, inputs, strict=False))
        given = {name: value for name, value in inputs.items() if value is not None}
        if any(isinstance(value, (list, tuple)) for value in given.values()):
            raise UnsupportedError("inputs that are sequences are not supported")
        return {name: widened(np.asarray(value)) for name, value in given.items()}

    def _initialised(self) -> set[str]:
        return {t.name for t in self._model.graph.initializer}

    def _compiled(self, arrays: dict[str, np.ndarray]) -> tuple[Found, Module | None]:
        if self._found is None or any(
            not np.array_equal(arrays[n], v, equal_nan=v.dtype.kind == "f")
            for n, v in self._constants.items()
        ):
            self._found = self._import(arrays)
            outputs = {n: v for name, value in self._found.outputs.items() for n, v in _tensors(name, value)}
            self.known = tuple(n for n, v in self._found.outputs.items() if not list(_tensors(n, v)))
            dtype = _floating(outputs.values())
            self._module = compile(outputs, build=_BUILD, name="model", dtype=dtype) if outputs else None
        return self._found, self._module

    def _import(self, arrays: dict[str, np.ndarray]) -> Found:
        """Import the model, with the values of those inputs that it needs to know, and of those without elements."""
        overridden = self._initialised()
        self._constants = {n: a for n, a in arrays.items() if a.size == 0 and n not in overridden}
        shapes = {n: a.shape for n, a in arrays.items() if n not in overridden}
        while True:
            progress = Progress("", (), (), strict=True)
            try:
                return import_model(
                    self._model, dims={}, constants=self._constants, progress=progress,
                    shapes={n: s for n, s in shapes.items() if n not in self._constants},
                )  # fmt: skip
            except OnnxImportError as error:
                more = [n for n in error.inputs if n in arrays and n not in self._constants]
                if not more:
                    raise
                self._constants |= {n: arrays[n] for n in more}


def _tensors(name: str, value: Value) -> Iterator[tuple[str, Node]]:
    """Yield the tensors that an output consists of, those of a sequence by their positions."""
    if isinstance(value, Node):
        yield name, value
    elif isinstance(value, Listed):
        for k, item in enumerate(value.items):
            yield from _tensors(f"{name}__{k}", item)


def _result(name: str, value: Value, computed: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, Listed):
        return [_result(f"{name}__{k}", item, computed) for k, item in enumerate(value.items)]
    return value.array if isinstance(value, Known) else computed[name]


def _narrowed(result: Any, declared: Any) -> Any:
    """Return a result in the type that the model declares, where that is a float of 16 bits."""
    element = declared.type.tensor_type.elem_type
    if element not in (TensorProto.FLOAT16, TensorProto.BFLOAT16) or not isinstance(result, np.ndarray):
        return result
    with np.errstate(over="ignore"):  # what is too large for them is an infinity
        return result.astype(tensor_dtype_to_np_dtype(element))


def _floating(outputs: Iterable[Node]) -> str:
    """Return the precision to compile in: all in float64 if all of the graph is, whatever dtype constants have."""
    computed = [n for n in topological(outputs) if not isinstance(n.op, (Constant, Full))]
    return "float64" if {n.dtype for n in computed if n.type.is_float} == {"float64"} else "mixed"


class Backend(BaseBackend):
    """graphc on the processor."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Rep:
        """Return a model that can be run."""
        del device, kwargs
        return Rep(model)

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs of a model."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether there is code for a device here."""
        return device == "CPU"
