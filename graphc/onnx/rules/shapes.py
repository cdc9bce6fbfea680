"""Operators on shapes, which are known while a model is read though they may hold the run-time batch."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError, folded, rule
from graphc.onnx.values import Known, known_sizes
from graphc.ops.leaves import full
from graphc.ops.reduce import iota
from graphc.types import Extent, check_dtype, coefficients_of, divide, product

_MANY = 2**22  # elements, up to which an array is kept as one


@rule("Shape")
@folded("Shape")
def shape(site: Site) -> Known:
    """The extents, or those from ``start`` up to ``end``."""
    return known_sizes(site.shape(0)[site.get("start", 0) : site.get("end")])


@rule("Size")
@folded("Size")
def size(site: Site) -> Known:
    """The number of elements."""
    return Known(known_sizes((product(site.shape(0)),)).array.reshape(()))


@rule("Constant")
@folded("Constant")
def constant(site: Site) -> Known:
    """The value that the node carries."""
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                        ("value_ints", np.int64)):  # fmt: skip
        if name in site.attributes:
            return Known(np.asarray(site.get(name), dtype))
    if "value" not in site.attributes:
        raise UnsupportedError("only numbers and dense tensors of numbers")
    return Known(site.get("value"))


@rule("ConstantOfShape")
@folded("ConstantOfShape")
def constant_of_shape(site: Site) -> Node | Known:
    """One number in every element; where there are many, or as many as the batch, they are a tensor."""
    value = site.get("value", np.zeros(1, np.float32)).ravel()[0]
    sizes = site.sizes(0, "shape")
    whole = [d for d in sizes if isinstance(d, int)]
    if len(whole) == len(sizes) and np.prod(whole, dtype=float) <= _MANY:
        return Known(np.full(whole, value))
    return full(tuple(sizes), float(value), check_dtype(str(value.dtype)))


@rule("Range")
@folded("Range")
def range_(site: Site) -> Node | Known:
    """Numbers at equal distances, which may be as many as the batch is a multiple of."""
    bounds = [site.known(k, "bounds").ravel()[0] for k in range(3)]
    start, limit, delta = bounds
    if not any(isinstance(b, Extent) for b in bounds):
        count = max(0, int(np.ceil((limit - start) / delta))) if delta else _MANY + 1
        if count > _MANY:
            raise UnsupportedError(f"a range from {start} to {limit} by {delta}")
        return Known(np.arange(count).astype(start.dtype) * delta + start)
    if isinstance(start, Extent) or isinstance(delta, Extent) or delta < 1:
        raise UnsupportedError("a range that starts at the run-time batch, or falls")
    extent = divide(limit + -int(start), int(delta))
    if extent is None or any(c < 0 for c in coefficients_of(extent)):
        raise UnsupportedError(f"a range from {start} to {limit} by {delta}")
    return iota((extent,), 0) * int(delta) + int(start)
