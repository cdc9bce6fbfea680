"""What a resize reads and weighs along one axis, and the same as tensors of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.site import UnsupportedError
from graphc.ops import elementwise as ew
from graphc.ops.gather import take
from graphc.ops.leaves import constant
from graphc.ops.matmul import matmul
from graphc.ops.movement import concat, expand, getitem, reshape, transpose
from graphc.types import product

_PHASES = 8  # up to so many outputs that repeat are written as slices
_TAPS = 4  # up to so many elements are gathered; more are summed by a product


@dataclass(frozen=True)
class Resampling:
    """How a node resizes: its attributes."""

    mode: str
    transformation: str
    nearest: str
    antialias: bool
    cubic: float
    exclude_outside: bool


@dataclass(frozen=True)
class Taps:
    """What each output along an axis is made of: elements by index, which the edges repeat, and their weights.

    Where ``fill`` is set, outputs for which ``outside`` holds are that number instead.
    """

    index: np.ndarray
    weight: np.ndarray
    outside: np.ndarray
    fill: float = 0.0


def taps(
    r: Resampling, size: int, out: int, scale: float, roi: tuple[float, float] = (0.0, 1.0), fill: float = 0.0
) -> Taps:
    """Return what the outputs along one axis are made of."""
    plain = scale * size == 1 and r.mode != "cubic" and not r.antialias
    if r.transformation == "pytorch_half_pixel" and out == 1 and size > 1 and not plain:
        # The operator's text, its reference and the framework of that name read three different places here.
        raise UnsupportedError(
            f"coordinate_transformation_mode='pytorch_half_pixel' of {size} elements to one"
        )
    at = _coordinates(r.transformation, size, out, scale, roi)
    crop = r.transformation == "tf_crop_and_resize"
    outside = ((at < 0) | (at > size - 1)) if crop else np.zeros(out, bool)
    if r.mode == "nearest":
        return Taps(_nearest(r.nearest, at)[:, None], np.ones((out, 1)), outside, fill)
    base = np.ceil(at) - 1
    ratio = (at - base)[:, None]  # in (0, 1], as the operator's definition has it
    shrink = min(scale, 1.0) if r.antialias else 1.0
    half = 1 if r.mode == "linear" else 2
    first = int(np.floor(-half / shrink)) + 1
    offsets = np.arange(first, 2 - first)
    kernel = _triangle if r.mode == "linear" else _keys(r.cubic)
    weight = kernel((offsets - ratio) * shrink)
    index = base[:, None].astype(np.int64) + offsets
    if r.exclude_outside:
        weight = np.where((index < 0) | (index >= size), 0.0, weight)
    if r.exclude_outside or r.antialias:
        weight = weight / weight.sum(1, keepdims=True)
    return Taps(index, weight, outside, fill)


def _coordinates(mode: str, size: int, out: int, scale: float, roi: tuple[float, float]) -> np.ndarray:
    """Return where in the input every output lies."""
    y, length = np.arange(out, dtype=np.float64), scale * size
    middle = (y + 0.5) / scale - 0.5
    if mode == "half_pixel":
        return middle
    if mode == "pytorch_half_pixel":
        return middle if out > 1 else np.zeros(1)
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - out / length) + (y + 0.5) / scale - 0.5
    if mode == "asymmetric":
        return y / scale
    if mode == "tf_half_pixel_for_nn":
        return (y + 0.5) / scale
    if mode == "align_corners":
        return np.zeros(out) if length == 1 else y * (size - 1) / (length - 1)
    if mode == "tf_crop_and_resize":
        begin, end = roi
        inner = (end - begin) * (size - 1)
        steps = np.full(out, inner / 2) if length == 1 else y * inner / (length - 1)
        return steps + begin * (size - 1)
    raise UnsupportedError(f"coordinate_transformation_mode={mode!r} is not supported")


def _nearest(mode: str, at: np.ndarray) -> np.ndarray:
    rounded: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5), "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor, "ceil": np.ceil,
    }  # fmt: skip
    if mode not in rounded:
        raise UnsupportedError(f"nearest_mode={mode!r} is not supported")
    return np.asarray(rounded[mode](at), np.int64)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(1 - np.abs(x), 0, 1))


def _keys(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the cubic convolution kernel (Keys 1981, equation 4, with -a for its 1/2)."""

    def kernel(x: np.ndarray) -> np.ndarray:
        d = np.abs(x)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return kernel


def resample(x: Node, axis: int, t: Taps) -> Node:
    """Return x resized along an axis."""
    period = _period(t)
    if period is not None:
        out = _by_slices(x, axis, t, *period)
    elif (t.weight == 1).all() or t.weight.shape[1] <= _TAPS:
        out = _by_gathers(x, axis, t)
    else:
        out = _by_product(x, axis, t)
    if t.outside.any():
        out = ew.where(_along(t.outside.astype(np.uint8), x.rank, axis, "uint8"), t.fill, out)
    return out


def _period(t: Taps) -> tuple[int, int] | None:
    """Return (p, q): p outputs further the same weights meet elements q further; None where that takes long."""
    count = len(t.index)
    for p in range(1, min(_PHASES, count) + 1):
        if count % p == 0:
            steps = t.index[p:] - t.index[:-p]
            q = int(steps.flat[0]) if steps.size else 1
            if q >= 1 and (steps == q).all() and np.allclose(t.weight[p:], t.weight[:-p], rtol=0, atol=1e-9):
                return p, q
    return None


def _by_slices(x: Node, axis: int, t: Taps, period: int, step: int) -> Node:
    """Interleave ``period`` weighted sums of slices."""
    count = len(t.index) // period
    before, after = max(0, -int(t.index.min())), max(0, int(t.index.max()) - _extent(x, axis) + 1)
    x = _repeat_edges(x, axis, before, after)

    def sliced(first: int) -> Node:
        taken = slice(first, first + (count - 1) * step + 1, step)
        return getitem(x, (slice(None),) * axis + (taken,))

    def phase(k: int) -> Node:
        pairs = zip(t.index[k] + before, t.weight[k], strict=True)
        terms = [(sliced(int(i)), float(w)) for i, w in pairs if abs(w) > 1e-12]
        return reduce(ew.add, [s if w == 1 else ew.mul(s, w) for s, w in terms])

    shape = (*x.shape[:axis], count, 1, *x.shape[axis + 1 :])
    same = (t.index[:period] == t.index[0]).all() and (t.weight[:period] == t.weight[0]).all()
    if same:
        out = expand(reshape(phase(0), shape), (*shape[: axis + 1], period, *shape[axis + 2 :]))
    else:
        out = concat([reshape(phase(k), shape) for k in range(period)], axis + 1)
    return reshape(out, (*x.shape[:axis], count * period, *x.shape[axis + 1 :]))


def _extent(x: Node, axis: int) -> int:
    size = x.shape[axis]
    assert isinstance(size, int)
    return size


def _repeat_edges(x: Node, axis: int, before: int, after: int) -> Node:
    def edge(k: int, count: int) -> list[Node]:
        taken = getitem(x, (slice(None),) * axis + (slice(k, k + 1),))
        return [expand(taken, (*x.shape[:axis], count, *x.shape[axis + 1 :]))] if count else []

    return concat([*edge(0, before), x, *edge(_extent(x, axis) - 1, after)], axis)


def _along(values: np.ndarray, rank: int, axis: int, dtype: str) -> Node:
    """Return a constant that varies along one axis."""
    return constant(values.reshape(*[1] * axis, -1, *[1] * (rank - axis - 1)), dtype)


def _by_gathers(x: Node, axis: int, t: Taps) -> Node:
    """Add up gathered elements, so that one that is infinite or NaN reaches only what it belongs to."""
    order = (axis, *(a for a in range(x.rank) if a != axis))
    table, size, total = transpose(x, order), _extent(x, axis), []
    back = tuple(int(a) for a in np.argsort(order))
    for k in range(t.index.shape[1]):
        weight = t.weight[:, k]
        if np.abs(weight).max() > 1e-12:
            index = constant(np.clip(t.index[:, k], 0, size - 1), "int64")
            found = transpose(take(table, index), back)
            total.append(found if (weight == 1).all() else found * _along(weight, x.rank, axis, x.dtype))
    return reduce(ew.add, total)


def _by_product(x: Node, axis: int, t: Taps) -> Node:
    """Multiply by the matrix whose rows are the weights."""
    size, out = _extent(x, axis), len(t.index)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out)[:, None], np.clip(t.index, 0, size - 1)), t.weight)
    if axis == x.rank - 1:
        flat = matmul(reshape(x, (product(x.shape[:-1]), size)), constant(matrix.T.copy(), x.dtype))
        return reshape(flat, (*x.shape[:-1], out))
    stack = reshape(x, (product(x.shape[:axis]), size, product(x.shape[axis + 1 :])))
    return reshape(matmul(constant(matrix, x.dtype), stack), (*x.shape[:axis], out, *x.shape[axis + 1 :]))


def order_of_axes(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the axes, given as (input, output) extents, in the order in which the results stay smallest."""
    return sorted(range(len(sizes)), key=lambda a: sizes[a][1] / sizes[a][0])
