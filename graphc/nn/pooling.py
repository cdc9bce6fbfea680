"""Pooling layers: windows of fixed extent, and windows that the wanted extent decides."""

from __future__ import annotations

import numpy as np

from graphc.errors import RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.nn.arguments import Pair, as_count, as_pair
from graphc.ops.leaves import constant
from graphc.ops.matmul import matmul
from graphc.ops.pool2d import AvgPool2d, MaxPool2d, PoolGeometry, pool_geometry
from graphc.ops.reduce import mean
from graphc.ops.registry import Sample, float_type, register
from graphc.types import N, shape_text


def _geometry(
    layer: str, x: Node, kernel: int | Pair, stride: int | Pair | None, padding: int | Pair,
    dilation: int | Pair, ceil_mode: bool,
) -> PoolGeometry:  # fmt: skip
    size = as_pair(kernel, layer, "kernel", 1)
    strides = size if stride is None else as_pair(stride, layer, "stride", 1)
    pads, dilations = as_pair(padding, layer, "padding", 0), as_pair(dilation, layer, "dilation", 1)
    try:
        return pool_geometry(x.shape, size, strides, pads, dilations, ceil_mode)
    except ShapeError as error:
        raise located(ShapeError, layer, None, str(error)) from None


def max_pool2d(
    x: Node,
    kernel: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
) -> Node:
    """Return the maximum over windows, with PyTorch's rules; the stride defaults to the kernel.

    Numerics: NaN wins; of equal elements the first in the window gets the gradient.

    Raises:
        ShapeError: x is no image tensor, padding exceeds half the kernel, or no window fits.
        RangeError: a number is out of range.
    """
    return MaxPool2d(_geometry("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode))(x)


def avg_pool2d(
    x: Node,
    kernel: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    """Return the mean over windows, with PyTorch's rules; the stride defaults to the kernel.

    Raises:
        ShapeError: x is no image tensor, padding exceeds half the kernel, or no window fits.
        RangeError: a number is out of range.
    """
    geometry = _geometry("avg_pool2d", x, kernel, stride, padding, 1, ceil_mode)
    if divisor_override is not None:
        divisor_override = as_count(divisor_override, "avg_pool2d", None, "divisor_override")
    return AvgPool2d(geometry, count_include_pad, divisor_override)(x)


def _image_extents(layer: str, x: Node) -> Pair:
    if x.rank != 4 or not isinstance(x.shape[2], int) or not isinstance(x.shape[3], int):
        raise located(ShapeError, layer, None, f"expected (N, C, H, W), got {shape_text(x.shape)}")
    return x.shape[2], x.shape[3]


def _averaging(size: int, count: int) -> np.ndarray:
    """Return (size, count): column i averages the elements of window i."""
    weights = np.zeros((size, count))
    for k in range(count):
        begin, end = k * size // count, -(-(k + 1) * size // count)
        weights[begin:end, k] = 1 / (end - begin)
    return weights


def adaptive_avg_pool2d(x: Node, out: int | Pair) -> Node:
    """Return the mean over windows chosen such that the result has the given height and width.

    Window i of n over an extent s covers floor(i*s/n) to ceil((i+1)*s/n), as in PyTorch.

    Raises:
        ShapeError: x is no image tensor.
        RangeError: ``out`` is neither a positive int nor a pair of them.
    """
    height, width = as_pair(out, "adaptive_avg_pool2d", "out", 1)
    h, w = _image_extents("adaptive_avg_pool2d", x)
    if not x.type.is_float:
        raise located(RangeError, "adaptive_avg_pool2d", None, f"needs a floating-point tensor, got {x.type}")
    if (height, width) == (1, 1):
        return mean(x, (2, 3), keepdims=True)
    if h % height == 0 and w % width == 0:
        return avg_pool2d(x, (h // height, w // width))
    columns = matmul(x, constant(_averaging(w, width), x.dtype))
    return matmul(constant(_averaging(h, height).T.copy(), x.dtype), columns)


def global_avg_pool2d(x: Node) -> Node:
    """Return the mean over height and width, which stay with extent 1."""
    return adaptive_avg_pool2d(x, 1)


def global_max_pool2d(x: Node) -> Node:
    """Return the maximum over height and width, which stay with extent 1."""
    return max_pool2d(x, _image_extents("global_max_pool2d", x))


def _adaptive_reference(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average every window by itself."""
    out = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        rows = slice(int(np.floor(i * x.shape[2] / height)), int(np.ceil((i + 1) * x.shape[2] / height)))
        for j in range(width):
            columns = slice(int(np.floor(j * x.shape[3] / width)), int(np.ceil((j + 1) * x.shape[3] / width)))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


register(
    "adaptive_avg_pool2d",
    lambda: [
        Sample(
            lambda x, size=size: adaptive_avg_pool2d(x, size),
            (float_type(N, 2, *extents),),
            lambda x, size=size: _adaptive_reference(x, *size),
            label=f"{extents} to {size}",
        )
        for extents, size in [((5, 7), (3, 2)), ((6, 4), (3, 2)), ((3, 2), (4, 5)), ((3, 5), (1, 1))]
    ],
)
