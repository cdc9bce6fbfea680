"""2-D convolution (cross-correlation, as in PyTorch) and its two derivatives, each linear in both inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.graph.node import Node
from graphc.ops.anchor import Anchor
from graphc.ops.registry import float_type, op
from graphc.types import N, Shape, Size, TensorType, product, shape_text

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, padding ((top, bottom), (left, right)), dilation and groups."""

    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        """Return what differs from the defaults."""
        parts = [f"stride {self.stride}"] if self.stride != (1, 1) else []
        parts += [f"padding {self.padding}"] if self.padding != ((0, 0), (0, 0)) else []
        parts += [f"dilation {self.dilation}"] if self.dilation != (1, 1) else []
        parts += [f"groups {self.groups}"] if self.groups != 1 else []
        return ", ".join(parts)

    def out_extent(self, axis: int, extent: int, kernel: int) -> int:
        """Return the output extent along height (0) or width (1)."""
        padded = extent + sum(self.padding[axis])
        return (padded - self.dilation[axis] * (kernel - 1) - 1) // self.stride[axis] + 1


@dataclass(frozen=True)
class ConvSpec:
    """Extents of a convolution: x (n, c, h, w), weight (o, c/groups, kh, kw), out (n, o, oh, ow)."""

    n: Size
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    oh: int
    ow: int
    geometry: ConvGeometry


def _spec(g: ConvGeometry, x: Shape, weight: Shape, out: Shape) -> ConvSpec:
    fixed = [d for d in (*x[1:], weight[0], *weight[2:], *out[2:]) if isinstance(d, int)]
    c, h, w, o, kh, kw, oh, ow = fixed
    return ConvSpec(x[0], c, h, w, o, kh, kw, oh, ow, g)


def _check(g: ConvGeometry, x: TensorType, weight: TensorType) -> Shape:
    """Return the output shape, or raise ShapeError or DTypeError."""
    if x.rank != 4 or weight.rank != 4:
        raise ShapeError(f"needs (n, c, h, w) and (o, c, kh, kw), got {x} and {weight}")
    if not x.is_float or x.dtype != weight.dtype:
        raise DTypeError(f"needs floating-point tensors of one dtype, got {x} and {weight}")
    n, c, h, w = x.shape
    o, per_group, kh, kw = weight.shape
    if not all(isinstance(d, int) for d in (c, h, w, *weight.shape)):
        raise ShapeError(f"only the first extent may depend on the batch, got {x} and {weight}")
    assert isinstance(c, int) and isinstance(h, int) and isinstance(w, int) and isinstance(o, int)
    assert isinstance(kh, int) and isinstance(kw, int) and isinstance(per_group, int)
    if c != per_group * g.groups or o % g.groups:
        raise ShapeError(
            f"expected {per_group * g.groups} input channels and output channels divisible by {g.groups} "
            f"groups for weight {shape_text(weight.shape)}, got {shape_text(x.shape)}"
        )
    oh, ow = g.out_extent(0, h, kh), g.out_extent(1, w, kw)
    if oh < 1 or ow < 1:
        raise ShapeError(f"kernel ({kh}, {kw}) is larger than the padded input {shape_text(x.shape)}")
    return n, o, oh, ow


def _taps(g: ConvGeometry, kh: int, kw: int, oh: int, ow: int) -> list[tuple[int, int, slice, slice]]:
    """Return, per kernel tap, the rows and columns of the padded input that it meets."""
    return [
        (
            i,
            j,
            slice(i * g.dilation[0], i * g.dilation[0] + (oh - 1) * g.stride[0] + 1, g.stride[0]),
            slice(j * g.dilation[1], j * g.dilation[1] + (ow - 1) * g.stride[1] + 1, g.stride[1]),
        )
        for i in range(kh)
        for j in range(kw)
    ]


def _grouped(a: np.ndarray, groups: int, axis: int) -> np.ndarray:
    return a.reshape(*a.shape[:axis], groups, a.shape[axis] // groups, *a.shape[axis + 1 :])


class _Conv(Anchor):
    geometry: ConvGeometry

    @property
    def attributes(self) -> str:
        """The geometry."""
        return str(self.geometry)

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of an image tensor."""
        return ("n", "o", "y", "x")


_GEOMETRIES = [
    ConvGeometry(),
    ConvGeometry((2, 2), ((1, 1), (1, 1))),
    ConvGeometry((2, 1), ((0, 1), (2, 1)), (1, 2)),
    ConvGeometry((1, 1), ((1, 1), (1, 1)), (1, 1), 2),
]


@op(
    lambda cls: (
        [(cls(g), (float_type(N, 4, 7, 8), float_type(6, 4 // g.groups, 3, 2))) for g in _GEOMETRIES]
        + [(cls(ConvGeometry()), (float_type(N, 3, 5, 5), float_type(2, 3, 1, 1)))]
        + [(cls(ConvGeometry(groups=4)), (float_type(N, 4, 5, 20), float_type(4, 1, 3, 3)))]
    )
)
@dataclass(frozen=True)
class Conv2d(_Conv):
    """out[n,o,y,x] = sum_{c,i,j} in[n, c, y*s + i*d - p, x*s + j*d - p] * weight[o,c,i,j]."""

    label: ClassVar[str] = "conv2d"
    template: ClassVar[str] = "conv2d"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "weight")
    geometry: ConvGeometry

    @property
    def formula(self) -> str:
        """The sum."""
        return (
            "out[n][o][y][x] = sum_{c,i,j} in[n][c][y*sy + i*dy - py][x*sx + j*dx - px] * weight[o][c][i][j]"
        )

    def infer(self, *types: TensorType) -> TensorType:
        """Require matching channels and a kernel that fits."""
        return types[0].with_shape(_check(self.geometry, *types))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Convolve the cotangent with the flipped weights; correlate it with the input."""
        x, weight = node.inputs
        return (
            Conv2dBackwardData(self.geometry, x.shape)(cotangent, weight),
            Conv2dBackwardWeight(self.geometry, weight.shape)(x, cotangent),
        )

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Sum over the taps."""
        x, weight = arrays
        g = self.geometry
        kh, kw = weight.shape[2:]
        oh, ow = g.out_extent(0, x.shape[2], kh), g.out_extent(1, x.shape[3], kw)
        padded = _grouped(np.pad(x, ((0, 0), (0, 0), *g.padding)), g.groups, 1)
        split = _grouped(weight, g.groups, 0)
        out = sum(
            np.einsum("ngcyx,goc->ngoyx", padded[:, :, :, rows, columns], split[:, :, :, i, j])
            for i, j, rows, columns in _taps(g, kh, kw, oh, ow)
        )
        return np.asarray(out).reshape(len(x), weight.shape[0], oh, ow)

    def spec(self, out: TensorType, *types: TensorType) -> ConvSpec:
        """Return the extents."""
        return _spec(self.geometry, types[0].shape, types[1].shape, out.shape)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a tap and output element."""
        return out.size * product(types[1].shape[1:]) * 2


@op(
    lambda cls: [
        (cls(g, (N, 4, 7, 8)), (float_type(N, 6, *_out(g)), float_type(6, 4 // g.groups, 3, 2)))
        for g in _GEOMETRIES
    ]
)
@dataclass(frozen=True)
class Conv2dBackwardData(_Conv):
    """The gradient of a convolution for its input: a convolution with flipped weights."""

    label: ClassVar[str] = "conv2d_backward_data"
    template: ClassVar[str] = "conv2d_backward_data"
    operand_names: ClassVar[tuple[str, ...]] = ("grad", "weight")
    geometry: ConvGeometry
    shape: Shape

    @property
    def formula(self) -> str:
        """The sum."""
        return "out[n][c][y*sy + i*dy - py][x*sx + j*dx - px] += sum_o grad[n][o][y][x] * weight[o][c][i][j]"

    def infer(self, *types: TensorType) -> TensorType:
        """Require that the cotangent has the shape of the convolution's output."""
        result = types[0].with_shape(self.shape)
        if _check(self.geometry, result, types[1]) != types[0].shape:
            raise ShapeError(f"cotangent {types[0]} does not fit input {result} and weight {types[1]}")
        return result

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Convolve; correlate."""
        grad, weight = node.inputs
        return (
            Conv2d(self.geometry)(cotangent, weight),
            Conv2dBackwardWeight(self.geometry, weight.shape)(cotangent, grad),
        )

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Add every tap's contribution to the padded input."""
        grad, weight = arrays
        g = self.geometry
        n, c, h, w = (d for d in self.shape if isinstance(d, int))
        (top, bottom), (left, right) = g.padding
        padded = np.zeros((n, g.groups, c // g.groups, h + top + bottom, w + left + right))
        split, cotangent = _grouped(weight, g.groups, 0), _grouped(grad, g.groups, 1)
        for i, j, rows, columns in _taps(g, *weight.shape[2:], *grad.shape[2:]):
            padded[:, :, :, rows, columns] += np.einsum("ngoyx,goc->ngcyx", cotangent, split[:, :, :, i, j])
        return padded.reshape(n, c, *padded.shape[3:])[:, :, top : top + h, left : left + w]

    def spec(self, out: TensorType, *types: TensorType) -> ConvSpec:
        """Return the extents, named as in the forward convolution."""
        return _spec(self.geometry, out.shape, types[1].shape, types[0].shape)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a tap and cotangent element."""
        return types[0].size * product(types[1].shape[1:]) * 2

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices: the result has input channels."""
        return ("n", "c", "y", "x")


def _out(g: ConvGeometry) -> Pair:
    return g.out_extent(0, 7, 3), g.out_extent(1, 8, 2)


@op(
    lambda cls: [
        (cls(g, (6, 4 // g.groups, 3, 2)), (float_type(N, 4, 7, 8), float_type(N, 6, *_out(g))))
        for g in _GEOMETRIES
    ]
)
@dataclass(frozen=True)
class Conv2dBackwardWeight(_Conv):
    """The gradient of a convolution for its weights: a correlation over batch and image."""

    label: ClassVar[str] = "conv2d_backward_weight"
    template: ClassVar[str] = "conv2d_backward_weight"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "grad")
    geometry: ConvGeometry
    shape: Shape

    @property
    def formula(self) -> str:
        """The sum."""
        return "out[o][c][i][j] = sum_{n,y,x} grad[n][o][y][x] * in[n][c][y*sy + i*dy - py][x*sx + j*dx - px]"

    def infer(self, *types: TensorType) -> TensorType:
        """Require that the cotangent has the shape of the convolution's output."""
        result = types[0].with_shape(self.shape)
        if _check(self.geometry, types[0], result) != types[1].shape:
            raise ShapeError(f"cotangent {types[1]} does not fit input {types[0]} and weight {result}")
        return result

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Convolve with the cotangent in place of the weights."""
        x, grad = node.inputs
        return (
            Conv2dBackwardData(self.geometry, x.shape)(grad, cotangent),
            Conv2d(self.geometry)(x, cotangent),
        )

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Correlate tap by tap."""
        x, grad = arrays
        g = self.geometry
        o, per_group, kh, kw = (d for d in self.shape if isinstance(d, int))
        padded = _grouped(np.pad(x, ((0, 0), (0, 0), *g.padding)), g.groups, 1)
        cotangent = _grouped(grad, g.groups, 1)
        out = np.zeros((g.groups, o // g.groups, per_group, kh, kw))
        for i, j, rows, columns in _taps(g, kh, kw, *grad.shape[2:]):
            out[..., i, j] = np.einsum("ngcyx,ngoyx->goc", padded[:, :, :, rows, columns], cotangent)
        return out.reshape(o, per_group, kh, kw)

    def spec(self, out: TensorType, *types: TensorType) -> ConvSpec:
        """Return the extents, named as in the forward convolution."""
        return _spec(self.geometry, types[0].shape, out.shape, types[1].shape)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a tap and cotangent element."""
        return types[1].size * product(out.shape[1:]) * 2

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of a weight."""
        return ("o", "c", "i", "j")
