"""Convolutions, pools, matrix products and normalisations."""

from __future__ import annotations

from graphc.functional import log_softmax, softmax
from graphc.graph.node import Node
from graphc.nn import avg_pool2d, max_pool2d
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.conv2d import Conv2d, ConvGeometry
from graphc.ops.matmul import MatMul, matmul
from graphc.ops.movement import reshape
from graphc.ops.reduce import mean


@rule("Conv")
def conv(site: Site) -> Node:
    """Two spatial axes; ``pads`` holds all begins before all ends."""
    site.refuse("auto_pad", "NOTSET", "VALID")
    if site.rank(0) != 4:
        raise UnsupportedError(f"only two spatial axes, got shape {site.shape(0)}")
    top, left, bottom, right = site.get("pads", [0, 0, 0, 0])
    sy, sx = site.get("strides", [1, 1])
    dy, dx = site.get("dilations", [1, 1])
    geometry = ConvGeometry((sy, sx), ((top, bottom), (left, right)), (dy, dx), site.get("group", 1))
    out = Conv2d(geometry)(site.tensor(0), site.tensor(1), name=site.label)
    return out + reshape(site.tensor(2), (-1, 1, 1)) if site.has(2) else out


@rule("MaxPool")
def max_pool(site: Site) -> Node:
    """Windows of two spatial axes."""
    site.refuse("auto_pad", "NOTSET", "VALID")
    top, left, bottom, right = site.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise UnsupportedError("padding that differs between the sides")
    return max_pool2d(
        site.tensor(0), tuple(site.get("kernel_shape")), tuple(site.get("strides", [1, 1])), (top, left),
        tuple(site.get("dilations", [1, 1])), bool(site.get("ceil_mode", 0)),
    )  # fmt: skip


@rule("AveragePool")
def average_pool(site: Site) -> Node:
    """Windows of two spatial axes."""
    site.refuse("auto_pad", "NOTSET", "VALID")
    top, left, bottom, right = site.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise UnsupportedError("padding that differs between the sides")
    return avg_pool2d(
        site.tensor(0), tuple(site.get("kernel_shape")), tuple(site.get("strides", [1, 1])), (top, left),
        bool(site.get("ceil_mode", 0)), bool(site.get("count_include_pad", 0)),
    )  # fmt: skip


@rule("GlobalAveragePool")
def global_average_pool(site: Site) -> Node:
    """The mean over all spatial axes."""
    return mean(site.tensor(0), tuple(range(2, site.rank(0))), keepdims=True)


@rule("Gemm")
def gemm(site: Site) -> Node:
    """``alpha * op(A) op(B) + beta * C``."""
    product = MatMul(bool(site.get("transA", 0)), bool(site.get("transB", 0)))
    out = ew.mul(product(site.tensor(0), site.tensor(1), name=site.label), site.get("alpha", 1.0))
    return out + ew.mul(site.tensor(2), site.get("beta", 1.0)) if site.has(2) else out


@rule("MatMul")
def matrix_product(site: Site) -> Node:
    """As NumPy's."""
    return matmul(site.tensor(0), site.tensor(1))


@rule("BatchNormalization")
def batch_normalization(site: Site) -> Node:
    """Inference form: a scale and a shift per channel, from the statistics of the file."""
    site.refuse("training_mode", 0)
    shape = (-1, *[1] * (site.rank(0) - 2))
    weight, bias, average, variance = (reshape(site.tensor(k), shape) for k in range(1, 5))
    scale = weight * ew.rsqrt(variance + site.get("epsilon", 1e-5))
    return site.tensor(0) * scale + (bias - average * scale)


@rule("Softmax", "LogSoftmax")
def softmaxes(site: Site) -> Node:
    """Along one axis from version 13 on; before, over all axes from the given one on."""
    function = softmax if site.op == "Softmax" else log_softmax
    x = site.tensor(0)
    if site.version >= 13:
        return function(x, site.get("axis", -1))
    axis = site.get("axis", 1) % max(1, x.rank)
    return reshape(function(reshape(x, (*x.shape[:axis], -1)), -1), x.shape)
