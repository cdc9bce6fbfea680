"""Convolutions in float64 by the taps of their kernel: runtimes have operators for float32 alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphc.graph.node import Node
from graphc.onnx.emission import Emission
from graphc.ops.conv2d import ConvGeometry, Pair
from graphc.types import Shape, Size


def pad_image(
    e: Emission, x: str, before: Sequence[int], behind: Sequence[int], fill: float, dtype: str
) -> str:
    """Return an image with a border."""
    if not any(before) and not any(behind):
        return x
    return e.op("Pad", x, e.integers([*before, *behind]), e.constant(fill, dtype), e.integers([2, 3]))


def slices(
    e: Emission, x: str, kernel: Pair, stride: Pair, dilation: Pair, out: Sequence[Size]
) -> Iterator[str]:
    """Yield what each tap meets of an image with its border."""
    oh, ow = out
    assert isinstance(oh, int) and isinstance(ow, int)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            begin = [i * dilation[0], j * dilation[1]]
            end = [begin[0] + (oh - 1) * stride[0] + 1, begin[1] + (ow - 1) * stride[1] + 1]
            yield e.op("Slice", x, *map(e.integers, (begin, end, [2, 3], list(stride))))


def _columns(e: Emission, x: Node, g: ConvGeometry, kernel: Pair, out: Sequence[Size]) -> str:
    """Return (n, groups, c/groups * taps, pixels): what every output pixel reads."""
    n, c = x.shape[:2]
    assert isinstance(c, int) and isinstance(out[0], int) and isinstance(out[1], int)
    (top, bottom), (left, right) = g.padding
    padded = pad_image(e, e.names[x], (top, left), (bottom, right), 0.0, x.dtype)
    found = [
        e.op("Unsqueeze", s, e.integers([2])) for s in slices(e, padded, kernel, g.stride, g.dilation, out)
    ]
    stacked = e.op("Concat", *found, axis=2)  # (n, c, taps, oh, ow)
    count = c // g.groups * kernel[0] * kernel[1]
    return e.reshape(stacked, (n, g.groups, count, out[0] * out[1]))


def _extents(weight: Shape) -> tuple[int, int, Pair]:
    o, c, kh, kw = (d for d in weight if isinstance(d, int))
    return o, c, (kh, kw)


def conv(e: Emission, node: Node, g: ConvGeometry) -> str:
    """Write a convolution as one product."""
    x, weight = node.inputs
    o, c, kernel = _extents(weight.shape)
    columns = _columns(e, x, g, kernel, node.shape[2:])
    rows = e.reshape(e.names[weight], (g.groups, o // g.groups, c * kernel[0] * kernel[1]))
    return e.reshape(e.op("MatMul", rows, columns), node.shape)


def conv_weight(e: Emission, node: Node, g: ConvGeometry) -> str:
    """Write the gradient for the weights as one product, summed over the batch."""
    x, grad = node.inputs
    o, _, kernel = _extents(node.shape)
    columns = e.op("Transpose", _columns(e, x, g, kernel, grad.shape[2:]), perm=[0, 1, 3, 2])
    oh, ow = grad.shape[2:]
    rows = e.reshape(e.names[grad], (grad.shape[0], g.groups, o // g.groups, oh * ow))
    total = e.op("ReduceSum", e.op("MatMul", rows, columns), e.integers([0]), keepdims=0)
    return e.reshape(total, node.shape)


def conv_data(e: Emission, node: Node, g: ConvGeometry) -> str:
    """Write the gradient for the input: a product for each tap, spread to where the tap was."""
    grad, weight = node.inputs
    o, c, kernel = _extents(weight.shape)
    n, channels = node.shape[:2]
    oh, ow = grad.shape[2:]
    assert isinstance(oh, int) and isinstance(ow, int)
    rows = e.reshape(e.names[grad], (n, g.groups, o // g.groups, oh * ow))
    matrix = e.reshape(e.names[weight], (g.groups, o // g.groups, c * kernel[0] * kernel[1]))
    product = e.op("MatMul", e.op("Transpose", matrix, perm=[0, 2, 1]), rows)
    product = e.reshape(product, (n, channels, kernel[0] * kernel[1], oh * ow))
    parts = e.op_with("Split", [product], kernel[0] * kernel[1], axis=2, num_outputs=kernel[0] * kernel[1])
    before = (g.padding[0][0], g.padding[1][0])
    return spread(e, parts, node, (oh, ow), kernel, g.stride, g.dilation, before)


def spread(
    e: Emission,
    parts: Sequence[str],
    node: Node,
    out: Pair,
    kernel: Pair,
    stride: Pair,
    dilation: Pair,
    before: Pair,
) -> str:
    """Return the sum of what every tap gives to the image, a part for each: the transpose of :func:`slices`."""
    n, channels, h, w = node.shape
    assert isinstance(h, int) and isinstance(w, int)
    zero, (oh, ow), (sy, sx) = e.constant(0.0, node.dtype), out, stride
    wide: dict[str, str] = {}
    placed = []
    for k, part in enumerate(parts):
        if part not in wide:  # with stride - 1 zeros behind each pixel
            y = e.reshape(part, (n, channels, oh, 1, ow, 1))
            y = e.op("Pad", y, e.integers([0, 0, sy - 1, sx - 1]), zero, e.integers([3, 5]))
            wide[part] = e.reshape(y, (n, channels, oh * sy, ow * sx))
        top = k // kernel[1] * dilation[0] - before[0]
        left = k % kernel[1] * dilation[1] - before[1]
        places = [top, left, h - top - oh * sy, w - left - ow * sx]  # negative ones cut
        placed.append(e.op("Pad", wide[part], e.integers(places), zero, e.integers([2, 3])))
    return e.op("Sum", *placed)
