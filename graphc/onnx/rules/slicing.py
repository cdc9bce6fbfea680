"""Operators that take parts of a tensor: slices along axes, and splits into several."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.site import Result, Site, UnsupportedError, folded, rule
from graphc.onnx.values import Known
from graphc.ops.movement import getitem, split


def _given(site: Site, position: int, name: str) -> list[int] | None:
    """Return a list that is an attribute in old versions and an input in newer ones."""
    return site.ints(position, name) if site.has(position) else site.get(name)


def _slices(site: Site) -> tuple[slice, ...]:
    """Return a slice for every axis, with NumPy's meaning of negative and too large bounds."""
    starts, ends = _given(site, 1, "starts"), _given(site, 2, "ends")
    if starts is None or ends is None:
        raise UnsupportedError("its starts or ends are missing")
    axes = _given(site, 3, "axes") or list(range(len(starts)))
    steps = _given(site, 4, "steps") or [1] * len(starts)
    rank, index = site.rank(0), [slice(None)] * site.rank(0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        extent = site.shape(0)[axis % rank]
        if not isinstance(extent, int):
            if start == 0 and step == 1 and end >= np.iinfo(np.int32).max:
                continue  # the run-time batch is taken whole
            raise UnsupportedError("a slice of the run-time batch")
        if end < -extent and step < 0:
            index[axis % rank] = slice(start, None, step)  # down to the first element
        else:
            index[axis % rank] = slice(start, end, step)
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


@folded("Slice")
def sliced_array(site: Site) -> Node | Known:
    """The same of an array that is known, and may hold the run-time batch."""
    value = site.value(0)
    if not isinstance(value, Known) or value.weight:
        return slice_(site)
    found = value.array[_slices(site)]
    whole = found.dtype == object and all(isinstance(d, (int, np.integer)) for d in found.ravel())
    return Known(found.astype(np.int64) if whole else found)


@rule("Split")
def split_(site: Site) -> Result:
    """Parts of given extents, or equal ones of which the last may be smaller."""
    x = site.tensor(0)
    axis = site.get("axis", 0) % x.rank
    extent, sizes = x.shape[axis], _given(site, 1, "split")
    if not isinstance(extent, int):
        raise UnsupportedError("a split of the run-time batch")
    if sizes is None:
        count = site.get("num_outputs", site.outputs)
        part = -(-extent // count)
        sizes = [min(part, extent - k * part) for k in range(count)]
    if min(sizes) < 1:
        raise UnsupportedError("a part without elements")
    return split(x, sizes, axis)
