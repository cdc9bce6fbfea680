"""Sequences of tensors, whose length is known while a model is read, and optional values."""

from __future__ import annotations

import numpy as np

from graphc.onnx.rules.slicing import parts_along
from graphc.onnx.site import Result, Site, UnsupportedError, axis_of, rule
from graphc.onnx.values import Known, Listed, Value
from graphc.ops.movement import concat, reshape


def _items(site: Site, position: int) -> tuple[Value, ...]:
    value = site.value(position)
    if not isinstance(value, Listed):
        raise UnsupportedError(f"input {position} is no sequence")
    return value.items


def _position(site: Site, position: int, count: int) -> int:
    """Return a place in a sequence, of which negative ones count from the end."""
    place = int(site.known(position, "position").ravel()[0])
    if not -count <= place < count:
        raise UnsupportedError(f"position {place} in a sequence of {count}")
    return place % count


@rule("SequenceConstruct", "SequenceEmpty")
def construct(site: Site) -> Listed:
    """The inputs as they are."""
    return Listed.of(site.value(k) for k in range(len(site.values)))


@rule("SequenceAt")
def at(site: Site) -> Value:
    """One of the tensors."""
    items = _items(site, 0)
    return items[_position(site, 1, len(items))]


@rule("SequenceInsert")
def insert(site: Site) -> Listed:
    """One tensor more, by default at the end."""
    items = _items(site, 0)
    place = int(site.known(2, "position").ravel()[0]) if site.has(2) else len(items)
    if not -len(items) <= place <= len(items):
        raise UnsupportedError(f"position {place} in a sequence of {len(items)}")
    place += len(items) * (place < 0)
    return Listed.of((*items[:place], site.value(1), *items[place:]))


@rule("SequenceErase")
def erase(site: Site) -> Listed:
    """One tensor less, by default the last."""
    items = _items(site, 0)
    if not items:
        raise UnsupportedError("an empty sequence")
    place = _position(site, 1, len(items)) if site.has(1) else len(items) - 1
    return Listed.of((*items[:place], *items[place + 1 :]))


@rule("SequenceLength")
def length(site: Site) -> Known:
    """The number of tensors."""
    return Known(np.array(len(_items(site, 0)), np.int64))


@rule("SplitToSequence")
def split_to_sequence(site: Site) -> Listed:
    """Parts of given extents, of one extent of which the last may be smaller, or of 1, whose axis may go."""
    given = site.known(1, "split") if site.has(1) else None
    x, rank = site.tensor(0), site.rank(0)
    axis = axis_of(site.get("axis", 0), rank)
    extent = x.shape[axis]
    if not isinstance(extent, int):
        raise UnsupportedError("a split of the run-time batch")
    if given is not None and given.ndim:
        sizes = [int(s) for s in given]
    else:
        part = 1 if given is None else int(given)
        if part < 1:
            raise UnsupportedError(f"parts of {part}")
        sizes = [min(part, extent - k) for k in range(0, extent, part)]
    parts = parts_along(x, sizes, axis)
    if given is None and not site.get("keepdims", 1):
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        parts = [reshape(site.host.tensor(p), shape) for p in parts]
    return Listed.of(parts)


@rule("ConcatFromSequence")
def concat_from_sequence(site: Site) -> Value:
    """One tensor after the other, along an axis of theirs or along a new one."""
    tensors = [site.host.tensor(v) for v in _items(site, 0)]
    axis = site.get("axis")
    if site.get("new_axis", 0):
        axis %= tensors[0].rank + 1 if tensors else 1
        tensors = [reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in tensors]
    return concat(tensors, axis)


@rule("OptionalHasElement")
def has_element(site: Site) -> Known:
    """Whether there is a value: an input that is left out is none."""
    return Known(np.array(site.has(0)))


@rule("OptionalGetElement")
def get_element(site: Site) -> Result:
    """The value."""
    return site.value(0)
