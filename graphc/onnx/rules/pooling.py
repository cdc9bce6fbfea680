"""Pools, windowed and global."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.nn import avg_pool2d, max_pool2d
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops.reduce import mean


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
