"""Pools, windowed and global."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.windows import Axis, axes, fitted, numbers, spatial, tap
from graphc.onnx.site import Result, Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.leaves import constant, full
from graphc.ops.movement import pad, reshape
from graphc.ops.pool2d import AvgPool2d, MaxPool2d, MaxPool2dIndex, PoolGeometry
from graphc.ops.reduce import iota, mean
from graphc.ops.reduce import max as max_
from graphc.ops.reduce import sum as sum_
from graphc.ops.scatter import scatter
from graphc.types import Shape, product

_POINT = Axis(1, 1, 1, 1, (0, 0), 1)


def _windows(site: Site) -> list[Axis]:
    return axes(site, spatial(site.shape(0)), [int(k) for k in site.get("kernel_shape", ())])


def _direct(w: Axis) -> bool:
    """Whether the pooling ops take the windows as they are: each begins in the image, or up to half before it."""
    return 2 * w.pads[0] <= w.kernel and (w.out - 1) * w.stride - w.pads[0] < w.size


def _stage(x: Node, windows: Sequence[Axis], fill: float) -> tuple[Node, PoolGeometry]:
    """Return an image and the geometry of its windows; the image is padded only where the ops do not pad it so."""
    widths, begins = [(0, 0), (0, 0)], []
    for w in windows:
        before = 0 if _direct(w) else w.pads[0]
        after = max(0, (w.out - 1) * w.stride + w.reach - w.size - w.pads[0])
        widths.append((0, 0) if _direct(w) else (before, after))
        begins.append(w.pads[0] - before)
    y, x_ = windows
    geometry = PoolGeometry(
        (y.kernel, x_.kernel),
        (y.stride, x_.stride),
        (begins[0], begins[1]),
        (y.dilation, x_.dilation),
        (y.out, x_.out),
    )
    return pad(x, widths, fill), geometry


def _images(x: Node, windows: Sequence[Axis]) -> tuple[Shape, list[Axis]]:
    """Return the shape and windows under which the last two axes, or the only one, are an image."""
    if len(windows) == 1:
        return (*x.shape[:2], 1, x.shape[2]), [_POINT, *windows]
    return (x.shape[0], product(x.shape[1:-2]), *x.shape[-2:]), list(windows[-2:])


def _columns(x: Node, windows: Sequence[Axis]) -> tuple[Shape, list[Axis]]:
    """Return the shape and windows of depth alone, once planes of three spatial axes are pooled."""
    plane = product(w.out for w in windows[1:])
    assert isinstance(plane, int)
    return (*x.shape[:3], plane), [windows[0], Axis(plane, 1, 1, 1, (0, 0), plane)]


def _result_shape(x: Node, windows: Sequence[Axis]) -> Shape:
    return (*x.shape[:2], *(w.out for w in windows))


@rule("MaxPool")
def max_pool(site: Site) -> Result:
    """The maximum of windows over one to three axes: of planes first, then along the depth."""
    x, windows = site.tensor(0), _windows(site)
    given = x.dtype
    if not x.type.is_float:
        if given not in ("uint8", "int8"):
            raise UnsupportedError(f"maxima of {given}")
        x = ew.cast(x, "float32")  # which holds every such number
    shape, inner = _images(x, windows)
    image, geometry = _stage(reshape(x, shape), inner, -np.inf)
    stages = [(image, geometry, inner)]
    out = MaxPool2d(geometry)(image)
    if len(windows) == 3:
        shape, outer = _columns(x, windows)
        image, geometry = _stage(reshape(out, shape), outer, -np.inf)
        stages.append((image, geometry, outer))
        out = MaxPool2d(geometry)(image)
    result = _result_shape(x, windows)
    out = reshape(out, result)
    out = out if out.dtype == given else ew.cast(out, given)
    if site.outputs < 2:
        return out
    return [out, _indices(x, windows, stages, bool(site.get("storage_order", 0)))]


_Stage = tuple[Node, PoolGeometry, list[Axis]]


def _indices(x: Node, windows: Sequence[Axis], stages: Sequence[_Stage], columns_first: bool) -> Node:
    """Return where in the flattened tensor each maximum lies."""
    sizes = [w.size for w in windows]
    rank = len(sizes)
    strides = [prod(sizes[:a]) if columns_first else prod(sizes[a + 1 :]) for a in range(rank)]
    image, geometry, inner = stages[0]
    kept = strides[-2:] if rank > 1 else [0, *strides]
    taps = _taps(ew.cast(MaxPool2dIndex(geometry)(image), "int64"), inner)
    shape = taps[0].shape
    index = reduce(
        ew.add,
        [
            _place(t, shape, a + 2, w) * s
            for a, (t, w, s) in enumerate(zip(taps, inner, kept, strict=True))
            if s
        ],
    )
    if rank == 3:
        index = _along_depth(index, x, windows, stages[1], strides[0])
    result = _result_shape(x, windows)
    plane = iota(result, 0) * x.shape[1] + iota(result, 1)
    return reshape(index, result) + plane * prod(sizes)


def _taps(index: Node, windows: Sequence[Axis]) -> list[Node]:
    """Return the row and column within the window of an index of a tap."""
    columns = windows[1].kernel
    zero = index * 0
    row = reduce(
        ew.add,
        [ew.cast(ew.greater_equal(index, i * columns), "int64") for i in range(1, windows[0].kernel)],
        zero,
    )
    return [row, index - row * columns]


def _place(tap_: Node, shape: Shape, axis: int, w: Axis) -> Node:
    """Return the coordinate in the image of a tap of every window."""
    return iota(shape, axis) * w.stride + tap_ * w.dilation - w.pads[0]


def _along_depth(index: Node, x: Node, windows: Sequence[Axis], stage: _Stage, stride: int) -> Node:
    """Pick the indices of the planes that hold the maxima."""
    image, geometry, outer = stage
    depth = outer[0]
    after = max(0, (depth.out - 1) * depth.stride + depth.reach - depth.size - depth.pads[0])
    shape, _ = _columns(x, windows)
    padded = pad(reshape(index, shape), ((0, 0), (0, 0), (depth.pads[0], after), (0, 0)))
    which = ew.cast(MaxPool2dIndex(geometry)(image), "int64")
    picked = tap(padded, 2, depth, 0)
    for i in range(1, depth.kernel):
        picked = ew.where(ew.equal(which, i), tap(padded, 2, depth, i), picked)
    return picked + _place(which, which.shape, 2, depth) * stride


def _sums(x: Node, windows: Sequence[Axis]) -> Node:
    """Return the sums of all windows."""
    if any(w.dilation > 1 for w in windows):
        return _dilated_sums(x, windows)
    shape, inner = _images(x, windows)
    image, geometry = _stage(reshape(x, shape), inner, 0.0)
    out = AvgPool2d(geometry, True, 1)(image)
    if len(windows) == 3:
        shape, outer = _columns(x, windows)
        image, geometry = _stage(reshape(out, shape), outer, 0.0)
        out = AvgPool2d(geometry, True, 1)(image)
    return reshape(out, _result_shape(x, windows))


def _dilated_sums(x: Node, windows: Sequence[Axis]) -> Node:
    for axis, w in enumerate(windows, 2):
        widths = [(0, 0)] * x.rank
        widths[axis] = w.pads[0], max(0, (w.out - 1) * w.stride + w.reach - w.size - w.pads[0])
        padded = pad(x, widths)
        x = reduce(ew.add, [tap(padded, axis, w, i) for i in range(w.kernel)])
    return x


def _counts(windows: Sequence[Axis], include_pad: bool) -> np.ndarray:
    """Return how many elements every window has; what lies beyond the padding never counts."""
    found = np.ones(())
    for w in windows:
        at = np.arange(w.out)[:, None] * w.stride - w.pads[0] + np.arange(w.kernel) * w.dilation
        inside = at < w.size + w.pads[1] if include_pad else (at >= 0) & (at < w.size)
        found = found[..., None] * inside.sum(1)
    return found


@rule("AveragePool")
def average_pool(site: Site) -> Node:
    """The mean of windows over one to three axes."""
    x, windows = site.tensor(0), _windows(site)
    include_pad = bool(site.get("count_include_pad", 0))
    plain = len(windows) < 3 and all(
        w.dilation == 1 and w.pads[0] == w.pads[1] and _direct(w) for w in windows
    )
    if plain:
        shape, inner = _images(x, windows)
        image, geometry = _stage(reshape(x, shape), inner, 0.0)
        return reshape(AvgPool2d(geometry, include_pad)(image), _result_shape(x, windows))
    counts = _counts(windows, include_pad)
    if not counts.all():
        raise UnsupportedError("a window that lies in the padding alone")
    divisor = float(counts.flat[0]) if np.all(counts == counts.flat[0]) else constant(counts, x.dtype)
    return _sums(x, windows) / divisor


@rule("LpPool")
def lp_pool(site: Site) -> Node:
    """The p-norm of windows over one to three axes."""
    order = float(site.get("p", 2))
    return _root(_sums(_power(site.tensor(0), order), _windows(site)), order)


def _power(x: Node, order: float) -> Node:
    if order == 2:
        return ew.square(x)
    return ew.abs(x) if order == 1 else ew.pow(ew.abs(x), order)


def _root(x: Node, order: float) -> Node:
    if order == 2:
        return ew.sqrt(x)
    return x if order == 1 else ew.pow(x, 1 / order)


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(site: Site) -> Node:
    """The mean, maximum or norm over all spatial axes."""
    x = site.tensor(0)
    over = tuple(range(2, x.rank))
    if site.op == "GlobalAveragePool":
        return mean(x, over, keepdims=True)
    if site.op == "GlobalMaxPool":
        return max_(x, over, keepdims=True)
    order = float(site.get("p", 2))
    return _root(sum_(_power(x, order), over, keepdims=True), order)


@rule("MaxUnpool")
def max_unpool(site: Site) -> Node:
    """Put values where the maxima of a pool lay among zeros; a larger ``output_shape`` has more zeros at the ends."""
    x, index = site.tensor(0), site.tensor(1)
    sizes, kernel = spatial(x.shape), [int(k) for k in site.get("kernel_shape", ())]
    rank = len(sizes)
    strides, pads = numbers(site, "strides", rank, 1), numbers(site, "pads", 2 * rank, 0)
    if len(kernel) != rank or index.shape != x.shape:
        raise UnsupportedError(f"kernel {kernel} and indices {index.type} for {x.type}")
    found = [(size - 1) * strides[a] - pads[a] - pads[rank + a] + kernel[a] for a, size in enumerate(sizes)]
    if min(found) < 1:
        raise UnsupportedError(f"a result of extents {found}")
    shape = (*x.shape[:2], *found)
    zeros = full((product(shape),), 0.0, x.dtype)
    count = (product(x.shape),)
    out = reshape(scatter(zeros, reshape(index, count), reshape(x, count)), shape)
    wanted = site.sizes(2, "output_shape")[2:] if site.has(2) else list(found)
    for axis, (size, old) in enumerate(zip(wanted, found, strict=True), 2):
        if not isinstance(size, int) or size < old:
            raise UnsupportedError(f"output_shape gives an axis {size} elements, of which {old} are unpooled")
        out = fitted(out, axis, 0, size)
    return out
