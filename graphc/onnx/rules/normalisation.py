"""Normalisations over features, channels and images, and the softmax family. Batch normalisation has its own file."""

from __future__ import annotations

from graphc.functional import log_softmax, softmax
from graphc.graph.node import Node
from graphc.nn.normalisation import moments
from graphc.onnx.rules.reductions import along, axis_of
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.movement import pad, reshape
from graphc.ops.reduce import mean, sum
from graphc.types import Size


@rule("Softmax", "LogSoftmax")
def softmaxes(site: Site) -> Node:
    """Along one axis from version 13 on; before, over all axes from the given one on."""
    function = softmax if site.op == "Softmax" else log_softmax
    x = site.tensor(0)
    if site.version >= 13:
        return function(x, site.get("axis", -1))
    axis = axis_of(site, 1, max(1, x.rank))
    return reshape(function(reshape(x, (*x.shape[:axis], -1)), -1), x.shape)


@rule("LayerNormalization")
def layer_normalization(site: Site) -> tuple[Node, ...]:
    """Over all axes from the given one on; the mean and the reciprocal deviation are outputs too."""
    x = site.tensor(0)
    axes = tuple(range(axis_of(site, -1, x.rank), x.rank))
    deviation, variance = moments(x, axes)
    inverse = ew.rsqrt(variance + site.get("epsilon", 1e-5))
    out = deviation * inverse * site.tensor(1)
    out = out + site.tensor(2) if site.has(2) else out
    return (out, mean(x, axes, keepdims=True), inverse)[: site.outputs]


@rule("RMSNormalization")
def rms_normalization(site: Site) -> Node:
    """By the root of the mean square over all axes from the given one on."""
    x = site.tensor(0)
    axes = tuple(range(axis_of(site, -1, x.rank), x.rank))
    square = mean(ew.square(x), axes, keepdims=True)
    return x * ew.rsqrt(square + site.get("epsilon", 1e-5)) * site.tensor(1)


def channels_of(x: Node) -> int:
    """Return the extent of axis 1.

    Raises:
        UnsupportedError: there is no such axis, or nothing behind it.
    """
    if x.rank < 3 or not isinstance(x.shape[1], int):
        raise UnsupportedError(f"expected (N, C, D1, ...), got {x.type}")
    return x.shape[1]


@rule("InstanceNormalization")
def instance_normalization(site: Site) -> Node:
    """Each channel of each image by itself."""
    x = site.tensor(0)
    shape = (channels_of(x), *[1] * (x.rank - 2))
    deviation, variance = moments(x, tuple(range(2, x.rank)))
    out = deviation * ew.rsqrt(variance + site.get("epsilon", 1e-5))
    return out * reshape(site.tensor(1), shape) + reshape(site.tensor(2), shape)


@rule("GroupNormalization")
def group_normalization(site: Site) -> Node:
    """Groups of channels of each image; scale and bias are a group's up to version 20 and a channel's later."""
    x = site.tensor(0)
    channels, groups = channels_of(x), int(site.get("num_groups", 0))
    if groups < 1 or channels % groups:
        raise UnsupportedError(f"{groups} groups of {channels} channels")
    grouped = reshape(x, (x.shape[0], groups, channels // groups, *x.shape[2:]))
    deviation, variance = moments(grouped, tuple(range(2, grouped.rank)))
    out = deviation * ew.rsqrt(variance + site.get("epsilon", 1e-5))
    members = channels // groups if site.version >= 21 else 1
    shape = (groups, members, *[1] * (x.rank - 2))
    return reshape(out * reshape(site.tensor(1), shape) + reshape(site.tensor(2), shape), x.shape)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(site: Site) -> Node:
    """Over the given axes, without a scale."""
    x = site.tensor(0)
    axes = tuple(sorted(a % x.rank for a in site.get("axes", [0, 2, 3])))
    deviation, variance = moments(x, axes)
    return deviation / (ew.sqrt(variance) + 1e-9)


@rule("LpNormalization")
def lp_normalization(site: Site) -> Node:
    """By the sum of magnitudes, or by the root of the sum of squares; zeros stay zeros."""
    site.refuse("p", 1, 2)
    x = site.tensor(0)
    axis = axis_of(site, -1, x.rank)
    if site.get("p", 2) == 1:
        norm = sum(ew.abs(x), axis, keepdims=True)
    else:
        norm = ew.sqrt(sum(ew.square(x), axis, keepdims=True))
    return x / ew.where(ew.equal(norm, 0), 1.0, norm)


@rule("LRN")
def local_response(site: Site) -> Node:
    """``x / (bias + alpha/size * sum of squares over neighbouring channels)**beta``."""
    x, size = site.tensor(0), int(site.get("size", 1))
    channels: Size = x.shape[1] if x.rank > 1 else 0
    if not isinstance(channels, int) or channels < 1 or size < 1:
        raise UnsupportedError(f"{size} neighbours in {x.type}")
    widths = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.rank - 2)]
    squares = pad(ew.square(x), widths)
    total = along(squares, 1, slice(0, channels))
    for shift in range(1, size):
        total = total + along(squares, 1, slice(shift, shift + channels))
    spread = ew.add(ew.mul(total, site.get("alpha", 1e-4) / size), site.get("bias", 1.0))
    return x * ew.pow(spread, -site.get("beta", 0.75))
