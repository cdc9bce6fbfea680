"""Reads ONNX models, and refuses damaged ones with one kind of error."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphc.errors import GraphcError, GraphError
from graphc.onnx.values import widened


def read(onnx: Any, model: Any) -> Any:
    """Return a model as a ``ModelProto``. What lies in other files is not read yet.

    Raises:
        GraphError: there is no such file, or it is no model.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    name = "the model" if isinstance(model, bytes) else os.fspath(model)
    try:
        proto = (
            onnx.load_model_from_string(model)
            if isinstance(model, bytes)
            else onnx.load(os.fspath(model), load_external_data=False)
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


def array_of(onnx: Any, tensor: Any, file: str, folder: str | None = None) -> np.ndarray:
    """Return the array of a tensor; ``folder`` is where its data may lie in a file of their own.

    Raises:
        GraphError: its data do not fit its shape or type, or lie outside the folder.
    """
    what, shape = f"onnx: {file}: tensor {tensor.name!r}", tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise GraphError(f"{what}: shape {shape}")
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return widened(_external(onnx, tensor, what, folder))
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
    except GraphcError:
        raise
    except Exception as error:  # as above: whatever damaged data may lead to
        raise GraphError(f"{what} of shape {shape}: {error}") from error
    if array.shape != shape:
        raise GraphError(f"{what} of shape {shape}: its data have shape {array.shape}")
    return widened(array)


def _external(onnx: Any, tensor: Any, what: str, folder: str | None) -> np.ndarray:
    """Return the array of a tensor whose data lie in a file of the model's folder."""
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    if folder is None:
        raise GraphError(
            f"{what} lies in another file, {location!r}; only initializers of a model that is loaded by its path may"
        )
    # Whatever links are on the way: a model must not read what its user did not put beside it.
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, location))
    if not location or os.path.commonpath([root, path]) != root:
        raise GraphError(f"{what}: its file {location!r} lies outside the model's folder, and is not read")
    if not os.path.isfile(path):
        raise GraphError(f"{what}: there is no file {location!r} in the model's folder")
    offset, held = int(given.get("offset", 0)), os.path.getsize(path)
    dtype, count = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)), math.prod(tensor.dims)
    # Elements of fewer than 8 bits are packed, which onnx unpacks.
    plain = dtype.kind in "fiub" and dtype.isbuiltin == 1
    size = count * dtype.itemsize if plain else int(given.get("length", held - offset))
    said = int(given.get("length", size))
    if said != size or offset < 0 or size < 0 or offset + size > held:
        raise GraphError(
            f"{what} of shape {tuple(tensor.dims)}: it needs {size} bytes, and is said to be {said} at {offset} of "
            f"{location!r}, which has {held}"
        )
    if plain:
        values = np.fromfile(path, dtype.newbyteorder("<"), count, offset=offset)
        return values.astype(dtype, copy=False).reshape(tuple(tensor.dims))
    with open(path, "rb") as file:
        file.seek(offset)
        inner = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=file.read(size))
    return np.asarray(onnx.numpy_helper.to_array(inner))


def check_names(onnx: Any, proto: Any, file: str) -> None:
    """Check the versions of the operator sets, that names are text, and that something computes every output.

    Raises:
        GraphError: one is not there, or unknown.
    """
    newest, graph = onnx.defs.onnx_opset_version(), proto.graph
    for opset in proto.opset_import:
        own = opset.domain in ("", "ai.onnx")
        if not 0 < opset.version <= (newest if own else 2**31 - 1):
            raise GraphError(
                f"onnx: {file}: operator set {opset.domain or 'ai.onnx'!r} {opset.version} is not known; the "
                f"newest of ONNX that is known is {newest}"
            )
    if not any(o.domain in ("", "ai.onnx") for o in proto.opset_import):
        if any(node.domain in ("", "ai.onnx") for node in graph.node):
            raise GraphError(f"onnx: {file}: it does not say which version of ONNX's operator set it uses")
    wrong = [text for text in _texts(proto) if not isinstance(text, str)]
    if wrong:
        raise GraphError(f"onnx: {file}: the name {wrong[0]!r} is no valid UTF-8")
    made = {n for node in graph.node for n in node.output if n}
    made |= {v.name for v in (*graph.input, *graph.initializer)}
    missing = [o.name for o in graph.output if o.name not in made]
    if missing:
        raise GraphError(f"onnx: {file}: nothing computes the output {', '.join(map(repr, missing))}")


def _texts(proto: Any) -> Iterator[Any]:
    """Yield all names of the graph and of the functions; protobuf gives bytes for what is no text."""
    graph = proto.graph
    yield graph.name
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for value in graph.input:
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for opset in proto.opset_import:
        yield opset.domain
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    for node in (*graph.node, *(n for f in proto.functions for n in f.node)):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
