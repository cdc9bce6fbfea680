"""What convolutions and matrix products are lowered to: one operand packed so that a vector of it is contiguous.

These ops are made by the pass ``pack`` after differentiation, and have no derivative of their own. In each
of them ``lanes`` neighbouring output channels (or columns) are computed side by side in one vector, and
every other operand is a scalar that is broadcast: the other operands keep their plain layout.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.graph.node import Op
from graphc.ops.anchor import Anchor
from graphc.types import ITEMSIZE, Shape, Size, TensorType, product

Pair = tuple[int, int]


@dataclass(frozen=True)
class PackSpec:
    """Loops of packing: ``channels`` along one axis of a view, over the remaining axes."""

    channels: int
    lanes: int
    channel_stride: Size
    offset: Size
    extents: Shape
    strides: Shape


@dataclass(frozen=True)
class Pack(Op):
    """An axis moved to the end and cut into vectors: shape (blocks, ..., lanes), with zeros in idle lanes."""

    label: ClassVar[str] = "pack"
    axis: int
    lanes: int

    @property
    def attributes(self) -> str:
        """The axis and the length of a vector."""
        return f"axis {self.axis}, {self.lanes} a vector"

    @property
    def formula(self) -> str:
        """The copy."""
        return "out[block][...][lane] = in[... block*lanes + lane ...], 0 past the last channel"

    def channels(self, shape: Shape) -> int:
        """Return the extent of the packed axis."""
        channels = shape[self.axis]
        assert isinstance(channels, int)
        return channels

    def infer(self, *types: TensorType) -> TensorType:
        """Return the packed shape."""
        (x,) = types
        rest = [d for a, d in enumerate(x.shape) if a != self.axis]
        return x.with_shape((-(-self.channels(x.shape) // self.lanes), *rest, self.lanes))

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Pad, cut and transpose."""
        moved = np.moveaxis(arrays[0], self.axis, -1)
        blocks = -(-moved.shape[-1] // self.lanes)
        full = np.zeros((*moved.shape[:-1], blocks * self.lanes))
        full[..., : moved.shape[-1]] = moved
        return np.moveaxis(full.reshape(*moved.shape[:-1], blocks, self.lanes), -2, 0)


class Packed(Anchor):
    """An anchor with a packed operand; only its reference says what it means."""

    lanes: int

    def infer(self, *types: TensorType) -> TensorType:
        """Return the type of the result; the pass has checked the operands."""
        return types[0].with_shape(self.result(*(t.shape for t in types)))

    @abstractmethod
    def result(self, *shapes: Shape) -> Shape:
        """Return the shape of the result."""


@dataclass(frozen=True)
class Border:
    """What surrounds an image's pixels: rows and columns of zeros, and zeros between pixels.

    ``spread`` is the distance from one pixel to the next in the bordered image. Nothing of this is stored:
    a kernel copies the rows that it is about to read into a tile of its own, zeros included.
    """

    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    spread: Pair = (1, 1)

    def __bool__(self) -> bool:
        """Return whether there is any zero."""
        return self != Border()

    def __str__(self) -> str:
        """Return what is not the default."""
        text = f", padding {self.padding}" if self.padding != ((0, 0), (0, 0)) else ""
        return text + (f", pixels {self.spread} apart" if self.spread != (1, 1) else "")

    def extents(self, h: int, w: int) -> Pair:
        """Return the extents of the bordered image."""
        rows, columns = (
            (size - 1) * s + 1 + sum(p) for size, s, p in zip((h, w), self.spread, self.padding, strict=True)
        )
        return rows, columns

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return the bordered images (n, c, h, w)."""
        n, c, h, w = x.shape
        out = np.zeros((n, c, *self.extents(h, w)))
        (top, _), (left, _) = self.padding
        rows = slice(top, top + (h - 1) * self.spread[0] + 1, self.spread[0])
        out[:, :, rows, left : left + (w - 1) * self.spread[1] + 1 : self.spread[1]] = x
        return out


@dataclass(frozen=True)
class PackedConvSpec:
    """Loops of a packed convolution; (h, w) are the extents without the border."""

    n: Size
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    oh: int
    ow: int
    stride: Pair
    dilation: Pair
    lanes: int
    sums: int
    border: Border
    itemsize: int
    shares: int = 1
    served: int = 0  # blocks of output channels (or groups of taps) of a task; 0: the emitter chooses
    tile_limit: int = 0  # bytes of a task's copy of the image; 0: the emitter chooses

    def tile_extents(self, rows: int) -> Pair:
        """Return the rows and columns of the bordered image that ``rows`` rows of the output read."""
        return (
            (rows - 1) * self.stride[0] + (self.kh - 1) * self.dilation[0] + 1,
            (self.ow - 1) * self.stride[1] + (self.kw - 1) * self.dilation[1] + 1,
        )

    def tile_bytes(self, rows: int, channels: int | None = None) -> int:
        """Return the size of such a tile of all channels, or of some."""
        height, width = self.tile_extents(rows)
        return (channels or self.c) * height * width * self.itemsize


def tap_channels(spec: PackedConvSpec) -> int:
    """Return how many channels of small kernels the weights' gradient sums side by side."""
    return max(t for t in range(1, max(1, spec.sums // (spec.kh * spec.kw)) + 1) if spec.c % t == 0)


def tap_rows(spec: PackedConvSpec) -> int:
    """Return how many rows of a kernel the weights' gradient sums side by side."""
    divisors = [r for r in range(1, spec.kh + 1) if spec.kh % r == 0]
    return max([1, *(r for r in divisors if r * spec.kw <= spec.sums)])


def _fixed(*sizes: Size) -> tuple[int, ...]:
    fixed = tuple(s for s in sizes if isinstance(s, int))
    assert len(fixed) == len(sizes)
    return fixed


@dataclass(frozen=True)
class PackedConv2d(Packed):
    """A convolution of x (n, c, h, w) within its border with weights (o/lanes, c, kh, kw, lanes)."""

    label: ClassVar[str] = "conv2d"
    template: ClassVar[str] = "packed_conv2d"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "weight")
    channels: int
    stride: Pair
    dilation: Pair
    lanes: int
    sums: int  # vectors of sums that fit into registers
    border: Border = Border()
    served: int = 0
    tile_limit: int = 0

    @property
    def attributes(self) -> str:
        """The stride, where it is not 1, and the vector."""
        stride = f", stride {self.stride}" if self.stride != (1, 1) else ""
        return f"{self.lanes} channels a vector{stride}{self.border}"

    @property
    def formula(self) -> str:
        """The sum."""
        image = "padded" if self.border else "in"
        return (
            f"out[n][o][y][x] = sum_{{c,i,j}} {image}[n][c][y*sy + i*dy][x*sx + j*dx] "
            "* weight[o/lanes][c][i][j][o%lanes]"
        )

    def result(self, *shapes: Shape) -> Shape:
        """Return (n, channels, oh, ow)."""
        x, weight = shapes
        h, w = _fixed(*x[2:])
        sizes = self.border.extents(h, w), _fixed(*weight[2:4]), self.stride, self.dilation
        extents = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(*sizes, strict=True)]
        return (x[0], self.channels, *extents)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Sum over the taps."""
        x, weight = arrays
        _, _, oh, ow = self.result(x.shape, weight.shape)
        x = self.border.apply(x)
        assert isinstance(oh, int) and isinstance(ow, int)
        blocks, _, kh, kw, lanes = weight.shape
        out = np.zeros((len(x), blocks, lanes, oh, ow))
        for i in range(kh):
            for j in range(kw):
                rows = slice(
                    i * self.dilation[0], i * self.dilation[0] + (oh - 1) * self.stride[0] + 1, self.stride[0]
                )
                cols = slice(
                    j * self.dilation[1], j * self.dilation[1] + (ow - 1) * self.stride[1] + 1, self.stride[1]
                )
                out += np.einsum("ncyx,bcl->nblyx", x[:, :, rows, cols], weight[:, :, i, j])
        return out.reshape(len(x), blocks * lanes, oh, ow)[:, : self.channels]

    def spec(self, out: TensorType, *types: TensorType) -> PackedConvSpec:
        """Return the extents."""
        n, *image = types[0].shape
        c, h, w = _fixed(*image)
        _, _, kh, kw, _ = _fixed(*types[1].shape)
        oh, ow = _fixed(*out.shape[2:])
        return PackedConvSpec(
            n, c, h, w, self.channels, kh, kw, oh, ow, self.stride, self.dilation, self.lanes, self.sums,
            self.border, ITEMSIZE[out.dtype], served=self.served, tile_limit=self.tile_limit,
        )  # fmt: skip

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a tap and output element (idle lanes do not count)."""
        return out.size * product(types[1].shape[1:4]) * 2

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of an image tensor."""
        return ("n", "o", "y", "x")


@dataclass(frozen=True)
class PackedConv2dBackwardWeight(Packed):
    """The weights' gradient (o, c, kh, kw) from x (n, c, h, w) within its border and grad (n, o, oh, ow).

    The kernel packs the cotangent itself, some rows at a time.
    """

    label: ClassVar[str] = "conv2d_backward_weight"
    template: ClassVar[str] = "packed_conv2d_backward_weight"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "grad")
    kernel: Pair
    stride: Pair
    dilation: Pair
    lanes: int
    sums: int  # vectors of sums that fit into registers
    border: Border = Border()
    shares: int = 1  # of the batch, each summed by itself where there are few sums for several threads
    served: int = 0

    @property
    def attributes(self) -> str:
        """The kernel and the vector."""
        return f"kernel {self.kernel}, {self.lanes} channels a vector{self.border}"

    @property
    def formula(self) -> str:
        """The sum."""
        image = "padded" if self.border else "in"
        return f"out[o][c][i][j] = sum_{{n,y,x}} grad[n][o][y][x] * {image}[n][c][y*sy + i*dy][x*sx + j*dx]"

    def result(self, *shapes: Shape) -> Shape:
        """Return (o, c, kh, kw)."""
        x, grad = shapes
        return (grad[1], x[1], *self.kernel)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Correlate tap by tap."""
        x, grad = self.border.apply(arrays[0]), arrays[1]
        _, o, oh, ow = grad.shape
        out = np.zeros((o, x.shape[1], *self.kernel))
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                rows = slice(
                    i * self.dilation[0], i * self.dilation[0] + (oh - 1) * self.stride[0] + 1, self.stride[0]
                )
                cols = slice(
                    j * self.dilation[1], j * self.dilation[1] + (ow - 1) * self.stride[1] + 1, self.stride[1]
                )
                out[:, :, i, j] = np.einsum("ncyx,noyx->oc", x[:, :, rows, cols], grad)
        return out

    def spec(self, out: TensorType, *types: TensorType) -> PackedConvSpec:
        """Return the extents."""
        n, *image = types[0].shape
        c, h, w = _fixed(*image)
        o, oh, ow = _fixed(*types[1].shape[1:])
        return PackedConvSpec(
            n, c, h, w, o, *self.kernel, oh, ow, self.stride, self.dilation, self.lanes, self.sums,
            self.border, ITEMSIZE[out.dtype], self.shares, self.served,
        )  # fmt: skip

    def workspace(self, out: TensorType, *types: TensorType) -> Shape:
        """Return the shape of the sums of the shares."""
        return (self.shares, *out.shape) if self.shares > 1 else ()

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a tap and cotangent element."""
        return types[1].size * product(out.shape[1:4]) * 2

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of weights."""
        return ("o", "c", "i", "j")


@dataclass(frozen=True)
class PackedMatMulSpec:
    """Loops of a packed matrix product."""

    rows: Size
    depth: Size
    columns: int
    transpose_a: bool
    lanes: int
    sums: int


@dataclass(frozen=True)
class PackedMatMul(Packed):
    """``out[i][j] = sum_k a[i][k] * b[j/lanes][k][j%lanes]``, or ``a[k][i]`` where a is transposed."""

    label: ClassVar[str] = "matmul"
    template: ClassVar[str] = "packed_matmul"
    operand_names: ClassVar[tuple[str, ...]] = ("a", "b")
    columns: int
    transpose_a: bool
    lanes: int
    sums: int

    @property
    def attributes(self) -> str:
        """Which operand is transposed, and the vector."""
        return f"{'Aᵀ' if self.transpose_a else 'A'} B, {self.lanes} columns a vector"

    @property
    def formula(self) -> str:
        """The sum."""
        return f"out[i][j] = sum_k {'a[k][i]' if self.transpose_a else 'a[i][k]'} * b[j/lanes][k][j%lanes]"

    def result(self, *shapes: Shape) -> Shape:
        """Return (rows, columns)."""
        return (shapes[0][1 if self.transpose_a else 0], self.columns)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Multiply by the unpacked operand."""
        a, b = arrays
        plain = b.transpose(1, 0, 2).reshape(b.shape[1], -1)[:, : self.columns]
        return np.asarray((a.T if self.transpose_a else a) @ plain)

    def spec(self, out: TensorType, *types: TensorType) -> PackedMatMulSpec:
        """Return the extents."""
        return PackedMatMulSpec(
            out.shape[0], types[1].shape[1], self.columns, self.transpose_a, self.lanes, self.sums
        )

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a multiply-add."""
        return out.size * types[1].shape[1] * 2

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of a matrix."""
        return ("i", "j")
