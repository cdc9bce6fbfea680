"""2-D pooling: maximum (value, window index, scatter, gather) and average (and its transpose)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.graph.node import Node
from graphc.ops.anchor import Anchor
from graphc.ops.registry import Sample, float_type, op
from graphc.types import DType, N, Shape, Size, TensorType, product, static_shape

Pair = tuple[int, int]


@dataclass(frozen=True)
class PoolGeometry:
    """Windows over (h, w): kernel, stride, padding, dilation, and the output extents (ceil mode resolved)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out: Pair

    def __str__(self) -> str:
        """Return kernel and stride, and the rest where it is not the default."""
        text = f"kernel {self.kernel}, stride {self.stride}"
        text += f", padding {self.padding}" if self.padding != (0, 0) else ""
        return text + (f", dilation {self.dilation}" if self.dilation != (1, 1) else "")

    @property
    def area(self) -> int:
        """The number of taps of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def index_dtype(self) -> DType:
        """The dtype that holds the index of a tap: one byte wherever a window has at most 256 taps."""
        return "uint8" if self.area <= 256 else "int32"

    @property
    def tiles(self) -> bool:
        """Whether the windows lie side by side, so that every pixel is in one of them at most."""
        return self.kernel == self.stride and self.padding == (0, 0) and self.dilation == (1, 1)

    @property
    def reach(self) -> Pair:
        """Rows and columns that the windows read, those of the padding included."""
        axes = zip(self.out, self.stride, self.dilation, self.kernel, strict=True)
        rows, columns = ((o - 1) * s + d * (k - 1) + 1 for o, s, d, k in axes)
        return rows, columns

    @property
    def inside(self) -> Pair:
        """How many rows and columns the windows reach from the first of the image on; it may have fewer."""
        return self.reach[0] - self.padding[0], self.reach[1] - self.padding[1]

    def tiles_inside(self, image: Shape) -> bool:
        """Whether, moreover, every window lies whole within the image: ceil mode lets the last ones leave it."""
        extents = zip(self.out, self.kernel, image[2:], strict=True)
        return self.tiles and all(isinstance(d, int) and o * k <= d for o, k, d in extents)


def pool_geometry(
    shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> PoolGeometry:
    """Return the geometry with output extents by PyTorch's rule.

    Raises:
        ShapeError: the input is no image, padding exceeds half the kernel, or no window fits.
    """
    if len(shape) != 4 or not all(isinstance(d, int) for d in shape[1:]):
        raise ShapeError(f"pooling needs an image tensor (n, c, h, w), got {tuple(map(str, shape))}")
    extents: list[int] = []
    for axis in (0, 1):
        size, k, s, p, d = shape[2 + axis], kernel[axis], stride[axis], padding[axis], dilation[axis]
        assert isinstance(size, int)
        if min(k, s, d) < 1 or p < 0 or 2 * p > k:
            raise ShapeError(
                f"pooling: kernel {k}, stride {s}, dilation {d}, padding {p}; padding at most k/2"
            )
        room = size + 2 * p - d * (k - 1) - 1
        extent = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (extent - 1) * s >= size + p:
            extent -= 1  # the last window would start in the padding on the right
        if room < 0 or extent < 1:
            raise ShapeError(f"pooling: kernel {kernel} is larger than the padded image {shape[2:]}")
        extents.append(extent)
    return PoolGeometry(kernel, stride, padding, dilation, (extents[0], extents[1]))


@dataclass(frozen=True)
class PoolSpec:
    """Extents of pooling: in (n, c, h, w), out (n, c, oh, ow); dtype of the index; what the average counts."""

    n: Size
    c: Size
    h: Size
    w: Size
    geometry: PoolGeometry
    index_dtype: DType
    include_pad: bool = False
    divisor: int | None = None


def _windows(g: PoolGeometry, x: np.ndarray, fill: float) -> np.ndarray:
    """Return (n, c, oh, ow, taps): what every window sees, ``fill`` outside the image."""
    need = [
        (o - 1) * s + d * (k - 1) + 1
        for o, s, d, k in zip(g.out, g.stride, g.dilation, g.kernel, strict=True)
    ]
    width = [(p, max(0, n - size - p)) for p, n, size in zip(g.padding, need, x.shape[2:], strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), *width), constant_values=fill)
    taps = [
        padded[
            :, :,
            i * g.dilation[0] : i * g.dilation[0] + (g.out[0] - 1) * g.stride[0] + 1 : g.stride[0],
            j * g.dilation[1] : j * g.dilation[1] + (g.out[1] - 1) * g.stride[1] + 1 : g.stride[1],
        ]
        for i in range(g.kernel[0])
        for j in range(g.kernel[1])
    ]  # fmt: skip
    return np.asarray(np.stack(taps, -1))


def _positions(g: PoolGeometry, shape: tuple[int, ...]) -> np.ndarray:
    """Return (oh, ow, taps): the flat position in the image that every tap meets, -1 outside."""
    flat = np.arange(shape[2] * shape[3], dtype=np.float64).reshape(1, 1, *shape[2:])
    return np.asarray(_windows(g, flat, -1.0)[0, 0], dtype=np.int64)


def _index_values(g: PoolGeometry, shape: Shape) -> object:
    """Return a sampler of (image- or pool-shaped values, valid indices of maxima)."""

    def draw(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        n = shapes[0][0]
        image = rng.standard_normal((n, *static_shape(shape[1:])))
        return [rng.standard_normal(shapes[0]), np.argmax(_windows(g, image, -np.inf), -1)]

    return draw


_IMAGE: Shape = (N, 2, 7, 8)
_GEOMETRIES = [
    pool_geometry(_IMAGE, (2, 2), (2, 2), (0, 0), (1, 1), False),
    pool_geometry(_IMAGE, (3, 3), (2, 2), (1, 1), (1, 1), True),
    pool_geometry(_IMAGE, (3, 2), (1, 3), (1, 0), (2, 1), False),
    pool_geometry(_IMAGE, (3, 3), (3, 3), (0, 0), (1, 1), True),  # side by side, the last ones half outside
]


class _Pool(Anchor):
    geometry: PoolGeometry

    @property
    def attributes(self) -> str:
        """The geometry."""
        return str(self.geometry)

    def pooled(self, t: TensorType, dtype: DType | None = None) -> TensorType:
        """Return the type of the pooled image."""
        if t.rank != 4:
            raise ShapeError(f"needs an image tensor (n, c, h, w), got {t}")
        return TensorType(dtype or t.dtype, (*t.shape[:2], *self.geometry.out))

    def spec(self, out: TensorType, *types: TensorType) -> PoolSpec:
        """Return the extents of the image side: the input's, or the attribute ``shape`` of a transpose."""
        n, c, h, w = getattr(self, "shape", types[0].shape)
        return PoolSpec(n, c, h, w, self.geometry, self.geometry.index_dtype)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return one operation a tap of the pooled image."""
        n, c = out.shape[:2]
        return n * c * product(self.geometry.out) * self.geometry.area

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of an image tensor."""
        return ("n", "c", "y", "x")


@op(lambda cls: [(cls(g), (float_type(*_IMAGE),)) for g in _GEOMETRIES])
@dataclass(frozen=True)
class MaxPool2d(_Pool):
    """The maximum of every window; padding never wins; NaN does."""

    label: ClassVar[str] = "max_pool2d"
    template: ClassVar[str] = "max_pool2d"
    operand_names: ClassVar[tuple[str, ...]] = ("in",)
    geometry: PoolGeometry

    @property
    def formula(self) -> str:
        """The maximum."""
        return "out[n][c][y][x] = max_{i,j} in[n][c][y*sy + i*dy - py][x*sx + j*dx - px]"

    def infer(self, *types: TensorType) -> TensorType:
        """Shrink the image."""
        return self.pooled(types[0])

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Send the cotangent to the first maximum of each window."""
        (x,) = node.inputs
        index = MaxPool2dIndex(self.geometry)(x)
        return (MaxPool2dScatter(self.geometry, x.shape)(cotangent, index),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Take the maximum of the windows."""
        return np.asarray(_windows(self.geometry, arrays[0], -np.inf).max(-1))


@op(lambda cls: [(cls(g), (float_type(*_IMAGE),)) for g in _GEOMETRIES])
@dataclass(frozen=True)
class MaxPool2dIndex(_Pool):
    """The index of the first maximum within its window, in one byte; all that a backward pass needs."""

    label: ClassVar[str] = "max_pool2d_index"
    template: ClassVar[str] = "max_pool2d_index"
    operand_names: ClassVar[tuple[str, ...]] = ("in",)
    geometry: PoolGeometry

    @property
    def formula(self) -> str:
        """The index."""
        return "out[n][c][y][x] = argmax_{i*kw + j} in[n][c][y*sy + i*dy - py][x*sx + j*dx - px]"

    def infer(self, *types: TensorType) -> TensorType:
        """Shrink the image; the dtype holds the index."""
        return self.pooled(types[0], self.geometry.index_dtype)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Return nothing: an index is piecewise constant."""
        return (None,)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Find the first maximum."""
        return np.asarray(np.argmax(_windows(self.geometry, arrays[0], -np.inf), -1))


@op(
    lambda cls: [
        Sample(
            cls(g, _IMAGE),
            (float_type(N, 2, *g.out), TensorType("uint8", (N, 2, *g.out))),
            values=_index_values(g, _IMAGE),  # type: ignore[arg-type]
        )
        for g in _GEOMETRIES
    ]
)
@dataclass(frozen=True)
class MaxPool2dScatter(_Pool):
    """The gradient of max pooling: each window's cotangent added at its maximum."""

    label: ClassVar[str] = "max_pool2d_scatter"
    template: ClassVar[str] = "max_pool2d_scatter"
    operand_names: ClassVar[tuple[str, ...]] = ("grad", "index")
    geometry: PoolGeometry
    shape: Shape

    @property
    def formula(self) -> str:
        """The sum."""
        return (
            "out[n][c][h][w] = sum of grad[n][c][y][x] over the windows (y, x) whose maximum lies at (h, w)"
        )

    def infer(self, *types: TensorType) -> TensorType:
        """Require pooled cotangents with their indices."""
        if types[0].shape != types[1].shape or types[0] != self.pooled(types[0].with_shape(self.shape)):
            raise ShapeError(f"cotangent {types[0]} and index {types[1]} do not fit {self.geometry}")
        return types[0].with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Pick the cotangent at the maxima."""
        return MaxPool2dGather(self.geometry)(cotangent, node.inputs[1]), None

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Add window by window."""
        grad, index = arrays
        shape = static_shape(self.shape)
        where = np.take_along_axis(
            np.broadcast_to(_positions(self.geometry, shape), (*index.shape, self.geometry.area)),
            index.astype(np.int64)[..., None], -1,
        )[..., 0]  # fmt: skip
        out = np.zeros((*shape[:2], shape[2] * shape[3]))
        n, c = np.indices(shape[:2])
        np.add.at(out, (n[..., None, None], c[..., None, None], where), grad)
        return out.reshape(shape)


@op(
    lambda cls: [
        Sample(
            cls(g),
            (float_type(*_IMAGE), TensorType("uint8", (N, 2, *g.out))),
            values=_index_values(g, _IMAGE),  # type: ignore[arg-type]
        )
        for g in _GEOMETRIES
    ]
)
@dataclass(frozen=True)
class MaxPool2dGather(_Pool):
    """The values of an image at the maxima of another: the transpose of the scatter."""

    label: ClassVar[str] = "max_pool2d_gather"
    template: ClassVar[str] = "max_pool2d_gather"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "index")
    geometry: PoolGeometry

    @property
    def formula(self) -> str:
        """The lookup."""
        return "out[n][c][y][x] = in[n][c] at tap index[n][c][y][x] of window (y, x)"

    def infer(self, *types: TensorType) -> TensorType:
        """Require indices of the pooled shape."""
        if self.pooled(types[0]).shape != types[1].shape:
            raise ShapeError(f"image {types[0]} and index {types[1]} do not fit {self.geometry}")
        return self.pooled(types[0])

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Scatter the cotangent."""
        image, index = node.inputs
        return MaxPool2dScatter(self.geometry, image.shape)(cotangent, index), None

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Look up."""
        windows = _windows(self.geometry, arrays[0], 0.0)
        return np.take_along_axis(windows, arrays[1].astype(np.int64)[..., None], -1)[..., 0]


def window_counts(g: PoolGeometry, h: int, w: int, include_pad: bool, divisor: int | None) -> np.ndarray:
    """Return (oh, ow): what the sum of each window is divided by, by PyTorch's rule."""
    if divisor is not None:
        return np.full(g.out, float(divisor))
    per_axis = []
    for size, k, s, p, o in zip((h, w), g.kernel, g.stride, g.padding, g.out, strict=True):
        start = np.arange(o) * s - p
        end = np.minimum(start + k, size + p)
        per_axis.append(end - start if include_pad else np.minimum(end, size) - np.maximum(start, 0))
    return np.outer(*per_axis).astype(np.float64)


class _AvgPool(_Pool):
    include_pad: bool
    divisor: int | None

    @property
    def attributes(self) -> str:
        """The geometry and what is counted."""
        return f"{self.geometry}{', counting padding' if self.include_pad else ''}"

    def spec(self, out: TensorType, *types: TensorType) -> PoolSpec:
        """Return the extents and the rule of counting."""
        n, c, h, w = getattr(self, "shape", types[0].shape)
        g = self.geometry
        return PoolSpec(n, c, h, w, g, g.index_dtype, self.include_pad, self.divisor)


_AVERAGES = [(_GEOMETRIES[0], True, None), (_GEOMETRIES[1], True, None), (_GEOMETRIES[1], False, None),
             (_GEOMETRIES[1], False, 5)]  # fmt: skip


@op(lambda cls: [(cls(*a), (float_type(*_IMAGE),)) for a in _AVERAGES])
@dataclass(frozen=True)
class AvgPool2d(_AvgPool):
    """The sum of every window over its count: of all taps (padding included), of those inside, or a divisor."""

    label: ClassVar[str] = "avg_pool2d"
    template: ClassVar[str] = "avg_pool2d"
    operand_names: ClassVar[tuple[str, ...]] = ("in",)
    geometry: PoolGeometry
    include_pad: bool = True
    divisor: int | None = None

    @property
    def formula(self) -> str:
        """The mean."""
        return "out[n][c][y][x] = sum_{i,j} in[n][c][y*sy + i - py][x*sx + j - px] / count(y, x)"

    def infer(self, *types: TensorType) -> TensorType:
        """Shrink the image."""
        if not types[0].is_float:
            raise DTypeError(f"needs a floating-point tensor, got {types[0]}")
        return self.pooled(types[0])

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Spread the cotangent over the windows."""
        shape = node.inputs[0].shape
        return (AvgPool2dBackward(self.geometry, self.include_pad, self.divisor, shape)(cotangent),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Average the windows."""
        _, _, h, w = arrays[0].shape
        counts = window_counts(self.geometry, h, w, self.include_pad, self.divisor)
        return np.asarray(_windows(self.geometry, arrays[0], 0.0).sum(-1) / counts)


@op(lambda cls: [(cls(*a, _IMAGE), (float_type(N, 2, *a[0].out),)) for a in _AVERAGES])
@dataclass(frozen=True)
class AvgPool2dBackward(_AvgPool):
    """The transpose of average pooling."""

    label: ClassVar[str] = "avg_pool2d_backward"
    template: ClassVar[str] = "avg_pool2d_backward"
    operand_names: ClassVar[tuple[str, ...]] = ("grad",)
    geometry: PoolGeometry
    include_pad: bool
    divisor: int | None
    shape: Shape

    @property
    def formula(self) -> str:
        """The sum."""
        return (
            "out[n][c][h][w] = sum of grad[n][c][y][x] / count(y, x) over the windows (y, x) that hold (h, w)"
        )

    def infer(self, *types: TensorType) -> TensorType:
        """Require the pooled shape."""
        if types[0] != self.pooled(types[0].with_shape(self.shape)):
            raise ShapeError(f"cotangent {types[0]} does not fit {self.geometry} of {self.shape}")
        return types[0].with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Pool the cotangent."""
        return (AvgPool2d(self.geometry, self.include_pad, self.divisor)(cotangent),)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Add window by window."""
        n, c, h, w = static_shape(self.shape)
        share = arrays[0] / window_counts(self.geometry, h, w, self.include_pad, self.divisor)
        out = np.zeros((n, c, h * w + 1))  # the last element collects what falls outside
        for where in np.moveaxis(_positions(self.geometry, (n, c, h, w)), -1, 0):
            np.add.at(out, (np.arange(n)[:, None, None, None], np.arange(c)[:, None, None], where), share)
        return out[..., :-1].reshape(n, c, h, w)
