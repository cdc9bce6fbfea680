"""Computes a node whose inputs are all known, through the reference implementation of the ``onnx`` package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.onnx.package import onnx_package
from graphc.onnx.site import UnsupportedError
from graphc.onnx.values import Known, widened

LARGEST = 2**28
"""Bytes that a result may have which is computed while importing."""

UNFOLDED = frozenset(
    ("", name)
    for name in (
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike", "Softmax", "LogSoftmax", "Hardmax",
    )
)  # fmt: skip
"""Operators that draw numbers, and those of which the reference does not know the old versions."""

_MOVED: dict[str, tuple[int, ...]] = {
    "Compress": (0,), "Expand": (0,), "Flatten": (0,), "Gather": (0,), "GatherElements": (0,), "GatherND": (0,),
    "Identity": (0,), "Reshape": (0,), "ScatterElements": (0, 2), "ScatterND": (0, 2), "Slice": (0,), "Split": (0,),
    "Squeeze": (0,), "Tile": (0,), "Transpose": (0,), "Unsqueeze": (0,), "Where": (1, 2),
}  # fmt: skip
"""Operators that only say where an element goes, with the inputs whose elements do."""


def fold_moved(
    node: Any, arrays: Sequence[np.ndarray | None], opsets: Mapping[str, int]
) -> list[Known] | None:
    """Return the results of a node that moves elements some of which depend on the batch, or None.

    Numbers take the elements' places, which are moved, and tell then what has arrived where.
    """
    if node.domain not in ("", "ai.onnx") or any(a.name == "reduction" for a in node.attribute):
        return None
    count = len(arrays)
    positions = range(count) if node.op_type == "Concat" else _MOVED.get(node.op_type, ())
    if any(a is not None and a.dtype == object and k not in positions for k, a in enumerate(arrays)):
        return None
    elements: list[Any] = []
    numbered: list[np.ndarray | None] = []
    for k, array in enumerate(arrays):
        if array is None or k not in positions:
            numbered.append(array)
            continue
        numbered.append(np.arange(len(elements), len(elements) + array.size).reshape(array.shape))
        elements += array.ravel().tolist()
    if not elements:
        return None
    table = np.empty(len(elements), object)
    table[:] = elements
    return [tidy(table[known.array]) for known in fold(node, numbered, opsets)]


def tidy(found: Any) -> Known:
    """Return an array of objects, none of which depends on the batch, as an array of their type."""
    array = np.empty((), object)
    if isinstance(found, np.ndarray):
        array = found
    else:  # an element by itself
        array[()] = found
    types = {type(d) for d in array.ravel()}
    for whole, dtype in ((bool, np.bool_), (int, np.int64), (float, np.float32)):
        if types == {whole}:
            return Known(array.astype(dtype))
    return Known(array)


def fold(node: Any, arrays: Sequence[np.ndarray | None], opsets: Mapping[str, int]) -> list[Known]:
    """Return the results of a node.

    Raises:
        UnsupportedError: the reference implementation does not take it, or a result would be very large.
    """
    onnx = onnx_package()
    from onnx.reference import ReferenceEvaluator

    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if array is not None}
    _check_sizes(onnx, node, feeds, opsets)
    names = [name for name in node.output if name]
    versions = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    body = onnx.helper.make_function("graphc", "folded", list(feeds), names, [node], versions)
    try:
        results = dict(zip(names, ReferenceEvaluator(body).run(None, feeds, attributes={}), strict=True))
    except Exception as error:  # whatever an implementation of some operator may raise
        raise UnsupportedError(f"it cannot be computed while importing: {error}") from error
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results.values()):
        raise UnsupportedError("its result is no tensor")
    return [Known(widened(np.asarray(results.get(name, 0)))) for name in node.output]


def _check_sizes(onnx: Any, node: Any, feeds: Mapping[str, np.ndarray], opsets: Mapping[str, int]) -> None:
    """Refuse a node whose results would be very large, such as the ConstantOfShape of a damaged file."""
    for name, shape, itemsize in _results(onnx, node, feeds, opsets):
        size = math.prod(shape) * itemsize
        if size > LARGEST:
            raise UnsupportedError(
                f"its result {name!r} of shape {shape} would be {size:,} bytes; at most {LARGEST:,} are computed "
                "while importing"
            )


def _results(
    onnx: Any, node: Any, feeds: Mapping[str, np.ndarray], opsets: Mapping[str, int]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Return name, shape and bytes an element of those results whose shape ONNX's inference knows."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        if node.op_type == "Range" and not domain:  # inference tells no size of its floats
            start, limit, delta = (float(feeds[name].ravel()[0]) for name in node.input)
            return [(node.output[0], (max(0, math.ceil((limit - start) / delta)),), 8)]
        tensors = {
            # only small arrays are shapes, counts and limits
            n: onnx.numpy_helper.from_array(np.ascontiguousarray(a)) for n, a in feeds.items() if a.size <= 64
        }  # fmt: skip
        types = {
            n: onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        }
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain), node, types, tensors,
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()],
        )  # fmt: skip
    except Exception:  # the implementation will say what is wrong, or take what inference does not
        return []
    shapes = []
    for name, kind in found.items():
        dims = kind.tensor_type.shape.dim
        if kind.HasField("tensor_type") and all(d.HasField("dim_value") for d in dims):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
            shapes.append((name, tuple(d.dim_value for d in dims), np.dtype(dtype).itemsize))
    return shapes
