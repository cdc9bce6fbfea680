"""Max pooling in the kernel of the convolution before it: which windows a kernel can reach, and how.

Small windows that lie side by side are pooled in the register tile of a direct convolution, or within a tile of
Winograd's. For all others a task walks down the map (the result of full resolution). It computes the rows that the
next windows need as vectors of channels, on its thread's stack, and takes the maxima of all channels at once. Where
windows overlap, it keeps the rows that those after them need again. So the map never exists as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.graph.node import Node
from graphc.ops.conv2d import Conv2d
from graphc.ops.packed import PackedConv2d, PackedConvSpec
from graphc.ops.pool2d import PoolGeometry
from graphc.ops.winograd import TILE, WinogradConv2d, WinogradSpec
from graphc.types import Shape

_TAPS_IN_REGISTERS = 9
_TAPS = 25  # of a window, each of which is a line of code
# On a thread's stack: rows of the map, and what a task copies of a padded image. The more rows at a step, the fewer
# are copied again. The second numbers are for a step of a single row of windows.
_MAP_BYTES, _LARGEST_MAP = 2**16, 2**17
_TILE_BYTES, _LARGEST_TILE = 3 * 2**16, 2**18
_MANY_CHANNELS = 32  # lie far apart in memory: a task copies what it reads of so many
_TASKS = 8  # of an image, where blocks of channels are fewer
_AGAIN = 1 / 50  # of the rows of the map may be computed twice, where two tasks meet


def pools_register_tiles(g: PoolGeometry, image: Shape) -> bool:
    """Whether windows over an image are whole within tiles of sums, which are cut along them."""
    return g.tiles_inside(image) and g.area <= _TAPS_IN_REGISTERS


def pools_winograd_tiles(spec: WinogradSpec, g: PoolGeometry) -> bool:
    """Whether every window lies whole within one of Winograd's tiles of 4 x 4 results."""
    whole = g.tiles_inside((spec.n, spec.o, spec.oh, spec.ow)) and g.area <= _TAPS
    return whole and all(size > 1 and TILE % size == 0 for size in g.kernel)


def _shrinks(g: PoolGeometry) -> bool:
    """Whether the windows reach every pixel and halve the image at least: others are not worth a walk."""
    sizes = zip(g.kernel, g.stride, strict=True)
    return g.dilation == (1, 1) and g.area <= _TAPS and all(1 < step <= size for size, step in sizes)


@dataclass(frozen=True)
class Walk:
    """How tasks walk down the windows over a direct convolution: ``rows`` rows of windows at a step.

    ``length`` rows of windows are one task's, of which an image has ``parts``. ``copied`` says whether the task
    copies what it reads of the image at each step; then it may serve up to ``together`` blocks of channels, of each
    of which it keeps rows.
    """

    rows: int
    length: int
    parts: int
    copied: bool
    together: int


def walk(spec: PackedConvSpec, g: PoolGeometry) -> Walk | None:
    """Return how the windows over a direct convolution are pooled; None where its tiles are too large for that."""
    if not _shrinks(g):
        return None
    row_bytes = g.reach[1] * spec.lanes * spec.itemsize
    copied = bool(spec.border) or spec.c >= _MANY_CHANNELS

    def fits(rows: int, map_bytes: int, tile_bytes: int) -> bool:
        height = (rows - 1) * g.stride[0] + g.kernel[0]
        return height * row_bytes <= map_bytes and (not copied or spec.tile_bytes(height) <= tile_bytes)

    if not spec.border and copied:
        copied = fits(1, _LARGEST_MAP, _LARGEST_TILE)
    out, overlap = g.out[0], g.kernel[0] - g.stride[0]
    fitting = [r for r in range(1, out + 1) if fits(r, _MAP_BYTES, spec.tile_limit or _TILE_BYTES)]
    if not fitting and not fits(1, _LARGEST_MAP, _LARGEST_TILE):
        return None
    most = fitting[-1] if fitting else 1
    spare = int(_AGAIN * spec.oh / overlap) if overlap else out
    wanted = -(-_TASKS // -(-spec.o // spec.lanes))
    parts = min(wanted, 1 + spare, -(-out // most))
    length = -(-out // parts)
    together = max(1, _MAP_BYTES // (overlap * row_bytes)) if overlap else spec.o
    return Walk(-(-length // -(-length // most)), length, -(-out // length), copied, together)


def walks_winograd_tiles(spec: WinogradSpec, g: PoolGeometry) -> bool:
    """Whether a task can walk down the tiles of an image: these are transformed together, in whole groups of rows."""
    rows, (_, together, _) = spec.tiles[0], spec.groups
    whole = rows % together == 0 and spec.chunk % rows == 0 and TILE * together % g.stride[0] == 0
    row_bytes = (g.padding[1] + TILE * spec.tiles[1] + g.kernel[1]) * spec.lanes * 4
    return _shrinks(g) and whole and (TILE * together + g.kernel[0]) * row_bytes <= _LARGEST_MAP


def takes_pooling(anchor: Node, g: PoolGeometry, bare: bool) -> bool:
    """Whether the kernel of a convolution pools its result; ``bare`` says that nothing else comes before.

    What comes before is computed in the register tile.
    """
    op, types = anchor.op, [i.type for i in anchor.inputs]
    if isinstance(op, (Conv2d, PackedConv2d)) and pools_register_tiles(g, anchor.shape):
        return True
    if bare and isinstance(op, WinogradConv2d):
        spec = op.spec(anchor.type, *types)
        return pools_winograd_tiles(spec, g) or walks_winograd_tiles(spec, g)
    return bare and isinstance(op, PackedConv2d) and walk(op.spec(anchor.type, *types), g) is not None
