"""How a device's product is divided into tiles of its results and shares of its depth.

A tile is chosen by a cost model, unless the kernel says which. The tiles that are worth measuring are
listed here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.emit.grid import MOST_BLOCKS, THREADS
from graphc.program.ir import Tile

_TILES = ((128, 128, 2), (128, 64, 2), (64, 128, 2), (64, 64, 1), (64, 32, 1), (32, 64, 1), (32, 32, 1))
"""Rows and columns of a block; and patches of 4 x 4 sums, one below the other and beside each other, of a thread."""
_MEASURED = ((64, 64, 2),)
"""Tiles that are taken only where they were measured to be faster."""
_SHARED = 48 * 1024  # bytes that a block may have without asking
_WIDEST = 8  # patches of sums times bytes of one, beside which a thread's registers hold what is on its way
_SLICE = 16  # steps of the depth that are in shared memory together, at the most
_TAKEN = 8  # elements of an operand that a thread reads one by one, at computed places, before it uses them
_MULTIPROCESSORS = 132  # of a large device
_READ = 32  # multiplications of a thread for which it could read an element
_BLOCKS = 2 * _MULTIPROCESSORS  # that keep it busy: each has room for several
_LEAST_DEPTH = 128  # of a share: it reads more of its operands then than it writes sums
_TRIED = 5  # tiles that are measured, the cost model's own among them


@dataclass(frozen=True)
class Problem:
    """A product at the largest batch: its extents, and the bytes of a result and of what is multiplied.

    ``gathers`` says that the elements of an operand are read one by one.
    """

    rows: int
    columns: int
    depth: int
    planes: int
    itemsize: int
    element: int
    gathers: bool


@dataclass(frozen=True)
class Tiling:
    """How a product is divided: a block's rows and columns, the shares of the depth, and how long each is."""

    height: int
    width: int
    patches: int
    down: int
    across: int
    shares: int
    length: int

    @property
    def threads(self) -> int:
        """How many threads a block has."""
        return self.height * self.width // (4 * self.patches) ** 2

    @property
    def tile(self) -> Tile:
        """The same as a kernel's choice."""
        return Tile(self.height, self.width, self.patches, self.shares)


def tiling(problem: Problem, chosen: Tile | None = None) -> Tiling:
    """Return the chosen tile or, where there is none or it does not fit, the one that is expected to be fastest."""
    if chosen is not None:
        sizes = (chosen.rows, chosen.columns, chosen.patches)
        for _, found in _possible(problem, (sizes,) if sizes in (*_TILES, *_MEASURED) else (), chosen.shares):
            return found
    return max(_possible(problem, _TILES), key=lambda pair: pair[0])[1]


def tiles_to_measure(problem: Problem) -> list[Tile]:
    """Return the cost model's choice, then the tiles that it likes next best, and more or fewer shares."""
    first = tiling(problem)
    ranked = sorted(_possible(problem, (*_TILES, *_MEASURED)), key=lambda pair: -pair[0])
    others = [found for _, found in ranked[:_TRIED]]
    sizes = ((first.height, first.width, first.patches),)
    for shares in {1, first.shares // 2, 2 * first.shares} - {0}:
        others += [found for _, found in _possible(problem, sizes, shares)]
    return list(dict.fromkeys(found.tile for found in (first, *others)))


def _possible(
    problem: Problem, tiles: Sequence[tuple[int, int, int]], shares: int = 0
) -> list[tuple[float, Tiling]]:
    """Return those of the tiles that a product can have, with how good they are expected to be."""
    found = []
    for height, width, patches in tiles:
        if not _fits(height, problem.rows) or not _fits(width, problem.columns):
            continue
        if patches * problem.itemsize > _WIDEST:
            continue
        down, across = -(-problem.rows // height), -(-problem.columns // width)
        wanted = shares or min(_BLOCKS // (down * across * problem.planes), problem.depth // _LEAST_DEPTH)
        wanted = max(1, wanted)
        length = -(-problem.depth // (wanted * _SLICE)) * _SLICE
        made = Tiling(height, width, patches, down, across, -(-problem.depth // length), length)
        taken = slice_depth(made, problem.element) * max(height, width) // made.threads
        if _shared_bytes(made, problem) > _SHARED or (taken > _TAKEN and problem.gathers):
            continue
        if made.shares == 1 or problem.planes * made.shares <= MOST_BLOCKS:
            found.append((_value(problem, made), made))
    return found


def _value(problem: Problem, made: Tiling) -> float:
    """Return how good tiles are expected to be."""
    height, width = made.height, made.width
    useful = problem.rows * problem.columns / (made.down * height * made.across * width)
    multiplies = height * width / (height * width + _READ * (height + width))  # rather than reads
    blocks = made.down * made.across * problem.planes * made.shares
    busy = blocks * made.threads / (_MULTIPROCESSORS * THREADS)
    return useful * multiplies * busy / math.ceil(busy)


def _fits(size: int, count: int) -> bool:
    """Whether so many rows or columns need a tile of that size."""
    return size == 32 or count > size // 2


def slice_depth(made: Tiling, element: int) -> int:
    """Return how many steps of the depth are in shared memory together."""
    return _SLICE if made.patches * element < 8 else _SLICE // 2


def _shared_bytes(made: Tiling, problem: Problem) -> int:
    """Return how many bytes of shared memory a block has at the most: two slices, and a patch of every warp."""
    slices = 2 * slice_depth(made, problem.element) * (made.height + made.width + 16) * problem.element
    return slices + made.threads // 32 * 16 * 36 * problem.itemsize
