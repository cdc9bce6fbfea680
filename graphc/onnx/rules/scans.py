"""Running sums and products, and the largest elements in their order."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.rules.reductions import along, axis_of
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.leaves import full
from graphc.ops.movement import pad, reshape
from graphc.ops.reduce import iota, sum
from graphc.types import Size

_LONGEST_ORDER = 4096  # TopK compares every element with every other


def _fixed(extent: Size) -> int:
    if not isinstance(extent, int):
        raise UnsupportedError("it runs along the run-time batch")
    return extent


def _shifted(x: Node, axis: int, by: int, neutral: float) -> Node:
    """Return x moved towards higher indices along an axis, with a neutral element where nothing was."""
    extent = _fixed(x.shape[axis])
    widths = [(by, 0) if a == axis else (0, 0) for a in range(x.rank)]
    return pad(along(x, axis, slice(0, extent - by)), widths, neutral)


@rule("CumSum", "CumProd")
def running(site: Site) -> Node:
    """Sums or products of all elements up to each, in steps of doubled distance (Hillis and Steele 1986)."""
    axes = site.ints(1, "axis")
    x = site.tensor(0)
    if len(axes) != 1 or not -x.rank <= axes[0] < x.rank:
        raise UnsupportedError(f"axis {axes} of {x.rank} axes")
    axis = axes[0] % x.rank
    extent = _fixed(x.shape[axis])
    reverse = bool(site.get("reverse", 0))
    combine, neutral = (ew.add, 0.0) if site.op == "CumSum" else (ew.mul, 1.0)
    if reverse:
        x = along(x, axis, slice(None, None, -1))
    if site.get("exclusive", 0):
        x = _shifted(x, axis, 1, neutral) if extent > 1 else full(x.shape, neutral, x.dtype)
    distance = 1
    while distance < extent:
        x = combine(x, _shifted(x, axis, distance, neutral))
        distance *= 2
    return along(x, axis, slice(None, None, -1)) if reverse else x


@rule("TopK")
def top(site: Site) -> tuple[Node, Node]:
    """Each element's rank is the number of those that come before it, equal ones in their order; NaN is largest."""
    k = site.ints(1, "k")[0] if site.has(1) else int(site.get("k", 0))
    x = site.tensor(0)
    axis = axis_of(site, -1, x.rank)
    extent = _fixed(x.shape[axis])
    if not 1 <= k <= extent:
        raise UnsupportedError(f"the first {k} of {extent} elements")
    if extent > _LONGEST_ORDER:
        raise UnsupportedError(f"an order of {extent} elements, more than {_LONGEST_ORDER}")
    ranks = _ranks(x, axis, extent, bool(site.get("largest", 1)))
    lead, rest = x.shape[:axis], x.shape[axis + 1 :]
    places = iota((*lead, k, extent, *rest), axis)
    hit = ew.equal(places, reshape(ranks, (*lead, 1, extent, *rest)))
    spread = reshape(x, (*lead, 1, extent, *rest))
    values = sum(ew.where(hit, spread, 0), axis + 1)
    indices = sum(ew.where(hit, iota((*lead, k, extent, *rest), axis + 1), 0), axis + 1)
    return values, indices


def _ranks(x: Node, axis: int, extent: int, largest: bool) -> Node:
    """Return how many elements come before each along an axis."""
    lead, rest = x.shape[:axis], x.shape[axis + 1 :]
    one = reshape(x, (*lead, extent, 1, *rest))
    other = reshape(x, (*lead, 1, extent, *rest))
    square = (*lead, extent, extent, *rest)
    earlier = ew.less(iota(square, axis + 1), iota(square, axis))
    before, after = _above(other, one), _above(one, other)
    if not largest:
        before, after = after, before
    return sum(ew.cast(ew.where(before, 1, ew.where(after, 0, earlier)), "int64"), axis + 1)


def _above(a: Node, b: Node) -> Node:
    """Whether a is larger than b, where NaN is larger than all numbers."""
    above = ew.greater(a, b)
    return ew.where(ew.equal(a, a), above, ew.equal(b, b)) if a.type.is_float else above
