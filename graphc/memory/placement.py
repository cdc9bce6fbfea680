"""Boxes are put one after the other at the lowest address that is free during their whole lifetime.

A box is an interval with the names taken off: ``(lower, upper, size)``, the size already rounded up to
the alignment. Offsets are then sums of sizes, and so aligned by themselves.

The order decides the quality. For every set of boxes some order makes first fit optimal: take the boxes
of an optimal plan by rising offset, and each one drops at least as low as it was. Searching plans is
therefore searching orders, which is what :mod:`graphc.memory.search` does.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

Box = tuple[int, int, int]
"""``(lower, upper, size)``"""

_Placed = tuple[int, int, int, int]
"""``(offset, end, lower, upper)``; a list of them stays sorted by offset."""

_CALL_COST = 20
"""What placing one box costs besides the comparisons, in comparisons (measured on CPython)."""


class Fit(Enum):
    """Which of the free gaps a box takes."""

    FIRST = "the lowest that is large enough"
    BEST = "the tightest that is large enough; the lowest of these"


@dataclass(slots=True)
class Effort:
    """A budget of work, counted in compared boxes.

    Counting work, never time, is what makes the plan the same on every machine.
    """

    left: int

    @property
    def spent(self) -> bool:
        """Tell whether nothing is left."""
        return self.left <= 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the boxes went.

    ``overflow`` is None when every box ended at or below the limit. Otherwise it is the position in
    the order of the first box that did not, and the placement is of no use.
    """

    offsets: list[int]
    height: int
    overflow: int | None = None


def place(
    boxes: Sequence[Box], order: Sequence[int], fit: Fit, limit: int | None, effort: Effort
) -> Placement:
    """Place ``boxes`` in ``order`` and stop at the first one that would end above ``limit``."""
    find = _first_fit if fit is Fit.FIRST else _best_fit
    offsets = [0] * len(boxes)
    placed: list[_Placed] = []
    height = 0
    overflow = None
    for position, index in enumerate(order):
        lower, upper, size = boxes[index]
        offset = find(placed, lower, upper, size)
        end = offset + size
        if limit is not None and end > limit:
            overflow = position
            break
        offsets[index] = offset
        height = max(height, end)
        insort(placed, (offset, end, lower, upper))
    done = len(placed) + 1
    effort.left -= done * done // 2 + done * _CALL_COST
    return Placement(offsets, height, overflow)


def _first_fit(placed: Sequence[_Placed], lower: int, upper: int, size: int) -> int:
    """Return the lowest offset with ``size`` free bytes throughout ``[lower, upper)``."""
    free = 0  # no gap below this is large enough
    for offset, end, other_lower, other_upper in placed:
        if other_lower < upper and lower < other_upper:
            if offset - free >= size:
                return free
            if end > free:  # max() would be a call in the innermost loop
                free = end
    return free


def _best_fit(placed: Sequence[_Placed], lower: int, upper: int, size: int) -> int:
    """Return the start of the tightest gap with ``size`` free bytes throughout ``[lower, upper)``.

    The open space above everything counts as the widest gap.
    """
    free = 0
    tightest: int | None = None
    start = 0
    for offset, end, other_lower, other_upper in placed:
        if other_lower < upper and lower < other_upper:
            gap = offset - free
            if gap >= size and (tightest is None or gap < tightest):
                tightest, start = gap, free
            if end > free:
                free = end
    return free if tightest is None else start
