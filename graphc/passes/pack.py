"""Give convolutions and matrix products the layout that their kernels are fast on.

before: conv2d(x, w; padding 1)
after:  conv2d(pad(x), pack(w); 16 channels a vector)

Only one operand is packed: the weights (once for all calls in inference, where everything that depends on
parameters alone is folded), or the cotangent where weights are differentiated. The gradient for the
input is a convolution of the cotangent, padded and spread out by the stride, with the flipped weights.
Grouped convolutions and batched products stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphc.graph.node import Node, apply, rebuild
from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvGeometry, Pair
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Flip, Place, pad, reshape, transpose
from graphc.ops.packed import Pack, PackedConv2d, PackedConv2dBackwardWeight, PackedMatMul
from graphc.types import ITEMSIZE, static_shape

_VECTOR_BYTES = 64


def pack(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Return the graph with packed convolutions and matrix products."""
    return dict(zip(outputs, rebuild(list(outputs.values()), _rule), strict=True))


def _rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
    op = node.op
    if isinstance(op, Conv2d) and op.geometry.groups == 1:
        x, weight = inputs
        return _convolution(
            node, _padded(x, op.geometry.padding), weight, op.geometry.stride, op.geometry.dilation
        )
    if isinstance(op, Conv2dBackwardData) and op.geometry.groups == 1:
        return _backward_data(node, op, *inputs)
    if isinstance(op, Conv2dBackwardWeight) and op.geometry.groups == 1:
        return _backward_weight(node, op, *inputs)
    if isinstance(op, MatMul):
        return _product(node, op, *inputs)
    return None


def lanes_for(node: Node, channels: int) -> int:
    """Return how many channels a vector holds: half a vector for few channels, so that fewer lanes idle."""
    full = _VECTOR_BYTES // ITEMSIZE[node.dtype]
    return full // 2 if channels <= full // 2 else full


def _padded(x: Node, padding: tuple[Pair, Pair], copy: int = 0) -> Node:
    """Return the image with a border of zeros.

    The backward pass pads again (as another ``copy``): keeping the padded image of the forward pass beside
    the plain one would cost as much memory as the convolution's input.
    """
    widths = ((0, 0), (0, 0), *padding)
    image = pad(x, widths)
    return image if image is x else apply(replace(image.op, copy=copy), (x,))  # type: ignore[type-var]


def _convolution(node: Node, image: Node, weight: Node, stride: Pair, dilation: Pair) -> Node:
    channels = static_shape(weight.shape)[0]
    lanes = lanes_for(node, channels)
    op = PackedConv2d(channels, stride, dilation, lanes)
    return apply(op, (image, Pack(0, lanes)(weight, name=weight.name)), node.name, node.source)


def _backward_data(node: Node, op: Conv2dBackwardData, grad: Node, weight: Node) -> Node | None:
    g: ConvGeometry = op.geometry
    batch, channels, *extents = grad.shape
    kernel, inner, outer = (
        static_shape(weight.shape[2:]),
        static_shape(tuple(extents)),
        static_shape(op.shape[2:]),
    )
    spread = [(e - 1) * s + 1 for e, s in zip(inner, g.stride, strict=True)]
    before = [d * (k - 1) - p[0] for d, k, p in zip(g.dilation, kernel, g.padding, strict=True)]
    after = [
        size + d * (k - 1) - b - s
        for size, d, k, b, s in zip(outer, g.dilation, kernel, before, spread, strict=True)
    ]
    if min(*before, *after) < 0:
        return None  # more padding than the kernel reaches: the plain kernel crops
    shape = (batch, channels, *(b + s + a for b, s, a in zip(before, spread, after, strict=True)))
    image = grad
    if shape != grad.shape:
        image = Place(shape, (0, 0, *before), (1, 1, *g.stride), 0.0)(grad)
    flipped = Flip((2, 3))(transpose(weight, (1, 0, 2, 3)))
    return _convolution(node, image, flipped, (1, 1), g.dilation)


def _backward_weight(node: Node, op: Conv2dBackwardWeight, x: Node, grad: Node) -> Node:
    g = op.geometry
    channels, c, kh, kw = static_shape(op.shape)
    lanes = lanes_for(node, channels)
    blocks = -(-channels // lanes)
    packed = Pack(1, lanes)(grad)
    kernel = PackedConv2dBackwardWeight((kh, kw), g.stride, g.dilation, lanes)
    out = apply(kernel, (_padded(x, g.padding, copy=1), packed), node.name, node.source)
    plain = reshape(transpose(out, (0, 4, 1, 2, 3)), (blocks * lanes, c, kh, kw))
    return plain if channels == blocks * lanes else plain[:channels]


def _product(node: Node, op: MatMul, a: Node, b: Node) -> Node | None:
    columns = node.shape[-1]
    if node.rank != 2 or not isinstance(columns, int) or columns == 1:
        return None
    lanes = lanes_for(node, columns)
    packed = Pack(0 if op.transpose_b else 1, lanes)(b, name=b.name)
    return apply(PackedMatMul(columns, op.transpose_a, lanes), (a, packed), node.name, node.source)
