"""Convolutions and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.graph.node import Node
from graphc.onnx.emission import Emission, writes
from graphc.onnx.writers import taps
from graphc.onnx.writers.movement import slice_of
from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvGeometry, Pair
from graphc.types import Shape


def _pads(g: ConvGeometry) -> list[int]:
    (top, bottom), (left, right) = g.padding
    return [top, left, bottom, right]


def _image(shape: Shape) -> Pair:
    h, w = shape[2:]
    assert isinstance(h, int) and isinstance(w, int)
    return h, w


@writes(Conv2d)
def write_conv(e: Emission, node: Node) -> str:
    """Write Conv."""
    assert isinstance(node.op, Conv2d)
    g = node.op.geometry
    if node.dtype == "float64":
        return taps.conv(e, node, g)
    return conv_operator(e, e.inputs(node), g, node.inputs[1].shape)


def conv_operator(e: Emission, operands: Sequence[str], g: ConvGeometry, weight: Shape) -> str:
    """Write Conv of an image and weights, and perhaps a bias."""
    return e.op(
        "Conv",
        *operands,
        strides=list(g.stride),
        pads=_pads(g),
        dilations=list(g.dilation),
        group=g.groups,
        kernel_shape=list(_image(weight)),
    )


@writes(Conv2dBackwardData)
def write_conv_data(e: Emission, node: Node) -> str:
    """Write ConvTranspose; rows and columns that no tap met are added behind."""
    assert isinstance(node.op, Conv2dBackwardData)
    g, (grad, weight) = node.op.geometry, node.inputs
    if node.dtype == "float64":
        return taps.conv_data(e, node, g)
    kernel, image, out = _image(weight.shape), _image(node.shape), _image(grad.shape)
    reach = [(out[a] - 1) * g.stride[a] + (kernel[a] - 1) * g.dilation[a] + 1 for a in (0, 1)]
    more = [image[a] + sum(g.padding[a]) - reach[a] for a in (0, 1)]
    return e.op(
        "ConvTranspose", *e.inputs(node), strides=list(g.stride), pads=_pads(g), dilations=list(g.dilation),
        group=g.groups, kernel_shape=list(kernel), output_padding=more,
    )  # fmt: skip


@writes(Conv2dBackwardWeight)
def write_conv_weight(e: Emission, node: Node) -> str:
    """Write Conv with batch and channels exchanged, and stride and dilation too.

    With groups the image's channels are divided: those of one group are the batch, and groups by samples the
    channels, of which the cotangent's output channels read those of their own group.
    """
    assert isinstance(node.op, Conv2dBackwardWeight)
    g, (x, grad) = node.op.geometry, node.inputs
    if node.dtype == "float64":
        return taps.conv_weight(e, node, g)
    n, c = x.shape[:2]
    assert isinstance(c, int)
    per_group, (h, w) = c // g.groups, _image(x.shape)
    if g.groups == 1:
        image = e.op("Transpose", e.names[x], perm=[1, 0, 2, 3])
    else:
        image = e.reshape(e.names[x], (n, g.groups, per_group, h, w))
        image = e.op("Transpose", image, perm=[2, 1, 0, 3, 4])
        image = e.reshape(image, (per_group, n * g.groups, h, w))
    cotangent = e.op("Transpose", e.names[grad], perm=[1, 0, 2, 3])
    out = e.op(
        "Conv", image, cotangent, strides=list(g.dilation), pads=_pads(g), dilations=list(g.stride), group=g.groups,
        kernel_shape=list(_image(grad.shape)),
    )  # fmt: skip
    o, _, kh, kw = node.shape
    found = [(e_ + sum(p) - s * (k - 1) - 1) // d + 1 for e_, p, s, k, d in zip(
        (h, w), g.padding, g.stride, _image(grad.shape), g.dilation, strict=True)]  # fmt: skip
    # Where the stride does not divide the image, the last rows and columns are of no tap.
    out = slice_of(e, out, (per_group, o, *found), (0,) * 4, (1,) * 4, (per_group, o, kh, kw))
    return e.op("Transpose", out, perm=[1, 0, 2, 3])
