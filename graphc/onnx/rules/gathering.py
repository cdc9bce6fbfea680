"""Gathering and scattering by index."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.movement import runs, taken
from graphc.onnx.site import Site, UnsupportedError, axis_of, rule
from graphc.onnx.values import Known
from graphc.ops import elementwise as ew
from graphc.ops.gather import take
from graphc.ops.leaves import constant, full
from graphc.ops.movement import expand, getitem, reshape, transpose
from graphc.ops.reduce import iota
from graphc.types import Shape, Size, product

_FEW = 8  # slices, beside which a lookup is no slower


def at_least_zero(index: Node, extent: Size) -> Node:
    """Return indices of which negative ones count from the end."""
    if not isinstance(extent, int):
        raise UnsupportedError("an index into the run-time batch")
    if index.dtype == "uint8":
        index = ew.cast(index, "int32")
    return ew.where(ew.less(index, 0), index + extent, index)


@rule("Gather")
def gather(site: Site) -> Node:
    """Elements along an axis at indices, which take the axis' place."""
    x = site.tensor(0)
    axis = axis_of(site.get("axis", 0), x.rank)
    extent, index = x.shape[axis], site.value(1)
    shape = (*x.shape[:axis], *site.shape(1), *x.shape[axis + 1 :])
    if not isinstance(extent, int):
        raise UnsupportedError("an index into the run-time batch")
    if isinstance(index, Known):
        numbers = site.ints(1, "indices")
        if not numbers:
            raise UnsupportedError("no indices")
        if min(numbers) < -extent or max(numbers) >= extent:
            raise UnsupportedError(f"indices {min(numbers)} to {max(numbers)} into an axis of {extent}")
        return reshape(looked_up(x, np.array(numbers) % extent, axis), shape)
    chosen = at_least_zero(reshape(index, (index.type.size,)), extent)
    return reshape(_rows(x, chosen, axis), shape)


def looked_up(x: Node, index: np.ndarray, axis: int) -> Node:
    """Return the elements at known indices along an axis: as a few slices, or row by row."""
    if runs(index) <= _FEW:
        return taken(x, index, axis)
    return _rows(x, constant(index.astype(np.int64)), axis)


def _rows(x: Node, index: Node, axis: int) -> Node:
    order = (axis, *[a for a in range(x.rank) if a != axis])
    rows = take(transpose(x, order), index)
    back = (*range(1, axis + 1), 0, *range(axis + 1, x.rank))
    return transpose(rows, back)


@rule("GatherElements")
def gather_elements(site: Site) -> Node:
    """An element for each index, which differs along one axis only from where the index stands."""
    x, index = site.tensor(0), site.tensor(1)
    axis = axis_of(site.get("axis", 0), x.rank)
    chosen = element_positions(x.shape, index, axis)
    flat = reshape(x, (product(x.shape),))
    return reshape(take(flat, reshape(chosen, (index.type.size,))), index.shape)


def element_positions(shape: Shape, index: Node, axis: int) -> Node:
    """Return where in a tensor the elements lie that an index along one axis names."""
    if index.rank != len(shape):
        raise UnsupportedError(f"indices of {index.rank} axes into a tensor of {len(shape)}")
    inside = np.array([a == axis or i == d for a, (i, d) in enumerate(zip(index.shape, shape, strict=True))])
    bounded = [
        isinstance(i, int) and isinstance(d, int) and i <= d for i, d in zip(index.shape, shape, strict=True)
    ]
    if not all(b or c for b, c in zip(inside, bounded, strict=True)):
        raise UnsupportedError(f"indices of shape {index.shape} into a tensor of shape {shape}")
    extent = shape[axis]
    if not isinstance(extent, int):
        raise UnsupportedError("an index into the run-time batch")
    chosen = ew.clip(at_least_zero(ew.cast(index, "int64"), extent), 0, extent - 1)
    columns = [chosen if a == axis else iota(index.shape, a) for a in range(len(shape))]
    total, step = None, product(())
    for a in reversed(range(len(shape))):
        if not isinstance(step, int):
            raise UnsupportedError("the run-time batch behind another axis")
        term = columns[a] if step == 1 else columns[a] * step
        total = term if total is None else total + term
        step = step * shape[a]
    assert total is not None
    return total


@rule("GatherND")
def gather_nd(site: Site) -> Node:
    """Parts at tuples of indices, behind some axes that both tensors share."""
    x, index, batch = site.tensor(0), site.tensor(1), site.get("batch_dims", 0)
    depth = index.shape[-1]
    if not isinstance(depth, int) or batch + depth > x.rank:
        raise UnsupportedError(f"tuples of {depth} indices into {x.rank} axes")
    rows = nd_positions(x.shape, index, batch)
    table = reshape(x, (product(x.shape[: batch + depth]), *x.shape[batch + depth :]))
    found = take(table, reshape(rows, (product(rows.shape),)))
    return reshape(found, (*index.shape[:-1], *x.shape[batch + depth :]))


def nd_positions(shape: Shape, index: Node, batch: int) -> Node:
    """Return the numbers of the rows that tuples of indices name, in a tensor whose first axes are one."""
    depth = index.shape[-1]
    assert isinstance(depth, int)
    lead = index.shape[:-1]
    total, step = None, product(())
    for a in reversed(range(batch + depth)):
        if not isinstance(step, int):
            raise UnsupportedError("the run-time batch behind another axis")
        if a < batch:
            column = iota(lead, a) if lead else full((), 0, "int64")
        else:
            extent = shape[a]
            if not isinstance(extent, int):
                raise UnsupportedError("an index into the run-time batch")
            part = getitem(index, (..., a - batch))
            column = ew.clip(at_least_zero(ew.cast(part, "int64"), extent), 0, extent - 1)
        term = column if step == 1 else column * step
        total = term if total is None else total + term
        step = step * shape[a]
    return full(lead, 0, "int64") if total is None else total


@rule("OneHot")
def one_hot(site: Site) -> Node:
    """A new axis of a known extent, with one of two values at the index and the other elsewhere."""
    index, values = site.tensor(0), site.tensor(2)
    depth = int(site.known(1, "depth").ravel()[0])
    axis = axis_of(site.get("axis", -1), index.rank + 1)
    shape: tuple[Size, ...] = (*index.shape[:axis], depth, *index.shape[axis:])
    if index.type.is_float:
        index = ew.cast(index, "int64")
    chosen = reshape(at_least_zero(index, depth), (*index.shape[:axis], 1, *index.shape[axis:]))
    same = ew.equal(iota(shape, axis), ew.cast(chosen, "int64"))
    return ew.where(same, getitem(values, 1), getitem(values, 0))


@rule("ReverseSequence")
def reverse_sequence(site: Site) -> Node:
    """The first elements along time, as many as the lengths say, in reverse order."""
    x, lengths = site.tensor(0), site.tensor(1)
    time, batch = site.get("time_axis", 0), site.get("batch_axis", 1)
    if sorted((time, batch)) != [0, 1]:
        raise UnsupportedError("time or batch behind the first two axes")
    shape = x.shape[:2]
    moment = iota(shape, time)
    length = reshape(ew.cast(lengths, "int64"), tuple(d if a == batch else 1 for a, d in enumerate(shape)))
    source = ew.where(ew.less(moment, length), length - 1 - moment, moment)
    wide = (*shape, *[1] * (x.rank - 2))
    index = expand(reshape(source, wide), x.shape)
    chosen = element_positions(x.shape, index, time)
    return reshape(take(reshape(x, (product(x.shape),)), reshape(chosen, (product(x.shape),))), x.shape)


@rule("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(site: Site) -> Node:
    """Elements of the last axis."""
    x = site.tensor(0)
    numbers = np.array(site.ints(1, "indices"))
    found = looked_up(x, numbers, x.rank - 1)
    return reshape(found, (1, *found.shape)) if x.rank == 1 else found


@rule("Compress")
def compress(site: Site) -> Node:
    """The elements along an axis, or of all, where a known condition holds."""
    x, axis = site.tensor(0), site.get("axis")
    if axis is None:
        x, axis = reshape(x, (product(x.shape),)), 0
    chosen = np.flatnonzero(site.known(1, "condition"))
    axis = axis_of(axis, x.rank)
    extent = x.shape[axis]
    if not len(chosen) or not isinstance(extent, int) or chosen[-1] >= extent:
        raise UnsupportedError(f"a condition of which {len(chosen)} hold, of an axis of {extent}")
    return looked_up(x, chosen, axis)


@rule("NonZero", "Unique")
def counted_by_data(site: Site) -> Node:
    """Refused unless what it reads is known: then it was computed while importing."""
    raise UnsupportedError("the shape of its result depends on the values of its input")
