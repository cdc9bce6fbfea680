"""Scattering by index."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.rules.gathering import element_positions, nd_positions
from graphc.onnx.site import Site, UnsupportedError, axis_of, rule
from graphc.ops import elementwise as ew
from graphc.ops.gather import ScatterAdd
from graphc.ops.movement import reshape
from graphc.ops.reduce import iota
from graphc.ops.scatter import Combination, scatter
from graphc.types import Shape, product

_KINDS: dict[str, Combination] = {"none": "set", "mul": "mul", "max": "max", "min": "min"}


def _combined(table: Node, index: Node, rows: Node, reduction: str) -> Node:
    """Return a table with rows set or combined at a flat index."""
    if reduction == "add":
        return table + ScatterAdd(table.shape)(rows, index)
    if reduction not in _KINDS:
        raise UnsupportedError(f"reduction {reduction!r}")
    return scatter(table, index, rows, _KINDS[reduction])


@rule("ScatterElements", "Scatter")
def scatter_elements(site: Site) -> Node:
    """An element for each index, which differs along one axis only from where the index stands."""
    x, index, updates = (site.tensor(k) for k in range(3))
    if index.shape != updates.shape:
        raise UnsupportedError(f"updates {updates.type} at indices {index.type}")
    where_to = element_positions(x.shape, index, axis_of(site.get("axis", 0), x.rank))
    flat = (index.type.size,)
    found = _combined(
        reshape(x, (x.type.size,)), reshape(where_to, flat), reshape(updates, flat),
        site.get("reduction", "none"),
    )  # fmt: skip
    return reshape(found, x.shape)


@rule("ScatterND")
def scatter_nd(site: Site) -> Node:
    """Parts at tuples of indices."""
    x, index, updates = (site.tensor(k) for k in range(3))
    depth = index.shape[-1]
    if not isinstance(depth, int) or depth > x.rank:
        raise UnsupportedError(f"tuples of {depth} indices into {x.rank} axes")
    rest: Shape = x.shape[depth:]
    if updates.shape != (*index.shape[:-1], *rest):
        raise UnsupportedError(f"updates {updates.type} at indices {index.type}")
    count = product(index.shape[:-1])
    where_to = reshape(nd_positions(x.shape, index, 0), (count,))
    table = reshape(x, (product(x.shape[:depth]), *rest))
    found = _combined(table, where_to, reshape(updates, (count, *rest)), site.get("reduction", "none"))
    return reshape(found, x.shape)


@rule("TensorScatter")
def tensor_scatter(site: Site) -> Node:
    """A sequence written into a cache along an axis, from an index of its own for each of the batch."""
    cache, update = site.tensor(0), site.tensor(1)
    axis = axis_of(site.get("axis", -2), cache.rank)
    mode, extent = site.get("mode", "linear"), cache.shape[axis]
    if axis == 0 or not isinstance(extent, int):
        raise UnsupportedError("a sequence along the batch")
    moment = iota(update.shape, axis)
    if site.has(2):
        starts = reshape(ew.cast(site.tensor(2), "int64"), (update.shape[0], *[1] * (update.rank - 1)))
        moment = moment + starts
    if mode == "circular":
        moment = ew.where(ew.greater_equal(moment, extent), moment - extent, moment)
    elif mode != "linear":
        raise UnsupportedError(f"mode {mode!r}")
    where_to = element_positions(cache.shape, moment, axis)
    flat = (update.type.size,)
    table = reshape(cache, (cache.type.size,))
    return reshape(scatter(table, reshape(where_to, flat), reshape(update, flat)), cache.shape)
