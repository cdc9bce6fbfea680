"""Reads ONNX models, and refuses damaged ones with one kind of error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from graphc.errors import GraphcError, GraphError


def read(onnx: Any, model: Any) -> Any:
    """Return a model as a ``ModelProto``.

    Raises:
        GraphError: there is no such file, it is no model, or its data lie outside its folder.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    name = "the model" if isinstance(model, bytes) else os.fspath(model)
    try:
        proto = (
            onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(str(Path(model)))
        )
    except OSError as error:
        raise GraphError(f"onnx: {name} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf and onnx have many, some of which depend on their versions
        raise GraphError(f"onnx: {name} is no ONNX model, or damaged: {error}") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise GraphError(f"onnx: {name} is no ONNX model: it has no graph, or no version")
    if proto.ir_version > onnx.IR_VERSION:
        raise GraphError(
            f"onnx: {name} has IR version {proto.ir_version}; the onnx package that is installed reads up to "
            f"{onnx.IR_VERSION}"
        )
    return proto


def array_of(onnx: Any, tensor: Any, file: str) -> np.ndarray:
    """Return the array of an initializer.

    Raises:
        GraphError: its data do not fit its shape or type.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:  # of a file they are read by now
        raise GraphError(
            f"onnx: {file}: initializer {tensor.name!r} lies in another file; load the model by its path"
        )
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except GraphcError:
        raise
    except Exception as error:  # as above: whatever damaged data may lead to
        shape = tuple(tensor.dims)
        raise GraphError(f"onnx: {file}: initializer {tensor.name!r} of shape {shape}: {error}") from error
    return np.asarray(array)


def check_names(onnx: Any, proto: Any, file: str) -> None:
    """Check the versions of the operator sets, and that something computes every output.

    Raises:
        GraphError: one is not there, or unknown.
    """
    newest, graph = onnx.defs.onnx_opset_version(), proto.graph
    for opset in proto.opset_import:
        if not 0 < opset.version <= (newest if opset.domain in ("", "ai.onnx") else 2**31 - 1):
            raise GraphError(
                f"onnx: {file}: operator set {opset.domain or 'ai.onnx'!r} {opset.version} is not known; the "
                f"newest of ONNX that is known is {newest}"
            )
    made = {n for node in graph.node for n in node.output if n}
    made |= {v.name for v in (*graph.input, *graph.initializer)}
    missing = [o.name for o in graph.output if o.name not in made]
    if missing:
        raise GraphError(f"onnx: {file}: nothing computes the output {', '.join(map(repr, missing))}")
