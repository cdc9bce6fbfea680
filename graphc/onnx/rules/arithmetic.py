"""Elementwise operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.package import onnx_package
from graphc.onnx.site import RULES, Site, UnsupportedError, rule
from graphc.onnx.values import HALVES, Known, Value
from graphc.ops import elementwise as ew
from graphc.ops import numeric
from graphc.types import DTYPES

_PLAIN: dict[str, Callable[..., Node]] = {
    "Add": ew.add, "Sub": ew.sub, "Mul": ew.mul, "Neg": ew.neg, "Abs": ew.abs, "Sign": ew.sign, "Exp": ew.exp,
    "Log": ew.log, "Sqrt": ew.sqrt, "Sigmoid": ew.sigmoid, "Tanh": ew.tanh, "Erf": ew.erf,
    "Reciprocal": ew.reciprocal, "Softplus": ew.softplus, "Sin": ew.sin, "Cos": ew.cos, "Tan": numeric.tan,
    "Asin": numeric.asin, "Acos": numeric.acos, "Atan": numeric.atan, "Sinh": numeric.sinh, "Cosh": numeric.cosh,
    "Asinh": numeric.asinh, "Acosh": numeric.acosh, "Atanh": numeric.atanh, "Floor": numeric.floor,
    "Ceil": numeric.ceil, "Round": numeric.rint, "IsNaN": numeric.isnan, "Where": ew.where,
    "Equal": ew.equal, "Less": ew.less, "LessOrEqual": ew.less_equal, "Greater": ew.greater,
    "GreaterOrEqual": ew.greater_equal, "And": numeric.logical_and, "Or": numeric.logical_or,
    "Xor": numeric.logical_xor, "Not": numeric.logical_not, "BitwiseAnd": numeric.bit_and,
    "BitwiseOr": numeric.bit_or, "BitwiseXor": numeric.bit_xor, "BitwiseNot": numeric.bit_not,
}  # fmt: skip
"""Operators that are one function of graphc, whose operands are the node's inputs."""


def _plain(function: Callable[..., Node]) -> Callable[[Site], Node]:
    return lambda site: function(*site.tensors())


for _operator, _function in _PLAIN.items():
    RULES["", _operator] = _plain(_function)


def operand(site: Site, position: int) -> Node | float:
    """Return an input, as a number where it is a known floating-point one without axes: C is better with it."""
    value = site.value(position)
    if isinstance(value, Known) and value.array.dtype in (np.float32, np.float64) and not value.array.ndim:
        return float(str(value.array[()]))  # the shortest decimal number that the element is nearest to
    return site.tensor(position)


@rule("Max", "Min", "Sum", "Mean")
def variadic(site: Site) -> Node:
    """Combine any number of tensors, two at a time."""
    tensors = site.tensors()
    if site.op == "Mean":
        return ew.div(reduce(ew.add, tensors), len(tensors))
    return reduce({"Max": ew.maximum, "Min": ew.minimum, "Sum": ew.add}[site.op], tensors)


@rule("Div")
def div(site: Site) -> Node:
    """Integers are divided as in C: the quotient is cut off towards zero."""
    a, b = site.tensors()
    return ew.div(a, b) if a.type.is_float else numeric.quotient(a, b)


@rule("Mod")
def mod(site: Site) -> Node:
    """The result has the sign of the dividend with fmod, else that of the divisor."""
    return (numeric.remainder if site.get("fmod", 0) else numeric.modulo)(*site.tensors())


@rule("Pow")
def power(site: Site) -> Node:
    """The two types may differ; the result has that of the base."""
    base, exponent = site.tensor(0), operand(site, 1)
    if base.type.is_float:
        if isinstance(exponent, Node) and exponent.dtype != base.dtype:
            exponent = ew.cast(exponent, base.dtype)
        return ew.pow(base, exponent)
    exponent = site.tensor(1)
    if not exponent.type.is_float:
        return ew.cast(numeric.whole_power(base, exponent), base.dtype)
    exact = ew.cast(numeric.whole_power(base, ew.cast(exponent, "int32")), base.dtype)
    rounded = ew.cast(ew.pow(ew.cast(base, exponent.dtype), exponent), base.dtype)
    return ew.where(ew.equal(numeric.rint(exponent), exponent), exact, rounded)


@rule("IsInf")
def is_inf(site: Site) -> Node:
    """Either infinity may be left out."""
    x = site.tensor(0)
    positive, negative = site.get("detect_positive", 1), site.get("detect_negative", 1)
    found = numeric.isinf(x)
    if positive and negative:
        return found
    if not (positive or negative):
        return numeric.logical_and(found, ew.not_equal(x, x))  # no infinity is unlike itself
    return numeric.logical_and(found, ew.greater(x, 0) if positive else ew.less(x, 0))


@rule("BitShift")
def bit_shift(site: Site) -> Node:
    """Bits that are shifted out are lost; to the right, a negative number stays negative."""
    direction = site.get("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise UnsupportedError(f"direction={direction!r} is neither 'LEFT' nor 'RIGHT'")
    return (numeric.shift_left if direction == "LEFT" else numeric.shift_right)(*site.tensors())


@rule("Cast")
def cast(site: Site) -> Value:
    """``to`` is a number of ONNX's list of types; floats truncate towards zero when they become integers."""
    onnx = onnx_package()
    name = onnx.TensorProto.DataType.Name(site.get("to")).lower()
    return _cast(
        site, {"float": "float32", "double": "float64", **dict.fromkeys(HALVES, "float32")}.get(name, name)
    )


@rule("CastLike")
def cast_like(site: Site) -> Value:
    """The dtype is that of the second input, whose values do not matter."""
    like = site.value(1)
    if isinstance(like, Known) and like.symbolic:
        return _cast(site, "int64")
    return _cast(site, str(like.array.dtype) if isinstance(like, Known) else like.dtype)


def _cast(site: Site, dtype: str) -> Value:
    if dtype not in DTYPES:
        raise UnsupportedError(f"a cast to {dtype} is not supported")
    value = site.value(0)
    if isinstance(value, Known) and not value.array.size:
        return Known(value.array.astype(dtype))
    return ew.cast(site.tensor(0), dtype)
