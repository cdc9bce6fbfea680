"""Arithmetic on arrays that are known while a model is read, and hold the run-time batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from graphc.onnx.fold import tidy
from graphc.onnx.package import onnx_package
from graphc.onnx.site import Site, UnsupportedError, folded
from graphc.onnx.values import Known
from graphc.types import Extent, Size, coefficients_of, divide


def _size(value: Any, operator: str) -> Size:
    """Return a factor or term beside the batch, which must be whole."""
    if isinstance(value, Extent) or (value == int(value)):
        return value if isinstance(value, Extent) else int(value)
    raise UnsupportedError(f"{operator} of the run-time batch and {value}")


def compared(a: Any, b: Any) -> int:
    """Return the sign of ``a - b`` for every batch from 1 on.

    Raises:
        UnsupportedError: it differs between batches.
    """
    if not isinstance(a, Extent) and not isinstance(b, Extent):
        return int(a > b) - int(a < b)
    difference = coefficients_of(_size(a, "a comparison") + _size(b, "a comparison") * -1)
    least = sum(difference)  # at a batch of 1
    if len(difference) == 1 or (all(c >= 0 for c in difference[1:]) and least > 0):
        return (least > 0) - (least < 0)
    if all(c <= 0 for c in difference[1:]) and least < 0:
        return -1
    raise UnsupportedError(f"a comparison of {a} and {b}, which depends on the run-time batch")


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, Extent) or isinstance(b, Extent):
        found = divide(_size(a, "a quotient"), _size(b, "a quotient"))
        if found is None:
            raise UnsupportedError(f"{a} divided by {b} is no multiple of the run-time batch")
        return found
    if isinstance(a, float) or isinstance(b, float):
        return float(np.float32(a) / np.float32(b))
    if b == 0:
        raise UnsupportedError("a division by 0")
    return int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def _rest(a: Any, b: Any) -> Any:
    _quotient(a, b)
    return 0 if isinstance(a, Extent) or isinstance(b, Extent) else a % b


def _plain(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def applied(a: Any, b: Any) -> Any:
        if isinstance(a, Extent) or isinstance(b, Extent):
            a, b = _size(a, name), _size(b, name)
        return function(a, b)

    return applied


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": _plain("a sum", lambda a, b: a + b),
    "Sub": _plain("a difference", lambda a, b: a + b * -1),
    "Mul": _plain("a product", lambda a, b: a * b),
    "Div": _quotient,
    "Mod": _rest,
    "Max": lambda a, b: a if compared(a, b) >= 0 else b,
    "Min": lambda a, b: a if compared(a, b) <= 0 else b,
    "Equal": lambda a, b: compared(a, b) == 0,
    "Less": lambda a, b: compared(a, b) < 0,
    "LessOrEqual": lambda a, b: compared(a, b) <= 0,
    "Greater": lambda a, b: compared(a, b) > 0,
    "GreaterOrEqual": lambda a, b: compared(a, b) >= 0,
}


@folded(*_BINARY)
def binary(site: Site) -> Known:
    """Elements of two arrays, or of more from the left."""
    function = np.frompyfunc(_BINARY[site.op], 2, 1)
    return tidy(reduce(function, [_objects(site, k) for k in range(len(site.values))]))


@folded("Neg", "Abs", "Floor", "Ceil", "Round", "Sign")
def unary(site: Site) -> Known:
    """A batch is whole and positive."""
    functions: dict[str, Callable[[Any], Any]] = {
        "Neg": lambda a: a * -1,
        "Abs": lambda a: a if compared(a, 0) >= 0 else a * -1,
        "Floor": lambda a: float(np.floor(a)) if isinstance(a, float) else a,
        "Ceil": lambda a: float(np.ceil(a)) if isinstance(a, float) else a,
        "Round": lambda a: float(np.round(a)) if isinstance(a, float) else a,
        "Sign": lambda a: compared(a, 0),
    }
    return tidy(np.frompyfunc(functions[site.op], 1, 1)(_objects(site, 0)))


@folded("Cast")
def cast(site: Site) -> Known:
    """To another whole or floating-point type: the batch stays what it is."""
    onnx = onnx_package()
    name = onnx.TensorProto.DataType.Name(site.get("to"))
    if name not in ("INT64", "INT32", "FLOAT", "DOUBLE"):
        raise UnsupportedError(f"a cast of the run-time batch to {name.lower()}")
    kind: type = int if name.startswith("INT") else float
    return tidy(np.frompyfunc(lambda a: a if isinstance(a, Extent) else kind(a), 1, 1)(_objects(site, 0)))


@folded("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def reduction(site: Site) -> Known:
    """Over axes, by default all."""
    array = _objects(site, 0)
    axes = site.ints(1, "axes") if site.has(1) else site.get("axes")
    if not axes:
        if site.get("noop_with_empty_axes", 0):
            return tidy(array)
        axes = list(range(array.ndim))
    keep = bool(site.get("keepdims", 1))
    operators = {"ReduceProd": "Mul", "ReduceSum": "Add", "ReduceMax": "Max", "ReduceMin": "Min"}
    function = np.frompyfunc(_BINARY[operators[site.op]], 2, 1)
    for axis in sorted((a % array.ndim for a in axes), reverse=True):
        if not array.shape[axis]:
            raise UnsupportedError("an empty axis")
        reduced = function.reduce(array, axis=axis, keepdims=keep)
        array = reduced if isinstance(reduced, np.ndarray) else tidy(reduced).array.astype(object)
    return tidy(array)


def _objects(site: Site, position: int) -> np.ndarray:
    """Return an input as an array of Python's ints, floats and extents."""
    value = site.value(position)
    if not isinstance(value, Known):
        raise UnsupportedError("the run-time batch together with what is computed")
    found = np.empty(value.array.shape, object)
    found[...] = np.array(value.array.tolist(), object).reshape(found.shape)
    return found
