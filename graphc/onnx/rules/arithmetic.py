"""Elementwise operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from graphc.graph.node import Node
from graphc.onnx.package import onnx_package
from graphc.onnx.site import RULES, Site, UnsupportedError, rule
from graphc.onnx.values import Known
from graphc.ops import elementwise as ew
from graphc.types import DTYPES

_PLAIN: dict[str, Callable[..., Node]] = {
    "Add": ew.add, "Sub": ew.sub, "Mul": ew.mul, "Div": ew.div, "Neg": ew.neg, "Abs": ew.abs, "Exp": ew.exp,
    "Log": ew.log, "Sqrt": ew.sqrt, "Relu": ew.relu, "Sigmoid": ew.sigmoid, "Tanh": ew.tanh, "Erf": ew.erf,
    "Reciprocal": ew.reciprocal, "Sin": ew.sin, "Cos": ew.cos, "Softplus": ew.softplus, "Sign": ew.sign,
}  # fmt: skip
"""Operators that are one function of graphc, whose operands are the node's inputs."""


def _plain(function: Callable[..., Node]) -> Callable[[Site], Node]:
    return lambda site: function(*site.tensors())


for _operator, _function in _PLAIN.items():
    RULES["", _operator] = _plain(_function)


@rule("Max", "Min", "Sum")
def extreme(site: Site) -> Node:
    """Combine any number of tensors, two at a time."""
    function = {"Max": ew.maximum, "Min": ew.minimum, "Sum": ew.add}[site.op]
    return reduce(function, site.tensors())


@rule("Clip")
def clip(site: Site) -> Node:
    """Bounds are attributes up to version 6 and inputs later; each may be left out."""
    low = site.tensor(1) if site.has(1) else site.get("min")
    high = site.tensor(2) if site.has(2) else site.get("max")
    return ew.clip(site.tensor(0), low, high)


@rule("Cast")
def cast(site: Site) -> Node:
    """``to`` is a number of ONNX's list of types; floats truncate towards zero when they become integers."""
    onnx = onnx_package()
    name = onnx.TensorProto.DataType.Name(site.get("to")).lower()
    return _cast(site, {"float": "float32", "double": "float64"}.get(name, name))


@rule("CastLike")
def cast_like(site: Site) -> Node:
    """The dtype is that of the second input, whose values do not matter."""
    like = site.value(1)
    if isinstance(like, Known) and like.symbolic:
        return _cast(site, "int64")
    return _cast(site, str(like.array.dtype) if isinstance(like, Known) else like.dtype)


def _cast(site: Site, dtype: str) -> Node:
    if dtype not in DTYPES:
        raise UnsupportedError(f"a cast to {dtype} is not supported")
    return ew.cast(site.tensor(0), dtype)
