"""Operators that move elements: reshape, transpose, concatenate, flatten."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.package import onnx_package
from graphc.onnx.site import Result, Site, UnsupportedError, axis_of, rule
from graphc.onnx.values import Known, shape_of
from graphc.ops import elementwise as ew
from graphc.ops.leaves import full
from graphc.ops.movement import concat, expand, getitem, pad, reshape, transpose
from graphc.ops.reduce import iota
from graphc.types import DTYPES, Size, broadcast_shapes, product


@rule("Reshape")
def reshape_(site: Site) -> Node:
    """0 keeps an extent unless ``allowzero`` is set; one extent may be -1."""
    wanted: list[Size] = site.sizes(1, "shape") if site.has(1) else list(site.get("shape"))
    x = site.tensor(0)
    if not site.get("allowzero", 0):
        wanted = [x.shape[a] if d == 0 else d for a, d in enumerate(wanted)]
    return reshape(x, wanted)


@rule("Flatten")
def flatten(site: Site) -> Node:
    """Two axes: those before ``axis``, and the others."""
    x = site.tensor(0)
    axis = site.get("axis", 1)
    axis += x.rank * (axis < 0)
    return reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@rule("Transpose")
def transpose_(site: Site) -> Node:
    """The axes in another order, by default reversed."""
    return transpose(site.tensor(0), site.get("perm"))


@rule("Concat")
def concat_(site: Site) -> Node:
    """One tensor after the other; those without elements add nothing."""
    filled = [k for k, v in enumerate(site.values) if v is not None and 0 not in shape_of(v)]
    return concat([site.tensor(k) for k in filled], site.get("axis", 1))


@rule("Squeeze")
def squeeze(site: Site) -> Node:
    """Drop axes of extent 1: those that are named, or all."""
    ones = [a for a, d in enumerate(site.shape(0)) if d == 1]
    axes = site.ints(1, "axes") if site.has(1) else site.get("axes", ones)
    x = site.tensor(0)
    dropped = {axis_of(a, x.rank) for a in axes}
    return reshape(x, [d for a, d in enumerate(x.shape) if a not in dropped])


@rule("Unsqueeze")
def unsqueeze(site: Site) -> Node:
    """Insert axes of extent 1."""
    axes = site.ints(1, "axes") if site.has(1) else site.get("axes")
    x = site.tensor(0)
    rank = x.rank + len(axes)
    inserted = {axis_of(a, rank) for a in axes}
    old = iter(x.shape)
    return reshape(x, [1 if a in inserted else next(old) for a in range(rank)])


@rule("Expand")
def expand_(site: Site) -> Node:
    """Broadcast with a shape."""
    wanted = tuple(site.sizes(1, "shape"))
    x = site.tensor(0)
    shape = broadcast_shapes(x.shape, wanted)
    return expand(reshape(x, (*[1] * (len(shape) - x.rank), *x.shape)), shape)


@rule("Identity")
def identity(site: Site) -> Result:
    """The input itself."""
    return site.value(0)


@rule("Tile")
def tile(site: Site) -> Node:
    """Every axis repeated: with an axis of its own for the repetitions, which is merged then."""
    repeats = site.sizes(1, "repeats")
    x = site.tensor(0)
    if len(repeats) != x.rank:
        raise UnsupportedError(f"{len(repeats)} repeats of {x.rank} axes")
    if 0 in repeats:
        raise UnsupportedError("a result without elements")
    apart = reshape(x, [d for extent in x.shape for d in (1, extent)])
    pairs = list(zip(repeats, x.shape, strict=True))
    repeated = expand(apart, tuple(d for pair in pairs for d in pair))
    return reshape(repeated, [r * d for r, d in pairs])


@rule("Trilu")
def trilu(site: Site) -> Node:
    """The part of the last two axes above, or below, a diagonal; zeros elsewhere."""
    k = site.ints(1, "diagonal")[0] if site.has(1) else 0
    x = site.tensor(0)
    if x.rank < 2:
        raise UnsupportedError("a tensor without rows and columns")
    plane = x.shape[-2:]
    row, column = iota(plane, 0), iota(plane, 1)
    kept = ew.greater_equal(column - row, k) if site.get("upper", 1) else ew.less_equal(column - row, k)
    if x.dtype == "bool":
        return ew.cast(ew.where(kept, ew.cast(x, "int32"), full((), 0, "int32")), "bool")
    return ew.where(kept, x, full((), 0, x.dtype))


def dtype_of(number: int) -> str:
    """Return the name of an ONNX element type."""
    name = str(onnx_package().TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


@rule("EyeLike")
def eye_like(site: Site) -> Node | Known:
    """Ones on the ``k``-th diagonal; only the input's shape matters, and its dtype where none is given."""
    shape = site.shape(0)
    value = site.value(0)
    dtype = str(value.array.dtype) if isinstance(value, Known) else value.dtype
    if "dtype" in site.attributes:
        dtype = dtype_of(site.get("dtype"))
    if len(shape) != 2:
        raise UnsupportedError(f"a matrix of {len(shape)} axes")
    k = site.get("k", 0)
    rows, columns = shape
    if isinstance(rows, int) and isinstance(columns, int):
        return Known(np.eye(rows, columns, k, dtype=np.dtype(dtype)))
    if dtype not in DTYPES or dtype == "float64":
        raise UnsupportedError(f"a matrix of {dtype} along the run-time batch")
    return ew.cast(ew.equal(iota(shape, 1) - iota(shape, 0), k), dtype)


@rule("Pad")
def pad_(site: Site) -> Node:
    """Elements around some axes, or fewer where a width is negative."""
    mode = site.get("mode", "constant")
    given = site.ints(1, "pads") if site.has(1) else list(site.get("pads", site.get("paddings", [])))
    named = site.ints(3, "axes") if site.has(3) else range(site.rank(0))
    axes, x = [axis_of(a, site.rank(0)) for a in named], site.tensor(0)
    if len(given) != 2 * len(axes):
        raise UnsupportedError(f"{len(given)} widths for {len(axes)} axes")
    widths = [(0, 0)] * x.rank
    for k, axis in enumerate(axes):
        widths[axis] = (given[k], given[k + len(axes)])
    if mode != "constant":
        for axis, pair in enumerate(widths):
            if any(pair):
                x = _continued(x, axis, pair, mode)
        return x
    kept = tuple(slice(-min(lo, 0), _end(d, hi)) for d, (lo, hi) in zip(x.shape, widths, strict=True))
    cut = getitem(x, tuple(slice(None) if s == slice(0, None) else s for s in kept))
    around = [(max(lo, 0), max(hi, 0)) for lo, hi in widths]
    filling = site.value(2) if site.has(2) else Known(np.array(site.get("value", 0.0)))
    if isinstance(filling, Known):
        return pad(cut, around, _number(filling.array.ravel()[0], x.dtype))
    inside = pad(full(cut.shape, 1, "int32"), around)
    return ew.where(ew.not_equal(inside, 0), pad(cut, around), reshape(filling, ()))


def _number(value: np.generic, dtype: str) -> float:
    """Return a number that a pad fills with, which is kept as a float."""
    if dtype not in ("float32", "float64") and int(value) != int(float(value)):
        raise UnsupportedError(f"padding with {value}, which no float64 holds")
    return float(value)


def _end(extent: Size, after: int) -> int | None:
    if after >= 0:
        return None
    if not isinstance(extent, int):
        raise UnsupportedError("a cut of the run-time batch")
    return extent + after


def _continued(x: Node, axis: int, pair: tuple[int, int], mode: str) -> Node:
    """Return x with elements of its own around an axis: runs of its indices, each of which is a slice."""
    extent = x.shape[axis]
    if not isinstance(extent, int):
        raise UnsupportedError(f"{mode} padding of the run-time batch")
    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(mode)
    if numpy_mode is None:
        raise UnsupportedError(f"mode {mode!r}")
    lo, hi = pair
    padded: np.ndarray = np.pad(np.arange(extent), (max(lo, 0), max(hi, 0)), mode=numpy_mode)  # type: ignore[call-overload]
    return taken(x, padded[max(-lo, 0) : len(padded) - max(-hi, 0)], axis)


def taken(x: Node, index: np.ndarray, axis: int) -> Node:
    """Return the elements at known indices along an axis, as slices one after the other."""
    parts = []
    for start, step, count in _runs([int(i) for i in index]):
        if step == 0:
            piece = getitem(x, _along(axis, slice(start, start + 1)))
            shape = tuple(count if a == axis else d for a, d in enumerate(x.shape))
            parts.append(expand(piece, shape))
            continue
        stop = start + count * step
        parts.append(getitem(x, _along(axis, slice(start, None if stop < 0 else stop, step))))
    return concat(parts, axis)


def runs(index: np.ndarray) -> int:
    """Return of how many slices the indices consist."""
    return len(_runs([int(i) for i in index]))


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)


def _runs(index: list[int]) -> list[tuple[int, int, int]]:
    """Return the start, step and length of arithmetic progressions that make up the indices."""
    found: list[tuple[int, int, int]] = []
    position = 0
    while position < len(index):
        start = index[position]
        step = index[position + 1] - start if position + 1 < len(index) else 1
        end = position + 1
        while end < len(index) and index[end] - index[end - 1] == step:
            end += 1
        found.append((start, step if end - position > 1 else 1, end - position))
        position = end
    return found
