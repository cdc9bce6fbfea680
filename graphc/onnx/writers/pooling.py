"""Pooling and its transposes."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.emission import Emission, writes
from graphc.onnx.writers import taps
from graphc.ops.pool2d import (
    AvgPool2d,
    AvgPool2dBackward,
    MaxPool2d,
    MaxPool2dGather,
    MaxPool2dIndex,
    MaxPool2dScatter,
    PoolGeometry,
    window_counts,
)  # fmt: skip
from graphc.types import Shape, Size


def _extents(shape: Shape) -> tuple[Size, int, int, int]:
    n, c, h, w = shape
    assert isinstance(c, int) and isinstance(h, int) and isinstance(w, int)
    return n, c, h, w


def _behind(g: PoolGeometry, shape: Shape) -> list[int]:
    """Return rows and columns behind the image that the last windows reach."""
    _, _, *image = _extents(shape)
    return [max(0, inside - d) for inside, d in zip(g.inside, image, strict=True)]


def _pads(g: PoolGeometry, shape: Shape) -> list[int]:
    return [*g.padding, *_behind(g, shape)]


def _max_pool(e: Emission, x: Node, g: PoolGeometry, results: int) -> list[str]:
    return e.op_with(
        "MaxPool", [e.names[x]], results, kernel_shape=list(g.kernel), strides=list(g.stride),
        pads=_pads(g, x.shape), dilations=list(g.dilation),
    )  # fmt: skip


@writes(MaxPool2d)
def write_max_pool(e: Emission, node: Node) -> str:
    """Write MaxPool."""
    assert isinstance(node.op, MaxPool2d)
    return _max_pool(e, node.inputs[0], node.op.geometry, 1)[0]


@writes(MaxPool2dIndex)
def write_max_index(e: Emission, node: Node) -> str:
    """Write MaxPool for its indices, which are places in the whole tensor; return taps of the windows."""
    assert isinstance(node.op, MaxPool2dIndex)
    g, (x,) = node.op.geometry, node.inputs
    _, _, h, w = _extents(x.shape)
    places = _max_pool(e, x, g, 2)[1]
    flat = e.op("Mod", places, e.constant(h * w, "int64"))
    e.positions[node] = flat
    width = e.constant(w, "int64")
    rows, columns = e.op("Div", flat, width), e.op("Mod", flat, width)
    taps_of = []
    for axis, name in enumerate((rows, columns)):
        first = np.arange(g.out[axis]) * g.stride[axis] - g.padding[axis]
        along = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
        inside = e.op("Sub", name, e.constant(first.reshape(along), "int64"))
        taps_of.append(e.op("Div", inside, e.constant(g.dilation[axis], "int64")))
    tap = e.op("Add", e.op("Mul", taps_of[0], e.constant(g.kernel[1], "int64")), taps_of[1])
    return e.cast(tap, node.dtype)


def _positions(e: Emission, index: Node, g: PoolGeometry, width: int) -> str:
    """Return where in its image each maximum lies, int64, of the pooled shape."""
    if index in e.positions:
        return e.positions[index]
    tap = e.cast(e.names[index], "int64")
    across = e.constant(g.kernel[1], "int64")
    rows, columns = e.op("Div", tap, across), e.op("Mod", tap, across)
    down = e.op("Mul", rows, e.constant(g.dilation[0] * width, "int64"))
    right = e.op("Mul", columns, e.constant(g.dilation[1], "int64"))
    y = np.arange(g.out[0])[:, None] * g.stride[0] - g.padding[0]
    x = np.arange(g.out[1])[None, :] * g.stride[1] - g.padding[1]
    first = e.constant((y * width + x)[None, None], "int64")
    return e.op("Add", e.op("Add", first, down), right)


@writes(MaxPool2dScatter)
def write_max_scatter(e: Emission, node: Node) -> str:
    """Write ScatterElements, which adds, on zeros."""
    assert isinstance(node.op, MaxPool2dScatter)
    g, (grad, index) = node.op.geometry, node.inputs
    n, c, h, w = _extents(node.shape)
    pixels = (n, c, g.out[0] * g.out[1])
    places = e.reshape(_positions(e, index, g, w), pixels)
    zeros = e.full((n, c, h * w), 0.0, node.dtype)
    added = e.op("ScatterElements", zeros, places, e.reshape(e.names[grad], pixels), axis=2, reduction="add")
    return e.reshape(added, node.shape)


@writes(MaxPool2dGather)
def write_max_gather(e: Emission, node: Node) -> str:
    """Write GatherElements."""
    assert isinstance(node.op, MaxPool2dGather)
    g, (image, index) = node.op.geometry, node.inputs
    n, c, h, w = _extents(image.shape)
    places = e.reshape(_positions(e, index, g, w), (n, c, g.out[0] * g.out[1]))
    found = e.op("GatherElements", e.reshape(e.names[image], (n, c, h * w)), places, axis=2)
    return e.reshape(found, node.shape)


@writes(AvgPool2d)
def write_avg_pool(e: Emission, node: Node) -> str:
    """Write AveragePool, corrected where it counts otherwise."""
    assert isinstance(node.op, AvgPool2d)
    op, (x,) = node.op, node.inputs
    g, (_, _, h, w) = op.geometry, _extents(x.shape)
    counts = window_counts(g, h, w, op.include_pad, op.divisor)
    if node.dtype == "float64":  # runtimes have the operator in float32 alone
        padded = taps.pad_image(e, e.names[x], g.padding, _behind(g, x.shape), 0.0, x.dtype)
        total = e.op("Sum", *taps.slices(e, padded, g.kernel, g.stride, g.dilation, g.out))
        return e.op("Div", total, e.constant(counts, node.dtype))
    inside = not op.include_pad and op.divisor is None
    mean = e.op(
        "AveragePool", e.names[x], kernel_shape=list(g.kernel), strides=list(g.stride), pads=_pads(g, x.shape),
        count_include_pad=int(not inside),
    )  # fmt: skip
    if inside or (counts == g.area).all():
        return mean
    return e.op("Mul", mean, e.constant(g.area / counts, node.dtype))


@writes(AvgPool2dBackward)
def write_avg_backward(e: Emission, node: Node) -> str:
    """Write ConvTranspose with a kernel of ones for each channel."""
    assert isinstance(node.op, AvgPool2dBackward)
    op = node.op
    g, (_, c, h, w) = op.geometry, _extents(node.shape)
    counts = window_counts(g, h, w, op.include_pad, op.divisor)
    number = counts.flat[0] if (counts == counts.flat[0]).all() else counts
    share = e.op("Div", e.names[node.inputs[0]], e.constant(number, node.dtype))
    behind = _behind(g, node.shape)
    if node.dtype == "float64":
        return taps.spread(e, [share] * g.area, node, g.out, g.kernel, g.stride, g.dilation, g.padding)
    more = [d + p + q - r for d, p, q, r in zip((h, w), g.padding, behind, g.reach, strict=True)]
    return e.op(
        "ConvTranspose", share, e.constant(np.ones((c, 1, *g.kernel)), node.dtype), group=c,
        kernel_shape=list(g.kernel), strides=list(g.stride), pads=_pads(g, node.shape), output_padding=more,
    )  # fmt: skip
