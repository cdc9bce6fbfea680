"""Convolutions and transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.contraction import whole_matmul
from graphc.onnx.rules.sampling import round_to_even
from graphc.onnx.rules.windows import Axis, axes, fitted, numbers, spatial, tap
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.onnx.values import Known, Value
from graphc.ops import elementwise as ew
from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, ConvGeometry
from graphc.ops.movement import Place, concat, pad, reshape, transpose
from graphc.types import Size, product

_POINT = Axis(1, 1, 1, 1, (0, 0), 1)


def _kernel(site: Site, weight: Node) -> list[int]:
    """Return the extents of the kernel, which the node may repeat."""
    kernel = spatial(weight.shape)
    if list(site.get("kernel_shape") or kernel) != kernel or site.get("group", 1) < 1:
        raise UnsupportedError(
            f"kernel_shape {site.get('kernel_shape')} and {site.get('group', 1)} groups for weights {weight.type}"
        )
    return kernel


@rule("Conv")
def conv(site: Site) -> Node:
    """One to three spatial axes; ``pads`` holds all begins before all ends."""
    x, weight = site.tensor(0), site.tensor(1)
    windows = axes(site, spatial(x.shape), _kernel(site, weight))
    return _biased(site, convolve(x, weight, windows, site.get("group", 1), site.label), 2)


@rule("CausalConvWithState")
def causal_conv(site: Site) -> list[Value]:
    """A depthwise convolution of what came before and the input; what the next call needs is the second result."""
    x, weight = site.tensor(0), site.tensor(1)
    (size,), (kernel,) = spatial(x.shape, (1,)), spatial(weight.shape, (1,))
    channels, activation = x.shape[1], site.get("activation", "none")
    if activation not in ("none", "silu", "swish") or not isinstance(channels, int):
        raise UnsupportedError(f"activation {activation!r} of {channels} channels")
    if kernel > 1:
        x = concat([site.tensor(3), x], 2) if site.has(3) else pad(x, ((0, 0), (0, 0), (kernel - 1, 0)))
    window = Axis(size + kernel - 1, kernel, 1, 1, (0, 0), size)
    out = _biased(site, convolve(x, weight, [window], channels, site.label), 2)
    return [out if activation == "none" else ew.silu(out), _state(x, size, kernel - 1)]


def _state(x: Node, size: int, length: int) -> Value:
    """Return the last elements, of which there may be none."""
    if length:
        return fitted(x, 2, size, length)
    batch, channels = x.shape[:2]
    if not isinstance(batch, int) or not isinstance(channels, int):
        raise UnsupportedError("a state without elements whose shape depends on the run-time batch")
    return Known(np.zeros((batch, channels, 0), x.dtype))


def _biased(site: Site, out: Node, position: int) -> Node:
    if not site.has(position):
        return out
    return out + reshape(site.tensor(position), (-1, *[1] * (out.rank - 2)))


def convolve(x: Node, weight: Node, windows: Sequence[Axis], groups: int, name: str | None = None) -> Node:
    """Return a convolution over one to three spatial axes."""
    if len(windows) == 1:
        flat = convolve(_line(x), _line(weight), (_POINT, *windows), groups, name)
        return reshape(flat, (*flat.shape[:2], flat.shape[3]))
    if len(windows) == 3:
        return _deep(x, weight, windows, groups)
    return Conv2d(_geometry(windows, groups))(x, weight, name=name)


def _geometry(windows: Sequence[Axis], groups: int) -> ConvGeometry:
    y, x = windows
    return ConvGeometry((y.stride, x.stride), (y.pads, x.pads), (y.dilation, x.dilation), groups)


def _line(x: Node) -> Node:
    """Return a tensor with one spatial axis as an image of one row."""
    return reshape(x, (*x.shape[:2], 1, x.shape[2]))


def _deep(x: Node, weight: Node, windows: Sequence[Axis], groups: int) -> Node:
    """Convolve planes, whose channels are those of all planes that the kernel meets."""
    depth = windows[0]
    n, channels, _, h, w = x.shape
    o, per_group, kd, kh, kw = weight.shape
    if channels != per_group * groups:
        raise UnsupportedError(f"{channels} channels for {groups} groups of {per_group}")
    planes = transpose(pad(x, ((0, 0), (0, 0), depth.pads, (0, 0), (0, 0))), (0, 2, 1, 3, 4))
    met = [
        reshape(tap(planes, 1, depth, i), (n, depth.out, groups, per_group, h, w))
        for i in range(depth.kernel)
    ]
    merged = reshape(concat(met, 3), (n * depth.out, per_group * groups * kd, h, w))
    kernel = reshape(transpose(weight, (0, 2, 1, 3, 4)), (o, kd * per_group, kh, kw))
    out = Conv2d(_geometry(windows[1:], groups))(merged, kernel)
    return transpose(reshape(out, (n, depth.out, *out.shape[1:])), (0, 2, 1, 3, 4))


@rule("ConvTranspose")
def conv_transpose(site: Site) -> Node:
    """The gradient of a convolution for its input: every element spreads its kernel over the result."""
    x, weight, groups = site.tensor(0), site.tensor(1), site.get("group", 1)
    windows = _spread(site, spatial(x.shape), _kernel(site, weight))
    return _biased(site, spread(x, weight, windows, groups), 2)


def _spread(site: Site, sizes: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    """Return the windows of the convolution that is transposed: ``size`` is the extent of the result."""
    rank, auto = len(sizes), site.get("auto_pad", "NOTSET") or "NOTSET"
    if len(kernel) != rank:
        raise UnsupportedError(f"kernel {list(kernel)} for {rank} spatial axes")
    strides, dilations = numbers(site, "strides", rank, 1), numbers(site, "dilations", rank, 1)
    extra, pads = numbers(site, "output_padding", rank, 0), numbers(site, "pads", 2 * rank, 0)
    given = [int(d) for d in site.get("output_shape") or ()][-rank:]
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER") or min(strides + dilations) < 1:
        raise UnsupportedError(f"auto_pad={auto!r}, strides {strides}, dilations {dilations}")
    found = []
    for a, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        whole = s * (size - 1) + extra[a] + d * (k - 1) + 1
        around = (pads[a], pads[rank + a])
        if given or auto in ("SAME_UPPER", "SAME_LOWER"):
            result = given[a] if given else size * s
            if whole - result < -1 and not given:
                raise UnsupportedError(f"auto_pad={auto!r} where the stride leaves gaps between the kernels")
            total = max(0, whole - result)
            less, more = total // 2, total - total // 2
            around = (less, more) if auto == "SAME_UPPER" else (more, less)
        else:
            result = whole - sum(around)
        if result < 1:
            raise UnsupportedError(f"an extent of {result} remains of {whole} less padding {around}")
        found.append(Axis(result, k, s, d, around, size))
    return found


def spread(x: Node, weight: Node, windows: Sequence[Axis], groups: int) -> Node:
    """Return a transposed convolution; a window's ``size`` is the extent of the result."""
    if len(windows) == 1:
        flat = spread(_line(x), _line(weight), (_POINT, *windows), groups)
        return reshape(flat, (*flat.shape[:2], flat.shape[3]))
    if len(windows) == 3:
        return _spread_deep(x, weight, windows, groups)
    per_group = weight.shape[1]
    assert isinstance(per_group, int)
    plain = [min(w.pads) >= 0 and (w.size + sum(w.pads) - w.reach) // w.stride + 1 == w.out for w in windows]
    inner = [w if fits else _uncropped(w) for w, fits in zip(windows, plain, strict=True)]
    shape = (x.shape[0], per_group * groups, *(w.size for w in inner))
    out = Conv2dBackwardData(_geometry(inner, groups), shape)(x, weight)
    for axis, (w, fits) in enumerate(zip(windows, plain, strict=True), 2):
        out = out if fits else fitted(out, axis, w.pads[0], w.size)
    return out


def _uncropped(w: Axis) -> Axis:
    return Axis((w.out - 1) * w.stride + w.reach, w.kernel, w.stride, w.dilation, (0, 0), w.out)


def _spread_deep(x: Node, weight: Node, windows: Sequence[Axis], groups: int) -> Node:
    """Spread planes, each over as many planes as the kernel has; add these where they meet."""
    depth, whole = windows[0], _uncropped(windows[0]).size
    n, channels, d, h, w = x.shape
    _, per_group, kd, kh, kw = weight.shape
    planes = reshape(transpose(x, (0, 2, 1, 3, 4)), (n * d, channels, h, w))
    kernel = reshape(transpose(weight, (0, 2, 1, 3, 4)), (channels, kd * per_group, kh, kw))
    out = spread(planes, kernel, windows[1:], groups)
    apart = reshape(out, (n, d, groups, kd, per_group, *out.shape[2:]))
    shape: tuple[Size, ...] = (n, whole, product((groups, per_group)), *out.shape[2:])
    placed = []
    for i in range(depth.kernel):
        plane = reshape(apart[:, :, :, i], (n, d, *shape[2:]))
        placed.append(Place(shape, (0, i * depth.dilation, 0, 0, 0), (1, depth.stride, 1, 1, 1), 0.0)(plane))
    total = fitted(reduce(ew.add, placed), 1, depth.pads[0], depth.size)
    return transpose(total, (0, 2, 1, 3, 4))


@rule("ConvInteger")
def conv_integer(site: Site) -> Node:
    """A convolution of whole numbers, each less its zero point."""
    x, weight = _whole(site, 0, 2, False), _whole(site, 1, 3, True)
    windows = axes(site, spatial(x.shape), _kernel(site, weight))
    return _whole_convolution(x, weight, windows, site.get("group", 1))


@rule("QLinearConv")
def quantised_conv(site: Site) -> Node:
    """The same for quantised numbers, whose result is scaled, rounded to even and kept within its dtype."""
    x, weight = _whole(site, 0, 2, False), _whole(site, 3, 5, True)
    windows = axes(site, spatial(x.shape), _kernel(site, weight))
    total = _biased(site, _whole_convolution(x, weight, windows, site.get("group", 1)), 8)
    channels = (-1, *[1] * len(windows))
    scales = [site.tensor(k) for k in (1, 4, 6)]
    x_scale, w_scale, y_scale = (reshape(s, channels if s.type.size != 1 else ()) for s in scales)
    scaled = ew.cast(total, x_scale.dtype) * (x_scale * w_scale / y_scale)
    dtype = site.tensor(7).dtype if site.has(7) else site.tensor(0).dtype
    low, high = (-128.0, 127.0) if str(dtype) == "int8" else (0.0, 255.0)
    zero = ew.cast(reshape(site.tensor(7), ()), x_scale.dtype) if site.has(7) else 0.0
    return ew.cast(ew.clip(round_to_even(ew.clip(scaled, -1e6, 1e6)) + zero, low, high), dtype)


def _whole(site: Site, position: int, zero: int, per_channel: bool) -> Node:
    """Return a quantised tensor as int32 less its zero point, of which weights may have one per output channel."""
    x = ew.cast(site.tensor(position), "int32")
    if not site.has(zero):
        return x
    point = ew.cast(site.tensor(zero), "int32")
    shape = () if point.type.size == 1 else (-1, *[1] * (x.rank - 1))
    if shape and not per_channel:
        raise UnsupportedError(f"a zero point of shape {point.shape} for the input")
    return x - reshape(point, shape)


def _whole_convolution(x: Node, weight: Node, windows: Sequence[Axis], groups: int) -> Node:
    """Return a convolution of int32 tensors, which is exact: all that windows meet, times the weights."""
    n, channels, o = x.shape[0], x.shape[1], weight.shape[0]
    if channels != weight.shape[1] * groups or not isinstance(o, int) or o % groups:
        raise UnsupportedError(f"{channels} channels for weights {weight.type} in {groups} groups")
    after = [max(0, (w.out - 1) * w.stride + w.reach - w.size - w.pads[0]) for w in windows]
    pads = [(w.pads[0], a) for w, a in zip(windows, after, strict=True)]
    met = [pad(x, ((0, 0), (0, 0), *pads))]
    for axis, w in enumerate(windows, 2):
        met = [tap(m, axis, w, i) for m in met for i in range(w.kernel)]
    out = [w.out for w in windows]
    stacked = concat([reshape(m, (n, channels, 1, product(out))) for m in met], 2)
    columns = reshape(stacked, (n, groups, -1, product(out)))
    total = whole_matmul(reshape(weight, (1, groups, o // groups, -1)), columns)
    return reshape(total, (n, o, *out))
