"""Give convolutions and matrix products the layout that their kernels are fast on.

before: conv2d(x, w; padding 1)
after:  conv2d(x, pack(w); 16 channels a vector, padding 1)

Only the weights are packed (once for all calls in inference, where everything that depends on parameters
alone is folded). The gradient for the
input is a convolution of the cotangent, padded and spread out by the stride, with the flipped weights.
Padded images exist in the kernels' tiles alone; where such a tile would be too large for a thread's stack,
the padded image is stored. Grouped convolutions and batched products stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from graphc.graph.node import Node, apply, rebuild
from graphc.isa import Isa
from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvGeometry, Pair
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Flip, Place, transpose
from graphc.ops.packed import (
    Border,
    Pack,
    PackedConv2d,
    PackedConv2dBackwardWeight,
    PackedMatMul,
    tap_channels,
)
from graphc.types import static_shape

# A kernel's tile of a padded image lives on its thread's stack.
_TILE_BYTES = 2**18
_POOLED_ROWS = 3  # the rows of the output that a tile serves at the least, where pooling is fused


def pack(outputs: Mapping[str, Node], isa: Isa) -> dict[str, Node]:
    """Return the graph with packed convolutions and matrix products, in vectors of the instruction set."""
    rule = partial(_rule, isa)
    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))


def _rule(isa: Isa, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    op = node.op
    if isinstance(op, Conv2d) and op.geometry.groups == 1:
        x, weight = inputs
        g = op.geometry
        return _convolution(isa, node, x, weight, g.stride, g.dilation, Border(g.padding))
    if isinstance(op, Conv2dBackwardData) and op.geometry.groups == 1:
        return _backward_data(isa, node, op, *inputs)
    if isinstance(op, Conv2dBackwardWeight) and op.geometry.groups == 1:
        return _backward_weight(isa, node, op, *inputs)
    if isinstance(op, MatMul):
        return _product(isa, node, op, *inputs)
    return None


def _bordered(x: Node, border: Border) -> Node:
    """Return the image with its border in memory."""
    n, c, h, w = x.shape
    assert isinstance(h, int) and isinstance(w, int)
    (top, _), (left, _) = border.padding
    return Place((n, c, *border.extents(h, w)), (0, 0, top, left), (1, 1, *border.spread), 0.0)(x)


def _convolution(
    isa: Isa, node: Node, x: Node, weight: Node, stride: Pair, dilation: Pair, border: Border
) -> Node:
    channels = static_shape(weight.shape)[0]
    lanes = isa.lanes(channels, node.dtype)
    packed = Pack(0, lanes)(weight, name=weight.name)
    op = PackedConv2d(channels, stride, dilation, lanes, isa.sums(lanes, node.dtype), border)
    if border and op.spec(node.type, x.type, packed.type).tile_bytes(_POOLED_ROWS) > _TILE_BYTES:
        op, x = replace(op, border=Border()), _bordered(x, border)
    return apply(op, (x, packed), node.name, node.source)


def _backward_data(isa: Isa, node: Node, op: Conv2dBackwardData, grad: Node, weight: Node) -> Node | None:
    g: ConvGeometry = op.geometry
    kernel, inner, outer = (static_shape(shape[2:]) for shape in (weight.shape, grad.shape, op.shape))
    spread = [(e - 1) * s + 1 for e, s in zip(inner, g.stride, strict=True)]
    before = [d * (k - 1) - p[0] for d, k, p in zip(g.dilation, kernel, g.padding, strict=True)]
    after = [
        size + d * (k - 1) - b - s
        for size, d, k, b, s in zip(outer, g.dilation, kernel, before, spread, strict=True)
    ]
    if min(*before, *after) < 0:
        return None  # more padding than the kernel reaches: the plain kernel crops
    border = Border(((before[0], after[0]), (before[1], after[1])), g.stride)
    flipped = Flip((2, 3))(transpose(weight, (1, 0, 2, 3)))
    return _convolution(isa, node, grad, flipped, (1, 1), g.dilation, border)


def _backward_weight(isa: Isa, node: Node, op: Conv2dBackwardWeight, x: Node, grad: Node) -> Node:
    g = op.geometry
    channels, _, kh, kw = static_shape(op.shape)
    border, lanes = Border(g.padding), isa.register_lanes(channels, node.dtype)
    kernel = PackedConv2dBackwardWeight((kh, kw), g.stride, g.dilation, lanes, border)
    if border:
        spec = kernel.spec(node.type, x.type, grad.type)
        if spec.tile_bytes(1, tap_channels(spec)) > _TILE_BYTES:
            kernel, x = replace(kernel, border=Border()), _bordered(x, border)
    return apply(kernel, (x, grad), node.name, node.source)


def _product(isa: Isa, node: Node, op: MatMul, a: Node, b: Node) -> Node | None:
    columns = node.shape[-1]
    if node.rank != 2 or not isinstance(columns, int) or columns == 1:
        return None
    lanes = isa.lanes(columns, node.dtype)
    packed = Pack(0 if op.transpose_b else 1, lanes)(b, name=b.name)
    return apply(
        PackedMatMul(columns, op.transpose_a, lanes, isa.sums(lanes, node.dtype)),
        (a, packed),
        node.name,
        node.source,
    )
