"""Operators that move elements: reshape, transpose, concatenate, flatten."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.site import Result, Site, rule
from graphc.ops.movement import concat, expand, reshape, transpose
from graphc.types import Size, broadcast_shapes, product


@rule("Reshape")
def reshape_(site: Site) -> Node:
    """0 keeps an extent unless ``allowzero`` is set; one extent may be -1."""
    x = site.tensor(0)
    wanted: list[Size] = site.sizes(1, "shape") if site.has(1) else list(site.get("shape"))
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
    """One tensor after the other."""
    return concat(site.tensors(), site.get("axis", 1))


@rule("Squeeze")
def squeeze(site: Site) -> Node:
    """Drop axes of extent 1: those that are named, or all."""
    x = site.tensor(0)
    axes = (
        site.ints(1, "axes")
        if site.has(1)
        else site.get("axes", [a for a, d in enumerate(x.shape) if d == 1])
    )
    dropped = {a % x.rank for a in axes}
    return reshape(x, [d for a, d in enumerate(x.shape) if a not in dropped])


@rule("Unsqueeze")
def unsqueeze(site: Site) -> Node:
    """Insert axes of extent 1."""
    x = site.tensor(0)
    axes = site.ints(1, "axes") if site.has(1) else site.get("axes")
    rank = x.rank + len(axes)
    inserted = {a % rank for a in axes}
    old = iter(x.shape)
    return reshape(x, [1 if a in inserted else next(old) for a in range(rank)])


@rule("Expand")
def expand_(site: Site) -> Node:
    """Broadcast with a shape."""
    x = site.tensor(0)
    shape = broadcast_shapes(x.shape, tuple(site.sizes(1, "shape")))
    return expand(reshape(x, (*[1] * (len(shape) - x.rank), *x.shape)), shape)


@rule("Identity")
def identity(site: Site) -> Result:
    """The input itself."""
    return site.value(0)
