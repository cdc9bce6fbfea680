"""Convolutions and transposed convolutions."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops.conv2d import Conv2d, ConvGeometry
from graphc.ops.movement import reshape


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
