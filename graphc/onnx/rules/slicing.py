"""Operators that take parts of a tensor: slices along axes, and splits into several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.site import Result, Site, UnsupportedError, axis_of, rule
from graphc.onnx.values import Known, Value
from graphc.ops.movement import getitem, split
from graphc.types import Size


def _given(site: Site, position: int, name: str) -> list[int] | None:
    """Return a list that is an attribute in old versions and an input in newer ones."""
    return site.ints(position, name) if site.has(position) else site.get(name)


def _bounds(site: Site, position: int, name: str) -> list[Size] | None:
    """Return the same of bounds, which may be the run-time batch."""
    return site.sizes(position, name) if site.has(position) else site.get(name)


def _slices(site: Site) -> tuple[slice, ...]:
    """Return a slice for every axis, with NumPy's meaning of negative and too large bounds."""
    starts, ends = _bounds(site, 1, "starts"), _bounds(site, 2, "ends")
    if starts is None or ends is None:
        raise UnsupportedError("its starts or ends are missing")
    axes = _given(site, 3, "axes") or list(range(len(starts)))
    steps = _given(site, 4, "steps") or [1] * len(starts)
    rank, index = site.rank(0), [slice(None)] * site.rank(0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = axis_of(axis, rank)
        extent = site.shape(0)[axis]
        if not isinstance(extent, int):
            whole = end == extent or (isinstance(end, int) and end >= np.iinfo(np.int32).max)
            if start == 0 and step == 1 and whole:
                continue  # the run-time batch is taken whole
            raise UnsupportedError("a slice of the run-time batch")
        if not (isinstance(start, int) and isinstance(end, int)):
            raise UnsupportedError("a bound that depends on the run-time batch")
        if end < -extent and step < 0:
            index[axis] = slice(start, None, step)  # down to the first element
        else:
            index[axis] = slice(start, end, step)
    return tuple(index)


@rule("Slice")
def slice_(site: Site) -> Node | Known:
    """Every ``step``-th element between two bounds along some axes."""
    index, shape = _slices(site), site.shape(0)
    lengths = [
        len(range(*s.indices(d))) if isinstance(d, int) else 1 for s, d in zip(index, shape, strict=True)
    ]
    x = site.tensor(0)
    if 0 in lengths:
        if not all(isinstance(d, int) for d in shape):
            raise UnsupportedError("a slice without elements of the run-time batch")
        return Known(np.empty(lengths, x.dtype))
    return getitem(x, index)


@rule("Split")
def split_(site: Site) -> Result:
    """Parts of given extents, or equal ones of which the last may be smaller."""
    sizes = _given(site, 1, "split")
    x = site.tensor(0)
    axis = axis_of(site.get("axis", 0), x.rank)
    extent = x.shape[axis]
    if not isinstance(extent, int):
        if site.outputs == 1 and sizes is None:
            return x
        raise UnsupportedError("a split of the run-time batch")
    if sizes is None:
        count = site.get("num_outputs", site.outputs)
        part = -(-extent // count)
        sizes = [min(part, extent - k * part) for k in range(count)]
    return parts_along(x, sizes, axis)


def parts_along(x: Node, sizes: Sequence[int], axis: int) -> list[Value]:
    """Return parts along an axis; those without elements are empty arrays."""
    if min(sizes, default=-1) < 0 or sum(sizes) != x.shape[axis]:
        raise UnsupportedError(f"parts of extents {sizes} of an axis of {x.shape[axis]}")
    filled = iter(split(x, [s for s in sizes if s], axis))
    found: list[Value] = []
    for size in sizes:
        shape = [size if a == axis else d for a, d in enumerate(x.shape)]
        if size:
            found.append(next(filled))
        elif all(isinstance(d, int) for d in shape):
            found.append(Known(np.empty(shape, x.dtype)))  # type: ignore[arg-type]
        else:
            raise UnsupportedError("a part without elements")
    return found
