"""Layers: functions of a tensor that make their own parameters, with PyTorch's names, shapes and defaults."""

from __future__ import annotations

import math

import numpy as np

from graphc.errors import RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.initialisers import Constant, Initialiser, Normal, Uniform, as_initialiser
from graphc.ops.control import bounded, mode_switch, stop_gradient, updating
from graphc.ops.conv2d import Conv2d, ConvGeometry
from graphc.ops.elementwise import cast, greater_equal, mul, rsqrt, square
from graphc.ops.gather import take
from graphc.ops.leaves import Parameter, RandomKey, RandomUniform, Scope, State, constant
from graphc.ops.matmul import MatMul, matmul
from graphc.ops.movement import reshape
from graphc.ops.pool2d import AvgPool2d, MaxPool2d, pool_geometry
from graphc.ops.reduce import extent, mean
from graphc.types import DType, product, shape_text

Pair = tuple[int, int]
Padding = int | Pair | tuple[Pair, Pair]


def _pair(value: int | Pair, what: str) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise RangeError(f"{what}: expected an int or a pair of ints, got {value!r}")
    return pair[0], pair[1]


def _paddings(value: Padding) -> tuple[Pair, Pair]:
    if isinstance(value, tuple) and all(isinstance(v, tuple) for v in value):
        return _pair(value[0], "padding"), _pair(value[1], "padding")
    vertical, horizontal = _pair(value, "padding")  # type: ignore[arg-type]  # checked by _pair
    return (vertical, vertical), (horizontal, horizontal)


def _parameter(
    scope: Scope,
    field: str,
    shape: tuple[int, ...],
    initial: Initialiser,
    dtype: DType,
    trainable: bool = True,
) -> Node:
    return Parameter(dtype, shape, initial, scope, field, trainable)(
        name=f"{scope.name or scope.kind}.{field}"
    )


def _state(scope: Scope, field: str, shape: tuple[int, ...], value: float, dtype: DType) -> Node:
    return State(dtype, shape, Constant(value), scope, field)(name=f"{scope.name or scope.kind}.{field}")


def linear(
    x: Node,
    features: int,
    *,
    name: str | None = None,
    bias: bool | Node = True,
    weight: Node | Initialiser | float | None = None,
    initial_bias: Initialiser | float | None = None,
    trainable: bool = True,
) -> Node:
    """Return ``x @ weight.T + bias`` with weight (features, in) and bias (features,).

    Shapes: x (..., in) gives (..., features). Initial values: Uniform(+-1/sqrt(in)), as PyTorch.
    ``weight`` may be an initialiser, or another layer's tensor to share.

    Raises:
        ShapeError: x has no axes, or a shared weight does not fit.
    """
    if x.rank < 1 or not isinstance(x.shape[-1], int):
        raise located(ShapeError, "linear", name, f"expected (..., in), got {shape_text(x.shape)}")
    inner = x.shape[-1]
    scope = Scope("linear", name)
    if isinstance(weight, Node):
        if weight.shape != (features, inner):
            message = f"expected (N, {weight.shape[-1]}), got {shape_text(x.shape)}"
            raise located(ShapeError, "linear", name, message)
        matrix = weight
    else:
        initial = Uniform() if weight is None else as_initialiser(weight)
        matrix = _parameter(scope, "weight", (features, inner), initial, x.dtype, trainable)
    rows = reshape(x, (product(x.shape[:-1]), inner)) if x.rank != 2 else x
    out = MatMul(False, True)(rows, matrix, name=name)
    if isinstance(bias, Node) or bias:
        start = Uniform(fan_in=inner) if initial_bias is None else as_initialiser(initial_bias)
        vector = (
            bias
            if isinstance(bias, Node)
            else _parameter(scope, "bias", (features,), start, x.dtype, trainable)
        )
        out = out + vector
    return reshape(out, (*x.shape[:-1], features))


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
    weight: Node | Initialiser | float | None = None,
    initial_bias: Initialiser | float | None = None,
    trainable: bool = True,
) -> Node:
    """Return the 2-D cross-correlation of x (n, c, h, w) with weights (channels, c/groups, kh, kw).

    ``padding`` is an int, a pair, ((top, bottom), (left, right)) or ``"same"`` (stride 1).
    Initial values: Uniform(+-1/sqrt(fan_in)), as PyTorch.

    Raises:
        ShapeError: x is no image tensor, channels do not divide into groups, the kernel does not fit.
    """
    if x.rank != 4 or not isinstance(x.shape[1], int):
        raise located(ShapeError, "conv2d", name, f"expected (N, C, H, W), got {shape_text(x.shape)}")
    kh, kw = _pair(kernel, "kernel")
    strides, dilations = _pair(stride, "stride"), _pair(dilation, "dilation")
    if min(kh, kw, *strides, *dilations, channels, groups) < 1:
        raise located(
            RangeError, "conv2d", name, "kernel, stride, dilation, channels and groups must be positive"
        )
    if x.shape[1] % groups or channels % groups:
        message = f"{x.shape[1]} and {channels} channels do not divide into {groups} groups"
        raise located(ShapeError, "conv2d", name, message)
    geometry = ConvGeometry(
        strides, _resolve_padding(padding, (kh, kw), strides, dilations), dilations, groups
    )
    scope = Scope("conv2d", name)
    shape = (channels, x.shape[1] // groups, kh, kw)
    initial = Uniform() if weight is None or isinstance(weight, Node) else as_initialiser(weight)
    kernels = (
        weight
        if isinstance(weight, Node)
        else _parameter(scope, "weight", shape, initial, x.dtype, trainable)
    )
    out = Conv2d(geometry)(x, kernels, name=name)
    if isinstance(bias, Node) or bias:
        start = Uniform(fan_in=shape[1] * kh * kw) if initial_bias is None else as_initialiser(initial_bias)
        vector = (
            bias
            if isinstance(bias, Node)
            else _parameter(scope, "bias", (channels,), start, x.dtype, trainable)
        )
        out = out + reshape(vector, (channels, 1, 1))
    return out


def _resolve_padding(padding: Padding | str, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    if padding == "same":
        if stride != (1, 1):
            raise RangeError("conv2d: padding 'same' needs stride 1")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    if padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(padding, str):
        raise RangeError(f"conv2d: padding must be numbers, 'same' or 'valid', got {padding!r}")
    pads = _paddings(padding)
    if min(*pads[0], *pads[1]) < 0:
        raise RangeError(f"conv2d: padding must not be negative, got {padding!r}")
    return pads


def max_pool2d(
    x: Node,
    kernel: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
) -> Node:
    """Return the maximum over windows, with PyTorch's rules; the stride defaults to the kernel."""
    size = _pair(kernel, "kernel")
    geometry = pool_geometry(
        x.shape, size, size if stride is None else _pair(stride, "stride"), _pair(padding, "padding"),
        _pair(dilation, "dilation"), ceil_mode,
    )  # fmt: skip
    return MaxPool2d(geometry)(x)


def avg_pool2d(
    x: Node,
    kernel: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    """Return the mean over windows, with PyTorch's rules; the stride defaults to the kernel."""
    size = _pair(kernel, "kernel")
    geometry = pool_geometry(
        x.shape, size, size if stride is None else _pair(stride, "stride"), _pair(padding, "padding"),
        (1, 1), ceil_mode,
    )  # fmt: skip
    return AvgPool2d(geometry, count_include_pad, divisor_override)(x)


def flatten(x: Node, start: int = 1) -> Node:
    """Return x with the axes from ``start`` on as one."""
    return reshape(x, (*x.shape[:start], product(x.shape[start:])))


def dropout(x: Node, p: float = 0.5) -> Node:
    """Return x in inference; in training each element is 0 with probability p, else x/(1-p).

    The mask depends on seed, step, layer and element alone, and is computed again in the backward pass
    instead of being stored. Source: Srivastava et al. 2014, in the inverted form of PyTorch.

    Raises:
        RangeError: p is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise RangeError(f"dropout: p must be in [0, 1], got {p}")
    if p == 0:
        return x
    if p == 1:
        return mode_switch(x * 0.0, x)
    noise = RandomUniform(x.dtype, x.shape, RandomKey())()
    mask = cast(greater_equal(noise, p), x.dtype) * (1 / (1 - p))
    return mode_switch(x * mask, x)


def batch_norm(
    x: Node,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = True,
    track: bool = True,
    name: str | None = None,
) -> Node:
    """Return x normalised per channel (axis 1), for (n, c) and (n, c, ...) alike.

    Training uses the batch's mean and biased variance and moves the running statistics by ``momentum``
    towards the batch's mean and unbiased variance; inference uses the running statistics.
    Source: Ioffe and Szegedy 2015; conventions of torch.nn.BatchNorm2d.

    Raises:
        ShapeError: x has no channel axis.
    """
    if x.rank < 2 or not isinstance(x.shape[1], int):
        raise located(ShapeError, "batch_norm", name, f"expected (N, C, ...), got {shape_text(x.shape)}")
    channels = x.shape[1]
    axes = (0, *range(2, x.rank))
    shape = (1, channels, *[1] * (x.rank - 2))
    scope = Scope("batch_norm", name)
    centre = mean(x, axes, keepdims=True)
    deviation = x - centre
    # The gradient through the mean inside the variance is zero: the deviations sum to zero.
    variance = mean(square(x - stop_gradient(centre)), axes, keepdims=True)
    normal = deviation * rsqrt(variance + eps)
    if affine:
        gamma = reshape(_parameter(scope, "weight", (channels,), Constant(1.0), x.dtype), shape)
        beta = reshape(_parameter(scope, "bias", (channels,), Constant(0.0), x.dtype), shape)
    if not track:
        return normal * gamma + beta if affine else normal
    running_mean = _state(scope, "running_mean", (channels,), 0.0, x.dtype)
    running_var = _state(scope, "running_var", (channels,), 1.0, x.dtype)
    count = extent(product(x.shape[a] for a in axes), x)
    unbiased = variance * (count / (count - 1))
    new_mean = running_mean * (1 - momentum) + reshape(centre, (channels,)) * momentum
    new_var = running_var * (1 - momentum) + reshape(unbiased, (channels,)) * momentum
    trained = normal * gamma + beta if affine else normal
    trained = updating(
        updating(trained, running_mean, stop_gradient(new_mean)), running_var, stop_gradient(new_var)
    )
    scale = rsqrt(reshape(running_var, shape) + eps)
    scale = scale * gamma if affine else scale
    shift = -reshape(running_mean, shape) * scale
    return mode_switch(trained, mul(x, scale) + (shift + beta if affine else shift))


def layer_norm(
    x: Node,
    axes: int = 1,
    *,
    eps: float = 1e-5,
    affine: bool = True,
    bias: bool = True,
    name: str | None = None,
) -> Node:
    """Return x normalised over its last ``axes`` axes. Source: Ba et al. 2016; torch.nn.LayerNorm.

    Raises:
        ShapeError: x has fewer axes, or the batch is among them.
    """
    shape = tuple(d for d in x.shape[x.rank - axes :] if isinstance(d, int))
    if not 1 <= axes <= x.rank or len(shape) != axes:
        message = f"cannot normalise over the last {axes} axes of {shape_text(x.shape)}"
        raise located(ShapeError, "layer_norm", name, message)
    over = tuple(range(x.rank - axes, x.rank))
    centre = mean(x, over, keepdims=True)
    variance = mean(square(x - stop_gradient(centre)), over, keepdims=True)
    out = (x - centre) * rsqrt(variance + eps)
    if not affine:
        return out
    scope = Scope("layer_norm", name)
    out = out * _parameter(scope, "weight", shape, Constant(1.0), x.dtype)
    return out + _parameter(scope, "bias", shape, Constant(0.0), x.dtype) if bias else out


def embedding(
    index: Node, rows: int, width: int, *, name: str | None = None, weight: Node | Initialiser | None = None
) -> Node:
    """Return the rows of a table (rows, width) at integer indices: shape ``index.shape + (width,)``.

    An index outside 0..rows-1 is refused before anything runs.
    """
    scope = Scope("embedding", name)
    if isinstance(weight, Node):
        table = weight
    else:
        table = _parameter(scope, "weight", (rows, width), weight or Normal(), "float32")
    return take(table, bounded(index, 0, rows))


def adaptive_avg_pool2d(x: Node, out: int | Pair) -> Node:
    """Return the mean over windows chosen such that the result has the given height and width.

    Window i of n over an extent s covers floor(i*s/n) to ceil((i+1)*s/n), as in PyTorch.
    """
    height, width = _pair(out, "out")
    if x.rank != 4 or not isinstance(x.shape[2], int) or not isinstance(x.shape[3], int):
        raise located(
            ShapeError, "adaptive_avg_pool2d", None, f"expected (N, C, H, W), got {shape_text(x.shape)}"
        )
    h, w = x.shape[2], x.shape[3]
    if (height, width) == (1, 1):
        return mean(x, (2, 3), keepdims=True)
    if h % height == 0 and w % width == 0:
        return avg_pool2d(x, (h // height, w // width))

    def averaging(size: int, count: int) -> np.ndarray:
        weights = np.zeros((size, count))
        for k in range(count):
            begin, end = k * size // count, math.ceil((k + 1) * size / count)
            weights[begin:end, k] = 1 / (end - begin)
        return weights

    columns = matmul(x, constant(averaging(w, width), x.dtype))
    return matmul(constant(averaging(h, height).T.copy(), x.dtype), columns)


def global_avg_pool2d(x: Node) -> Node:
    """Return the mean over height and width, which stay with extent 1."""
    return adaptive_avg_pool2d(x, 1)


def global_max_pool2d(x: Node) -> Node:
    """Return the maximum over height and width, which stay with extent 1."""
    if x.rank != 4 or not isinstance(x.shape[2], int) or not isinstance(x.shape[3], int):
        raise located(
            ShapeError, "global_max_pool2d", None, f"expected (N, C, H, W), got {shape_text(x.shape)}"
        )
    return max_pool2d(x, (x.shape[2], x.shape[3]))


__all__ = [
    "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "conv2d", "dropout", "embedding", "flatten",
    "global_avg_pool2d", "global_max_pool2d", "layer_norm", "linear", "max_pool2d",
]  # fmt: skip
