"""``load``: an ONNX model becomes tensors of a graph."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphc.errors import GraphError, RangeError, UnknownNameError
from graphc.graph.node import Node, names_the_line
from graphc.onnx.files import array_of, check_names, read
from graphc.onnx.importer import Importer, Progress
from graphc.onnx.names import unique_names
from graphc.onnx.order import needed_nodes
from graphc.onnx.package import onnx_package
from graphc.onnx.site import UnsupportedError
from graphc.onnx.values import HALVES, Known, Value, widened
from graphc.ops.leaves import input_

if TYPE_CHECKING:
    import onnx

_SHOWN = 8  # names that an error lists
_MOST_ELEMENTS = 2**40  # of an input; more is damage


@dataclass(frozen=True)
class Imported:
    """A model as tensors of a graph.

    ``inputs`` and ``outputs`` are named as in the file, with ``_`` for characters that no identifier may have;
    ``parameters`` are the weights and ``tensors`` all results of nodes that the outputs need, under the file's names:
    cut the net at one of them to put another head on it.
    """

    name: str
    inputs: Mapping[str, Node]
    outputs: Mapping[str, Node]
    parameters: Mapping[str, Node]
    tensors: Mapping[str, Node]


@names_the_line
def load(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    trainable: str | Sequence[str] = "*",
    freeze: str | Sequence[str] = (),
    batch_norm: Literal["inference", "training"] = "inference",
) -> Imported:
    """Return an ONNX model (a file, its bytes, or a ``ModelProto``) as tensors of a graph.

    A symbolic first dimension of an input is the run-time batch ``N``. ``dims`` gives other symbolic dimensions, or
    this one, a value by name; ``shapes`` replaces whole shapes of inputs, in which ``"N"`` may be the first extent;
    ``constants`` fixes the values of inputs, such as the shape that a Reshape gets as an input.

    Floating-point initializers with axes become parameters of the same name. Those that match ``trainable`` and not
    ``freeze`` (a pattern or several, as in a shell) are learned; a pattern must match some.

    Batch normalisations of a file for inference are a scale and a shift from fixed statistics, which are never
    learned. With ``batch_norm="training"`` those whose statistics are initializers become ``gc.nn.batch_norm``:
    training uses the batch's statistics and moves the running ones, which start at the file's values and keep their
    names.
    Normalisations and dropouts that the file has in training form become gc's then, too.

    Weights may lie in other files of the model's folder, if the model is loaded by its path. Operator sets of ONNX 6
    and newer are read; of 6, what has the meaning that it has in 7, as PyTorch's early exports have. Nodes that no
    output needs are left out.

    Tensors of 16-bit floats are float32 here, inputs and outputs too, and are not rounded in between.

    Raises:
        GraphcError: the model is damaged, a symbolic dimension has no value, or nodes cannot be imported: the error
            lists each with its name, operator, version and reason.
    """
    if batch_norm not in ("inference", "training"):
        raise RangeError(f"onnx.load: batch_norm must be 'inference' or 'training', got {batch_norm!r}")
    found = import_model(
        model, dims=dims or {}, shapes=shapes or {}, constants=constants or {},
        progress=Progress("", _patterns(trainable), _patterns(freeze), restore_batch_norm=batch_norm == "training"),
    )  # fmt: skip
    outputs = {name: found.tensor(name, value) for name, value in found.outputs.items()}
    _check_patterns(found, trainable, freeze)
    tensors = {name: v for name, v in found.importer.values.items() if isinstance(v, Node)}
    return Imported(found.name, found.inputs, outputs, found.importer.progress.parameters, tensors)


def _check_patterns(found: Found, trainable: str | Sequence[str], freeze: str | Sequence[str]) -> None:
    """Refuse patterns that match no parameter: whoever wrote them would train, or not, what they did not mean.

    Raises:
        UnknownNameError: there is one.
    """
    known = [*found.importer.progress.parameters, *found.importer.progress.states]
    for option, patterns in (("trainable", _patterns(trainable)), ("freeze", _patterns(freeze))):
        for pattern in patterns:
            if pattern == "*" or any(fnmatchcase(name, pattern) for name in known):
                continue
            shown = ", ".join(map(repr, known[:_SHOWN])) + ", ..." * (len(known) > _SHOWN)
            raise UnknownNameError(f"{option}={pattern!r} matches no parameter; there are {shown or 'none'}")


@dataclass(frozen=True)
class Found:
    """A model whose nodes are imported, some of whose outputs may be known arrays."""

    name: str
    importer: Importer
    inputs: dict[str, Node]
    outputs: dict[str, Value]

    def tensor(self, name: str, value: Value) -> Node:
        """Return an output as a tensor of the graph.

        Raises:
            GraphError: it is none, but a sequence, or a shape that depends on the batch.
        """
        try:
            return self.importer.tensor(value)
        except UnsupportedError as error:
            raise GraphError(f"onnx: output {name!r} cannot be a tensor: {error}") from error


def import_model(
    model: Any, *, dims: Mapping[str, int], shapes: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, np.ndarray], progress: Progress,
) -> Found:  # fmt: skip
    """Read a model and import all its nodes.

    Raises:
        GraphcError: as ``load``.
    """
    onnx = onnx_package()
    proto = read(onnx, model)
    graph = proto.graph
    named = isinstance(model, (str, os.PathLike))
    file = progress.file = os.path.basename(os.fspath(model)) if named else graph.name or "model"
    check_names(onnx, proto, file)
    progress.functions = {(f.domain, f.name): f for f in proto.functions}
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    folder = os.path.dirname(os.path.abspath(os.fspath(model))) if named else None
    values: dict[str, Value] = {}
    for tensor in graph.initializer:
        array = array_of(onnx, tensor, file, folder)
        is_weight = array.dtype.kind == "f" and array.ndim > 0
        values[tensor.name] = Known(array, tensor.name if is_weight else "")
    unknown = [name for name in (*constants, *shapes) if name not in {i.name for i in graph.input}]
    if unknown:
        raise UnknownNameError(f"{file} has no input {', '.join(map(repr, unknown))}")
    wanted = [i for i in graph.input if i.name not in values]
    symbolic = dict.fromkeys(d.dim_param for i in wanted for d in i.type.tensor_type.shape.dim if d.dim_param)
    if strange := [name for name in dims if name not in symbolic]:
        known = ", ".join(map(repr, symbolic)) or "none"
        raise UnknownNameError(f"{file} has no symbolic dimension {strange[0]!r}; there are {known}")
    values.update({name: Known(widened(np.asarray(array))) for name, array in constants.items()})
    names, batch = unique_names(i.name for i in wanted), _batch_name(wanted)
    inputs: dict[str, Node] = {}
    for declared in wanted:
        if declared.name not in constants:
            inputs[names[declared.name]] = values[declared.name] = _input(
                onnx,
                declared,
                names[declared.name],
                shapes.get(declared.name) or _shape(declared, dims, batch),
            )
    importer = Importer(progress, opsets, values)
    needed = needed_nodes(graph, file)
    importer.nodes((node for _, node in needed), [position for position, _ in needed])
    progress.raise_refusals()
    absent = [o.name for o in graph.output if o.name not in values]
    if absent:
        raise GraphError(f"onnx: {file}: output {absent[0]!r} depends on a name that nothing computes")
    outputs = unique_names(o.name for o in graph.output)
    return Found(graph.name, importer, inputs, {outputs[o.name]: values[o.name] for o in graph.output})


def _input(onnx: Any, declared: Any, name: str, shape: Sequence[int | str]) -> Node:
    if not declared.type.HasField("tensor_type"):
        raise GraphError(f"onnx: input {declared.name!r} is no tensor")
    element = declared.type.tensor_type.elem_type
    if element not in onnx.TensorProto.DataType.values() or element == onnx.TensorProto.UNDEFINED:
        raise GraphError(f"onnx: input {declared.name!r}: {element} is no type of elements")
    if math.prod(d for d in shape if isinstance(d, int)) > _MOST_ELEMENTS:
        raise RangeError(f"onnx: input {declared.name!r}: shape {tuple(shape)} is too large")
    dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)))
    return input_(name, tuple(shape), "float32" if dtype in HALVES else dtype)


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _batch_name(inputs: Sequence[Any]) -> str | None:
    """Return the name of the first symbolic dimension that an input begins with."""
    firsts = [i.type.tensor_type.shape.dim[0] for i in inputs if len(i.type.tensor_type.shape.dim)]
    return next((d.dim_param for d in firsts if d.dim_param), None)


def _shape(declared: Any, dims: Mapping[str, int], batch: str | None) -> tuple[int | str, ...]:
    shape: list[int | str] = []
    for axis, dim in enumerate(declared.type.tensor_type.shape.dim):
        if dim.HasField("dim_value"):
            if dim.dim_value < 1:
                raise RangeError(f"onnx: input {declared.name!r}: extent {dim.dim_value} of axis {axis}")
            shape.append(int(dim.dim_value))
        elif dim.dim_param in dims:
            shape.append(int(dims[dim.dim_param]))
        elif axis == 0 and dim.dim_param in ("", batch):
            shape.append("N")
        else:
            known = dim.dim_param or f"axis {axis}"
            raise GraphError(
                f"onnx: input {declared.name!r}: the dimension {known!r} has no value; give it one with "
                f"dims={{{known!r}: ...}}"
            )
    return tuple(shape)
