"""Reductions over axes, and indices of extremes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.functional import logsumexp, one_hot
from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.movement import getitem, reshape
from graphc.ops.reduce import argmax, argmin, max, mean, min, sum
from graphc.types import normalise_axes

Axes = tuple[int, ...]
_FLOATS_ONLY = {"ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}


def product(x: Node, axes: Axes) -> Node:
    """Return the product over axes, which stay with extent 1.

    Halves are multiplied, and halves of the result, so that the derivative is right where elements are 0.

    Raises:
        UnsupportedError: an axis has the run-time batch as its extent.
    """
    for axis in axes:
        extent, odd = x.shape[axis], None
        if not isinstance(extent, int):
            raise UnsupportedError("a product over the run-time batch")
        while extent > 1:
            half = extent // 2
            if extent % 2:
                last = along(x, axis, slice(extent - 1, extent))
                odd = last if odd is None else odd * last
            x = along(x, axis, slice(0, half)) * along(x, axis, slice(half, 2 * half))
            extent = half
        x = x if odd is None else x * odd
    return x


def along(x: Node, axis: int, chosen: slice) -> Node:
    """Return a slice along one axis."""
    return getitem(x, (*[slice(None)] * axis, chosen))


_REDUCED: dict[str, Callable[[Node, Axes], Node]] = {
    "ReduceSum": lambda x, axes: sum(x, axes, keepdims=True),
    "ReduceMean": lambda x, axes: mean(x, axes, keepdims=True),
    "ReduceMax": lambda x, axes: max(x, axes, keepdims=True),
    "ReduceMin": lambda x, axes: min(x, axes, keepdims=True),
    "ReduceProd": product,
    "ReduceL1": lambda x, axes: sum(ew.abs(x), axes, keepdims=True),
    "ReduceL2": lambda x, axes: ew.sqrt(sum(ew.square(x), axes, keepdims=True)),
    "ReduceLogSum": lambda x, axes: ew.log(sum(x, axes, keepdims=True)),
    "ReduceLogSumExp": lambda x, axes: logsumexp(x, axes, keepdims=True),
    "ReduceSumSquare": lambda x, axes: sum(ew.square(x), axes, keepdims=True),
}
"""What each operator does over axes, which stay with extent 1."""


@rule(*_REDUCED)
def reduction(site: Site) -> Node:
    """Axes are an attribute at first and an input later; none means all of them, or none at all."""
    given: Sequence[int] | None = site.ints(1, "axes") if site.has(1) else site.get("axes")
    x = site.tensor(0)
    if not given:
        given = () if site.get("noop_with_empty_axes", 0) else None
    axes = normalise_axes(given, x.rank)
    if site.op in _FLOATS_ONLY and not x.type.is_float:
        raise UnsupportedError(f"it is not supported for {x.dtype}")
    truth = x.dtype == "bool"
    if truth and site.op in ("ReduceMax", "ReduceMin"):
        x = ew.cast(x, "uint8")
    out = _REDUCED[site.op](x, axes)
    if site.op == "ReduceLogSumExp" and not axes:
        out = x  # log of exp
    out = ew.cast(out, "bool") if truth else out
    return out if site.get("keepdims", 1) else without(out, axes)


def without(x: Node, axes: Axes) -> Node:
    """Return x without axes of extent 1."""
    return reshape(x, [d for a, d in enumerate(x.shape) if a not in axes]) if axes else x


def axis_of(site: Site, default: int, rank: int) -> int:
    """Return the attribute ``axis`` as a non-negative number.

    Raises:
        UnsupportedError: it is out of range.
    """
    axis = site.get("axis", default)
    if not -rank <= axis < rank:
        raise UnsupportedError(f"axis {axis} is out of range for {rank} axes")
    return int(axis % rank)


@rule("ArgMax", "ArgMin")
def arg_extreme(site: Site) -> Node:
    """The index of the first extreme, or of the last with ``select_last_index``."""
    function = argmax if site.op == "ArgMax" else argmin
    x = site.tensor(0)
    axis = axis_of(site, 0, x.rank)
    keep = bool(site.get("keepdims", 1))
    if not site.get("select_last_index", 0):
        return function(x, axis, keepdims=keep)
    extent = x.shape[axis]
    if not isinstance(extent, int):
        raise UnsupportedError("the last index along the run-time batch")
    return ew.sub(extent - 1, function(along(x, axis, slice(None, None, -1)), axis, keepdims=keep))


@rule("Hardmax")
def hardmax(site: Site) -> Node:
    """1 at the first maximum: along an axis from version 13 on, over all from the given one on before."""
    x = site.tensor(0)
    old = site.version < 13
    axis = axis_of(site, 1 if old else -1, x.rank)
    rows = reshape(x, (*x.shape[:axis], -1)) if old else x
    extent = rows.shape[axis]
    if not isinstance(extent, int):
        raise UnsupportedError("it runs along the run-time batch")
    return reshape(one_hot(argmax(rows, axis), extent, axis, x.dtype), x.shape)
