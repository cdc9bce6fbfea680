"""Max pooling in the kernel of the convolution before it: which windows a kernel can reach.

Small windows that lie side by side are pooled in the registers' tile of a direct convolution. All others are pooled
from some rows of the result, vectors of channels on a thread's stack: the result never exists as a whole.
"""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.ops.conv2d import Conv2d
from graphc.ops.packed import PackedConv2d
from graphc.ops.pool2d import PoolGeometry
from graphc.ops.winograd import TILE, WinogradConv2d, WinogradSpec
from graphc.types import Shape

_TAPS_IN_REGISTERS = 9
_TAPS = 25  # of a window, each of which is a line of code


def pools_register_tiles(g: PoolGeometry, image: Shape) -> bool:
    """Whether windows over an image are whole within tiles of sums, which are cut along them."""
    return g.tiles_inside(image) and g.area <= _TAPS_IN_REGISTERS


def pools_winograd_tiles(spec: WinogradSpec, g: PoolGeometry) -> bool:
    """Whether every window lies whole within one of Winograd's tiles of 4 x 4 results."""
    whole = g.tiles_inside((spec.n, spec.o, spec.oh, spec.ow)) and g.area <= _TAPS
    return whole and all(size > 1 and TILE % size == 0 for size in g.kernel)


def takes_pooling(anchor: Node, g: PoolGeometry, bare: bool) -> bool:
    """Whether the kernel of a convolution pools its result; ``bare`` says that nothing else comes before.

    What comes before is computed in the register tile.
    """
    if isinstance(anchor.op, (Conv2d, PackedConv2d)) and pools_register_tiles(g, anchor.shape):
        return True
    if bare and isinstance(anchor.op, WinogradConv2d):
        spec = anchor.op.spec(anchor.type, *(i.type for i in anchor.inputs))
        return pools_winograd_tiles(spec, g)
    return False
