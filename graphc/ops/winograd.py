"""Winograd's minimal filtering F(4x4, 3x3): convolutions with 3x3 kernels, and their gradients, by a quarter of the
products.

An image is cut into tiles of 4x4 results. Each tile reads 6x6 pixels, which are transformed (``B^T d B``),
multiplied point by point with transformed weights (``G g G^T``) and summed over the channels, and
transformed back (``A^T m A``): 36 products for 16 results instead of 144. The sums over channels are 36 matrix
products, which run in the same register tiles as every other.

The gradient for the weights is the adjoint of that: ``G^T (sum_tiles (A grad A^T) . (B^T d B)) G``, where grad are
the 4x4 cotangents of a tile. So 36 matrices of (channels, channels) are summed over the tiles of all images.

Numerics: the transforms' constants up to 8 magnify rounding: the largest error is about ten times that of
the direct sum, relative to the largest result.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1; matrices for
the points 0, 1, -1, 2, -2 and infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.graph.node import Op
from graphc.ops.packed import Packed, Pair
from graphc.types import Shape, Size, TensorType

TILE = 4  # results along each side
POINTS = 36  # products of a tile

_B = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], dtype=np.float64)  # fmt: skip
_G = np.array([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
])  # fmt: skip
_A = np.array([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]
], dtype=np.float64)  # fmt: skip


def _tiles(x: np.ndarray, out: Pair, padding: Pair) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Yield where each tile of the results lies, and ``B^T d B`` of the pixels that it reads."""
    n, c, h, w = x.shape
    (th, tw), (top, left) = (-(-size // TILE) * TILE for size in out), padding
    image = np.zeros((n, c, th + 2, tw + 2))
    height, width = min(h, th + 2 - top), min(w, tw + 2 - left)
    image[:, :, top : top + height, left : left + width] = x[:, :, :height, :width]
    for y in range(0, th, TILE):
        for z in range(0, tw, TILE):
            read = image[:, :, y : y + 6, z : z + 6]
            tile = (slice(None), slice(None), slice(y, y + TILE), slice(z, z + TILE))
            yield tile, np.einsum("ik,nckl,jl->ncij", _B, read, _B)


@dataclass(frozen=True)
class WinogradWeightSpec:
    """Loops of the weights' transform: extents, and the strides of the view that is read."""

    o: int
    c: int
    lanes: int
    strides: Shape
    offset: Size


@dataclass(frozen=True)
class WinogradWeight(Op):
    """``G g G^T`` of weights (o, c, 3, 3), packed: shape (o/lanes, 36, c, lanes), zeros in idle lanes."""

    label: ClassVar[str] = "winograd_weight"
    lanes: int

    @property
    def attributes(self) -> str:
        """The length of a vector."""
        return f"{self.lanes} a vector"

    @property
    def formula(self) -> str:
        """The transform."""
        return "out[o/lanes][6*i + j][c][o%lanes] = (G * in[o][c] * G^T)[i][j]"

    def infer(self, *types: TensorType) -> TensorType:
        """Return the packed shape."""
        o, c, *_ = types[0].shape
        assert isinstance(o, int)
        return types[0].with_shape((-(-o // self.lanes), POINTS, c, self.lanes))

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Transform, then pack."""
        o, c, _, _ = arrays[0].shape
        blocks = -(-o // self.lanes)
        full = np.zeros((blocks * self.lanes, c, POINTS))
        full[:o] = np.einsum("ik,ockl,jl->ocij", _G, arrays[0], _G).reshape(o, c, POINTS)
        return full.reshape(blocks, self.lanes, c, POINTS).transpose(0, 3, 2, 1)


@dataclass(frozen=True)
class WinogradSpec:
    """Loops of the convolution. ``chunk`` rows of tiles are transformed, then multiplied, at a time.

    ``sums`` vectors of sums are held in registers; ``chunks`` says how many there are at the largest batch, where
    the kernel depends on it.
    """

    n: Size
    c: int
    h: int
    w: int
    o: int
    oh: int
    ow: int
    padding: Pair
    lanes: int
    sums: int
    chunk: int
    chunks: int = 0

    @property
    def tiles(self) -> Pair:
        """Rows and columns of tiles of one image."""
        return -(-self.oh // TILE), -(-self.ow // TILE)

    @property
    def groups(self) -> tuple[int, int, int]:
        """The tiles that are multiplied side by side: groups in a row, rows in a group, tiles in a group."""
        columns = self.tiles[1]
        if 2 * columns <= self.sums:
            return 1, self.sums // columns, self.sums // columns * columns
        parts = -(-columns // self.sums)
        return parts, 1, -(-columns // parts)


@dataclass(frozen=True)
class WinogradConv2d(Packed):
    """A convolution of x (n, c, h, w) with transformed 3x3 weights, stride 1; ``padding`` at top and left."""

    label: ClassVar[str] = "conv2d"
    template: ClassVar[str] = "winograd_conv2d"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "weight")
    channels: int
    out: Pair
    padding: Pair
    lanes: int
    sums: int
    chunk: int

    @property
    def attributes(self) -> str:
        """The method."""
        return f"Winograd F(4x4, 3x3), {self.lanes} channels a vector, padding {self.padding}"

    @property
    def formula(self) -> str:
        """The sum."""
        return (
            "out[n][o] in tiles of 4 x 4 = A^T (sum_c weight[o][c] . (B^T padded[n][c] B)) A, "
            "where . multiplies point by point: Winograd's F(4x4, 3x3)"
        )

    def result(self, *shapes: Shape) -> Shape:
        """Return (n, channels, oh, ow)."""
        return (shapes[0][0], self.channels, *self.out)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Transform, multiply, transform back."""
        x, weight = arrays
        plain = weight.transpose(0, 3, 2, 1).reshape(-1, x.shape[1], 6, 6)[: self.channels]
        out = np.zeros((len(x), self.channels, *(-(-size // TILE) * TILE for size in self.out)))
        for tile, transformed in _tiles(x, self.out, self.padding):
            m = np.einsum("ncij,ocij->noij", transformed, plain)
            out[tile] = np.einsum("ik,nokl,jl->noij", _A, m, _A)
        return out[:, :, : self.out[0], : self.out[1]]

    def spec(self, out: TensorType, *types: TensorType) -> WinogradSpec:
        """Return the extents."""
        n, c, h, w = types[0].shape
        assert isinstance(c, int) and isinstance(h, int) and isinstance(w, int)
        return WinogradSpec(
            n, c, h, w, self.channels, *self.out, self.padding, self.lanes, self.sums, self.chunk
        )

    def workspace(self, out: TensorType, *types: TensorType) -> Shape:
        """Return the shape of one chunk's transformed tiles: (groups, points, channels/lanes, tiles, lanes)."""
        spec = self.spec(out, *types)
        parts, together, side = spec.groups
        return (-(-self.chunk // together) * parts, POINTS, -(-spec.c // self.lanes), side, self.lanes)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a product; the transforms do not count."""
        rows, columns = self.spec(out, *types).tiles
        channels = types[0].shape[1]
        return out.shape[0] * (rows * columns * POINTS * 2 * self.channels) * channels

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of an image tensor."""
        return ("n", "o", "y", "x")


@dataclass(frozen=True)
class WinogradConv2dBackwardWeight(Packed):
    """The weights' gradient (o, c, 3, 3) from x (n, c, h, w), with padding at top and left, and grad (n, o, oh, ow).

    Sources: Lavin and Gray 2016, as above; the gradient is the transposed algorithm.
    """

    label: ClassVar[str] = "conv2d_backward_weight"
    template: ClassVar[str] = "winograd_conv2d_backward_weight"
    operand_names: ClassVar[tuple[str, ...]] = ("in", "grad")
    padding: Pair
    lanes: int
    sums: int
    chunk: int
    chunks: int  # at the largest batch

    @property
    def attributes(self) -> str:
        """The method."""
        return f"Winograd F(4x4, 3x3), {self.lanes} channels a vector, padding {self.padding}"

    @property
    def formula(self) -> str:
        """The sum."""
        return (
            "out[o][c] = G^T (sum_tiles (A grad[n][o] A^T) . (B^T padded[n][c] B)) G, "
            "where . multiplies point by point: the adjoint of Winograd's F(4x4, 3x3)"
        )

    def result(self, *shapes: Shape) -> Shape:
        """Return (o, c, 3, 3)."""
        x, grad = shapes
        return (grad[1], x[1], 3, 3)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Transform both, multiply, transform back."""
        x, grad = arrays
        oh, ow = grad.shape[2:]
        cotangent = np.pad(grad, ((0, 0), (0, 0), (0, -oh % TILE), (0, -ow % TILE)))
        total = np.zeros((grad.shape[1], x.shape[1], 6, 6))
        for tile, transformed in _tiles(x, (oh, ow), self.padding):
            m = np.einsum("ki,nokl,lj->noij", _A, cotangent[tile], _A)
            total += np.einsum("ncij,noij->ocij", transformed, m)
        return np.asarray(np.einsum("ki,ockl,lj->ocij", _G, total, _G))

    def spec(self, out: TensorType, *types: TensorType) -> WinogradSpec:
        """Return the extents."""
        n, c, h, w = types[0].shape
        _, o, oh, ow = types[1].shape
        assert isinstance(c, int) and isinstance(h, int) and isinstance(w, int)
        assert isinstance(o, int) and isinstance(oh, int) and isinstance(ow, int)
        return WinogradSpec(
            n, c, h, w, o, oh, ow, self.padding, self.lanes, self.sums, self.chunk, self.chunks
        )

    def workspace(self, out: TensorType, *types: TensorType) -> Shape:
        """Return the shape of one chunk's transformed tiles and, if there are several, the sums of all chunks."""
        spec = self.spec(out, *types)
        depth, blocks = -(-spec.c // self.lanes), -(-spec.o // self.lanes)
        tiles = POINTS * self.chunk * spec.tiles[1] * (depth + blocks)
        return (tiles + (9 * spec.c * blocks if self.chunks > 1 else 0), self.lanes)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a product; the transforms do not count."""
        spec = self.spec(out, *types)
        rows, columns = spec.tiles
        return spec.n * (rows * columns * POINTS * 2 * spec.o * spec.c)

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of weights."""
        return ("o", "c", "i", "j")
