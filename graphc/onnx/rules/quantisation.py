"""Whole numbers that stand for scaled ones: quantisation and the products of what is quantised."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.package import onnx_package
from graphc.onnx.rules.contraction import whole_matmul
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.movement import expand, reshape
from graphc.types import Size

_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
_FAR = 2.0**30  # beyond every range and zero point together, and exact in every floating-point type


def rounded(x: Node) -> Node:
    """Return floats rounded to the nearest int32, ties to even, those out of range at +-2**30."""
    near = ew.clip(x, -_FAR, _FAR)
    whole = ew.cast(near, "int32")
    rest = near - ew.cast(whole, x.dtype)  # what truncation towards zero left
    odd = whole - ew.cast(ew.mul(ew.cast(whole, x.dtype), 0.5), "int32") * 2
    away = ew.where(ew.equal(odd, 0), ew.greater(ew.abs(rest), 0.5), ew.greater_equal(ew.abs(rest), 0.5))
    return whole + ew.cast(away, "int32") * ew.cast(ew.sign(rest), "int32")


def _as_whole(x: Node) -> Node:
    return ew.cast(x, "int32")


def _along(site: Site, position: int, x: Node) -> Node:
    """Return a scale or zero point so that it broadcasts: one in all, one an index of an axis, or one a block."""
    value = site.tensor(position)
    axis = int(site.get("axis", 1))
    if value.rank == 0 or value.shape == (1,):
        return reshape(value, ())
    if not -x.rank <= axis < x.rank:
        raise UnsupportedError(f"axis {axis} is out of range for {x.rank} axes")
    axis %= x.rank
    block = int(site.get("block_size", 0))
    if not block:
        return reshape(value, (-1, *[1] * (x.rank - axis - 1)))
    extent: Size = x.shape[axis]
    if value.rank != x.rank or not isinstance(extent, int) or value.shape[axis] != -(-extent // block):
        raise UnsupportedError(f"blocks of {block} along axis {axis} of {x.type} by {value.type}")
    if extent % block:
        raise UnsupportedError(f"blocks of {block} in an extent of {extent}")
    lead, rest = value.shape[: axis + 1], value.shape[axis + 1 :]
    repeated = expand(reshape(value, (*lead, 1, *rest)), (*lead, block, *rest))
    return reshape(repeated, (*lead[:-1], extent, *rest))


def _saturated(x: Node, dtype: str) -> Node:
    if dtype not in _RANGES:
        raise UnsupportedError(f"quantisation to {dtype}")
    low, high = _RANGES[dtype]
    return ew.cast(ew.clip(x, low, high), dtype)


def _stated_dtype(site: Site, default: str) -> str:
    stated = site.get("output_dtype", 0)
    if not stated:
        return default
    name = onnx_package().TensorProto.DataType.Name(stated).lower()
    return {"float": "float32", "double": "float64"}.get(name, str(name))


@rule("QuantizeLinear")
def quantize(site: Site) -> Node:
    """``saturate(round(x / scale) + zero_point)``, ties to even."""
    site.refuse("precision", 0, 1)
    x = site.tensor(0)
    x = x if x.type.is_float else ew.cast(x, site.tensor(1).dtype)
    whole = rounded(x / _along(site, 1, x))
    if not site.has(2):
        return _saturated(whole, _stated_dtype(site, "uint8"))
    zero = _along(site, 2, x)
    return _saturated(whole + _as_whole(zero), zero.dtype)


@rule("DequantizeLinear")
def dequantize(site: Site) -> Node:
    """``(x - zero_point) * scale``."""
    x, scale = site.tensor(0), site.tensor(1)
    if _stated_dtype(site, scale.dtype) != scale.dtype:
        raise UnsupportedError(f"an output of another type than its scale's, {scale.dtype}")
    whole = _as_whole(x)
    if site.has(2):
        whole = whole - _as_whole(_along(site, 2, x))
    return ew.cast(whole, scale.dtype) * _along(site, 1, x)


def _centred(site: Site, position: int, zero: int, rows: bool) -> Node:
    """Return a matrix of int32 less its zero point: one in all, one a row of the first or a column of the second."""
    x = _as_whole(site.tensor(position))
    if not site.has(zero):
        return x
    point = _as_whole(site.tensor(zero))
    if point.rank == 1 and point.shape != (1,) and rows:
        point = reshape(point, (*point.shape, 1))
    return x - (reshape(point, ()) if point.shape == (1,) else point)


@rule("MatMulInteger")
def matmul_integer(site: Site) -> Node:
    """A product of 8-bit matrices in int32."""
    return whole_matmul(_centred(site, 0, 2, rows=True), _centred(site, 1, 3, rows=False))


@rule("QLinearMatMul")
def quantised_matmul(site: Site) -> Node:
    """A product in int32, scaled in the scales' type and rounded, ties to even, with the zero point added first."""
    product = whole_matmul(_centred(site, 0, 2, rows=True), _centred(site, 3, 5, rows=False))
    scales = []
    for position, rows in ((1, True), (4, False), (6, True)):
        scale = site.tensor(position)
        if scale.shape == (1,):
            scale = reshape(scale, ())
        scales.append(reshape(scale, (*scale.shape, 1)) if scale.rank == 1 and rows else scale)
    zero = site.tensor(7)
    zero = reshape(zero, ()) if zero.shape == (1,) else zero
    if zero.rank:
        raise UnsupportedError("a zero point a row of the result")
    scaled = ew.cast(product, scales[0].dtype) * (scales[0] * scales[1] / scales[2])
    return _saturated(rounded(scaled + ew.cast(zero, scaled.dtype)), zero.dtype)
