"""2-D convolution layers."""

from __future__ import annotations

from graphc.errors import RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.initialisers import Uniform
from graphc.nn.arguments import Initial, Padding, Pair, as_count, as_pair, make_parameter
from graphc.ops.conv2d import Conv2d, ConvGeometry
from graphc.ops.leaves import Scope
from graphc.ops.movement import reshape
from graphc.types import shape_text


def conv2d(
    x: Node,
    channels: int,
    kernel: int | Pair,
    *,
    stride: int | Pair = 1,
    padding: Padding | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    bias: bool | Node = True,
    name: str | None = None,
    weight: Node | Initial | None = None,
    initial_bias: Initial | None = None,
    trainable: bool = True,
) -> Node:
    """Return the 2-D cross-correlation of x (n, c, h, w) with weights (channels, c/groups, kh, kw).

    ``padding`` is an int, a pair, ((top, bottom), (left, right)), ``"valid"`` or ``"same"`` (stride 1;
    an odd total puts the extra row below and the extra column to the right, as PyTorch).
    ``weight`` and ``bias`` may be another layer's tensors, to share them; ``weight`` and
    ``initial_bias`` may be first values: an initialiser, a number or an array.

    Shapes: out height (h + top + bottom - dilation*(kh - 1) - 1) // stride + 1, width alike.
    Initial values: Uniform(+-1/sqrt(fan_in)), as PyTorch.

    Raises:
        ShapeError: x is no image tensor, channels do not divide into groups, the kernel does not fit.
        RangeError: a number is out of range.
    """
    if x.rank != 4 or not isinstance(x.shape[1], int):
        raise located(ShapeError, "conv2d", name, f"expected (N, C, H, W), got {shape_text(x.shape)}")
    kh, kw = as_pair(kernel, "conv2d", "kernel", 1, name)
    strides = as_pair(stride, "conv2d", "stride", 1, name)
    dilations = as_pair(dilation, "conv2d", "dilation", 1, name)
    channels = as_count(channels, "conv2d", name, "channels")
    groups = as_count(groups, "conv2d", name, "groups")
    if x.shape[1] % groups or channels % groups:
        message = f"{x.shape[1]} and {channels} channels do not divide into {groups} groups"
        raise located(ShapeError, "conv2d", name, message)
    pads = _resolve_padding(padding, (kh, kw), strides, dilations)
    scope = Scope("conv2d", name)
    shape = (channels, x.shape[1] // groups, kh, kw)
    first = Uniform() if weight is None else weight
    kernels = make_parameter(scope, "weight", shape, first, x.dtype, trainable)
    out = Conv2d(ConvGeometry(strides, pads, dilations, groups))(x, kernels, name=name)
    if bias is False:
        return out
    first = Uniform(fan_in=shape[1] * kh * kw) if initial_bias is None else initial_bias
    value = bias if isinstance(bias, Node) else first
    vector = make_parameter(scope, "bias", (channels,), value, x.dtype, trainable)
    return out + reshape(vector, (channels, 1, 1))


def _resolve_padding(padding: Padding | str, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Return ((top, bottom), (left, right))."""
    if padding == "same":
        if stride != (1, 1):
            raise located(RangeError, "conv2d", None, f"padding 'same' needs stride 1, got {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    if padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(padding, str):
        message = f"padding must be numbers, 'same' or 'valid', got {padding!r}"
        raise located(RangeError, "conv2d", None, message)
    if isinstance(padding, (tuple, list)) and all(isinstance(v, (tuple, list)) for v in padding):
        if len(padding) != 2:
            message = f"padding must be ((top, bottom), (left, right)), got {padding!r}"
            raise located(RangeError, "conv2d", None, message)
        return as_pair(padding[0], "conv2d", "padding", 0), as_pair(padding[1], "conv2d", "padding", 0)
    vertical, horizontal = as_pair(padding, "conv2d", "padding", 0)
    return (vertical, vertical), (horizontal, horizontal)
