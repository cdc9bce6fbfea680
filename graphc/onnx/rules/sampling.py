"""Operators that read images at coordinates which are computed when the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product as pairs
from math import prod

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.windows import axes, spatial
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.conv2d import Conv2d, ConvGeometry
from graphc.ops.gather import take
from graphc.ops.leaves import constant
from graphc.ops.matmul import matmul
from graphc.ops.movement import reshape, transpose
from graphc.ops.reduce import iota, mean
from graphc.ops.reduce import max as max_

_FAR = 1e6  # elements away from the image, where nothing but padding is; such numbers fit all index types


@dataclass(frozen=True)
class _Line:
    """Indices along one axis, weights of them, and whether they lie inside, each None where there is no question."""

    index: Node
    weight: Node | None
    inside: Node | None


def _whole(x: Node) -> Node:
    """Return the largest whole number that is not above x, in x's dtype; x is finite and small."""
    cut = ew.cast(ew.cast(x, "int32"), x.dtype)
    return ew.where(ew.greater(cut, x), cut - 1, cut)


def round_to_even(x: Node) -> Node:
    """Return the nearest whole number, of two the even one; x is finite and small."""
    below = _whole(x)
    rest = x - below
    odd = ew.not_equal(below, _whole(below * 0.5) * 2)
    up = ew.where(ew.equal(rest, 0.5), ew.cast(odd, x.dtype), ew.cast(ew.greater(rest, 0.5), x.dtype))
    return below + up


def _near(x: Node, low: float, high: float) -> Node:
    """Return x within bounds; NaN becomes the lower one."""
    return ew.where(ew.greater_equal(x, low), ew.where(ew.less_equal(x, high), x, high), low)


def _reflected(x: Node, low: float, high: float) -> Node:
    """Return a triangular wave: x reflected at the borders until it lies between them."""
    width = high - low
    if width == 0:
        return x * 0 + low
    away = ew.abs(x - low)
    rest = away - _whole(away * (0.5 / width)) * (2 * width)
    return ew.where(ew.greater(rest, width), 2 * width - rest, rest) + low


def _folded(index: Node, size: int, align: bool) -> Node:
    """Return indices at most two elements outside reflected into the image."""
    period = 2 * (size - 1) if align else 2 * size
    if period == 0:
        return index * 0
    index = index + -(-2 // period) * period
    for _ in range((size + 2 + -(-2 // period) * period) // period):
        index = ew.where(ew.greater_equal(index, period), index - period, index)
    return ew.where(ew.less(index, size), index, (period if align else period - 1) - index)


def _padded(x: Node, size: int, padding: str, align: bool) -> Node:
    """Return coordinates moved into the image as the padding says."""
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    outside = ew.where(ew.less(x, low), 1.0, ew.cast(ew.greater(x, high), x.dtype))
    if padding == "border":
        return ew.where(ew.equal(outside, 1.0), _near(x, 0.0, size - 1.0), x)
    if padding == "reflection":
        return ew.where(ew.equal(outside, 1.0), _reflected(x, low, high), x)
    return x


def _indexed(index: Node, size: int, padding: str, align: bool, weight: Node | None) -> _Line:
    """Return indices that lie in the image, those outside replaced as the padding says."""
    if padding == "zeros":
        inside = ew.where(ew.less(index, 0), 0, ew.where(ew.less(index, size), 1, 0))
        return _Line(ew.minimum(ew.maximum(index, 0), size - 1), weight, ew.equal(inside, 1))
    if padding == "reflection":
        index = _folded(index, size, align)
    return _Line(ew.minimum(ew.maximum(index, 0), size - 1), weight, None)


def _keys(d: Node, a: float = -0.75) -> list[Node]:
    """Return the weights of four elements (Keys 1981, equation 4) at a distance d from the second."""

    def far(x: Node) -> Node:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    def near(x: Node) -> Node:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    return [far(d + 1), near(d), near(1 - d), far(2 - d)]


def _lines(x: Node, size: int, mode: str, padding: str, align: bool) -> list[_Line]:
    """Return what a coordinate reads along one axis."""
    if mode == "nearest":
        at = _padded(round_to_even(x), size, padding, align)
        return [_indexed(ew.cast(_near(at, -3, size + 2), "int64"), size, padding, align, None)]
    at = _near(_padded(x, size, padding, align), -4.0, size + 3.0)
    below = _whole(at)
    rest, first = at - below, ew.cast(below, "int64")
    if mode == "linear":
        weights, begin = [1 - rest, rest], 0
    else:
        weights, begin = _keys(rest), -1
    return [_indexed(first + (begin + k), size, padding, align, w) for k, w in enumerate(weights)]


def sample(image: Node, lines: Sequence[Sequence[_Line]]) -> Node:
    """Return the image (n, c, *extents) read at positions of shape (n, *out): (n, *out, c).

    ``lines`` holds for every axis what is read along it; all combinations are added up.
    """
    sizes = spatial(image.shape)
    channels, rank = image.shape[1], len(sizes)
    rows = transpose(image, (0, *range(2, rank + 2), 1))
    table = reshape(rows, (image.shape[0] * prod(sizes), channels))
    shape = lines[0][0].index.shape
    start = iota(shape, 0) * prod(sizes)
    total = []
    for chosen in pairs(*lines):
        index = start
        for a, line in enumerate(chosen):
            index = index + line.index * prod(sizes[a + 1 :])
        found = take(table, index)
        for line in chosen:
            if line.inside is not None:
                found = ew.where(reshape(line.inside, (*shape, 1)), found, 0.0)
        weights = [line.weight for line in chosen if line.weight is not None]
        total.append(found * reshape(reduce(ew.mul, weights), (*shape, 1)) if weights else found)
    return reduce(ew.add, total)


def _channels_second(x: Node) -> Node:
    return transpose(x, (0, x.rank - 1, *range(1, x.rank - 1)))


@rule("GridSample")
def grid_sample(site: Site) -> Node:
    """Read images at coordinates between -1 and 1; the last axis of the grid holds x, y (and z)."""
    x, grid = site.tensor(0), site.tensor(1)
    sizes, align = spatial(x.shape, (1, 2, 3)), bool(site.get("align_corners", 0))
    given, padding = site.get("mode", "linear"), site.get("padding_mode", "zeros")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(given, given)
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise UnsupportedError(f"mode={given!r}, padding_mode={padding!r}")
    if grid.rank != len(sizes) + 2 or grid.shape[-1] != len(sizes) or grid.dtype != x.dtype:
        raise UnsupportedError(f"a grid {grid.type} for an image {x.type}")
    lines = []
    for a, size in enumerate(sizes):
        n = grid[..., len(sizes) - 1 - a]
        at = (n + 1) * ((size - 1) / 2) if align else ((n + 1) * size - 1) * 0.5
        lines.append(_lines(_near(at, -_FAR, _FAR), size, mode, padding, align))
    return _channels_second(sample(x, lines))


@rule("AffineGrid")
def affine_grid(site: Site) -> Node:
    """The coordinates of every pixel between -1 and 1, transformed."""
    theta, align = site.tensor(0), bool(site.get("align_corners", 0))
    sizes = [d for d in site.sizes(1, "size")[2:] if isinstance(d, int)]
    rank = len(sizes)
    if theta.shape[1:] != (rank, rank + 1) or min(sizes, default=0) < 1 + align:
        raise UnsupportedError(f"matrices {theta.type} for an image of {sizes}")
    lines = [np.linspace(-1, 1, d) if align else (np.arange(d) * 2 + 1) / d - 1 for d in sizes]
    mesh = np.meshgrid(*lines, indexing="ij")
    base = np.stack([*(m.ravel() for m in reversed(mesh)), np.ones(prod(sizes))])
    grid = matmul(theta, constant(base, theta.dtype))
    return reshape(transpose(grid, (0, 2, 1)), (theta.shape[0], *sizes, rank))


@rule("RoiAlign")
def roi_align(site: Site) -> Node:
    """Read every region at a fixed number of points a bin, and average them or take their maximum."""
    x, rois, ratio = site.tensor(0), site.tensor(1), int(site.get("sampling_ratio", 0))
    sizes, (high, wide) = spatial(x.shape, (2,)), (site.get("output_height", 1), site.get("output_width", 1))
    mode = site.get("mode", "avg")
    half = site.version >= 16 and site.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    if ratio < 1:
        raise UnsupportedError("sampling_ratio=0: the number of points a bin depends on the region's size")
    if mode not in ("avg", "max") or not x.type.is_float or rois.dtype != x.dtype:
        raise UnsupportedError(f"mode={mode!r}, image {x.type}, regions {rois.type}")
    count, scaled = rois.shape[0], rois * float(site.get("spatial_scale", 1.0)) - (0.5 if half else 0.0)
    shape = (count, high * ratio, wide * ratio)
    lines = []
    for a, (size, bins) in enumerate(zip(sizes, (high, wide), strict=True)):
        begin, extent = scaled[:, 1 - a], scaled[:, 3 - a] - scaled[:, 1 - a]
        step = (extent if half else ew.maximum(extent, 1.0)) / bins
        within = np.arange(bins)[:, None] + (np.arange(ratio) + 0.5) / ratio
        at = reshape(begin, (count, 1)) + reshape(step, (count, 1)) * constant(within.ravel(), x.dtype)
        position = reshape(at, (count, -1, 1) if a == 0 else (count, 1, -1))
        lines.append(_clamped(position + ew.cast(iota(shape, 0) * 0, x.dtype), size))
    total = _sample_rois(x, site.tensor(2), lines, mode == "max")
    binned = reshape(total, (count, high, ratio, wide, ratio, x.shape[1]))
    return _channels_second(max_(binned, (2, 4)) if mode == "max" else mean(binned, (2, 4)))


def _clamped(at: Node, size: int) -> list[_Line]:
    """Return the two neighbours of a point, which counts up to one element outside of the image."""
    at = _near(at, -_FAR, _FAR)
    inside = ew.where(ew.less(at, -1.0), 0.0, ew.where(ew.greater(at, float(size)), 0.0, 1.0))
    at = ew.minimum(ew.maximum(at, 0.0), size - 1.0)
    low = _whole(at)
    rest, first = at - low, ew.cast(low, "int64")
    second = ew.minimum(first + 1, size - 1)
    return [_Line(first, (1 - rest) * inside, None), _Line(second, rest * inside, None)]


def _sample_rois(x: Node, batch: Node, lines: Sequence[Sequence[_Line]], largest: bool) -> Node:
    """Read the image of each region; the maximum is over the weighted neighbours, as the operator has it."""
    h, w = spatial(x.shape, (2,))
    table = reshape(transpose(x, (0, 2, 3, 1)), (x.shape[0] * (h * w), x.shape[1]))
    start = reshape(ew.cast(batch, "int64"), (-1, 1, 1)) * (h * w)
    parts = []
    for row, column in pairs(*lines):
        assert row.weight is not None and column.weight is not None
        found = take(table, start + row.index * w + column.index)
        parts.append(found * reshape(row.weight * column.weight, (*row.index.shape, 1)))
    return reduce(ew.maximum if largest else ew.add, parts)


@rule("DeformConv")
def deform_conv(site: Site) -> Node:
    """Convolve what is read at the kernel's positions, each moved by an offset of its own."""
    x, weight, offset = site.tensor(0), site.tensor(1), site.tensor(2)
    sizes, kernel = spatial(x.shape, (2,)), spatial(weight.shape, (2,))
    windows = axes(site, sizes, kernel)
    n, channels, taps, parts = x.shape[0], x.shape[1], prod(kernel), int(site.get("offset_group", 1))
    out = [w.out for w in windows]
    if not isinstance(channels, int) or channels % parts or offset.shape[1:] != (parts * taps * 2, *out):
        raise UnsupportedError(f"offsets {offset.type} in {parts} groups for {x.type} and kernel {kernel}")
    moved = reshape(offset, (n * parts, *kernel, 2, *out))
    lines = []
    for a, w in enumerate(windows):
        rank = [1] * 5
        places = np.arange(w.kernel) * w.dilation
        rank[1 + a] = w.kernel
        corner = [1] * 5
        corner[3 + a] = w.out
        fixed = places.reshape(rank) + (np.arange(w.out) * w.stride - w.pads[0]).reshape(corner)
        at = moved[:, :, :, a] + constant(fixed, x.dtype)
        lines.append(_lines(_near(at, -_FAR, _FAR), w.size, "linear", "zeros", True))
    images = reshape(x, (n * parts, channels // parts, *sizes))
    found = sample(images, lines)
    if site.has(4):
        found = found * reshape(site.tensor(4), (n * parts, *kernel, *out, 1))
    columns = transpose(found, (0, 5, 1, 2, 3, 4))
    merged = reshape(columns, (n, channels * taps, *out))
    flat = reshape(weight, (weight.shape[0], -1, 1, 1))
    result = Conv2d(ConvGeometry(groups=site.get("group", 1)))(merged, flat, name=site.label)
    return result + reshape(site.tensor(3), (-1, 1, 1)) if site.has(3) else result
