"""Every buffer gets an offset in one arena that is as small as the effort allows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from graphc.errors import RangeError
from graphc.memory.interval import Interval, check_alignment, check_unique, round_up
from graphc.memory.placement import Box, Effort, Fit, Placement, place
from graphc.memory.plan import ArenaPlan
from graphc.memory.search import MOST_BOXES_FOR_ALL_ORDERS, squeaky_wheel, try_all_orders
from graphc.memory.skyline import stack

DEFAULT_EFFORT = 8_000_000
"""In comparisons of boxes: about a quarter of a second, and hardly ever used up."""

ORDERS = ("TW", "TUO", "TU", "TLW", "TOW", "TWA", "TAW", "TZ", "WAT", "A", "Z", "O", "W", "L", "U", "ZW")
"""The greedy orders, best first as measured on chains, residual nets and random lifetimes.

Each letter is a key, later letters break ties, and the largest comes first except for L:
T, the most bytes alive at any step of the lifetime; W, the steps lived; U, the last step; L, the first step;
A, size times steps lived; Z, the size; O, how many buffers overlap this one. The letters and the idea of
trying several combinations in turn are those of minimalloc (Moffitt, ASPLOS 2023).
"""

PREFERENCES = ("WZ", "Z", "A")
"""Which box the skyline heuristic prefers, in the same letters."""

SEARCH_STARTS = ("TW", "TUO", "TAW", "A")
"""The orders that the search starts from, in the same letters."""


def plan_arena(
    intervals: Sequence[Interval], *, alignment: int = 64, effort: int = DEFAULT_EFFORT, seed: int = 0
) -> ArenaPlan:
    """Every interval has an aligned offset, and no two alive at the same step overlap.

    The plan depends on the set of intervals, ``alignment``, ``effort`` and ``seed`` only: neither on the
    order of the intervals nor on the machine or how busy it is.

    Units: ``alignment`` in bytes, a power of two; ``effort`` in comparisons of buffers. An effort of 0
    takes the first greedy order.

    Raises: UnknownNameError for an id used twice; RangeError for an alignment that is not a power of two.
    """
    check_alignment(alignment)
    check_unique(intervals)
    if effort < 0:
        raise RangeError(f"arena planning: effort must not be negative, got {effort}")
    # Sorting by id makes every later tie a tie by id, whatever order the buffers came in.
    by_id = sorted(range(len(intervals)), key=lambda k: intervals[k].id)
    boxes = [(intervals[k].lower, intervals[k].upper, round_up(intervals[k].size, alignment)) for k in by_id]
    offsets = [0] * len(intervals)
    # The highest part decides the arena, so no part needs to be lower than the bound of another.
    goal = max(live_bytes(boxes)[1], default=0)
    for part in _independent_parts(boxes):
        share = Effort(effort * len(part) // len(boxes))
        placement = _plan_part([boxes[k] for k in part], goal, share, seed)
        goal = max(goal, placement.height)
        for k, offset in zip(part, placement.offsets, strict=True):
            offsets[by_id[k]] = offset
    return ArenaPlan(tuple(intervals), tuple(offsets), alignment)


def _independent_parts(boxes: Sequence[Box]) -> Iterator[list[int]]:
    """Yield the indices of boxes that share no step with any box of another part, each part sorted."""
    part: list[int] = []
    end = 0
    for k in sorted(range(len(boxes)), key=lambda k: boxes[k][0]):
        if part and boxes[k][0] >= end:
            yield sorted(part)
            part = []
        part.append(k)
        end = max(end, boxes[k][1])
    if part:
        yield sorted(part)


def _plan_part(boxes: Sequence[Box], goal: int, effort: Effort, seed: int) -> Placement:
    """Return the best placement found, or the first that is no higher than ``goal``."""
    orders = _Orders(boxes)
    best: Placement | None = None
    for trial in _constructions(boxes, orders, effort):
        if best is None or trial.height < best.height:
            best = trial
        if best.height <= goal or effort.spent:
            return best
    assert best is not None
    if len(boxes) <= MOST_BOXES_FOR_ALL_ORDERS:
        return try_all_orders(boxes, best, goal)
    # Where one start leads nowhere another often does, so that four short searches beat a long one.
    share = effort.left // len(SEARCH_STARTS)
    for letters in SEARCH_STARTS:
        best = squeaky_wheel(boxes, best, orders.sorted_by(letters), goal, Effort(share), seed)
    return best


def _constructions(boxes: Sequence[Box], orders: _Orders, effort: Effort) -> Iterator[Placement]:
    """Yield the placements that need no search, the most promising first."""
    yield place(boxes, orders.sorted_by(ORDERS[0]), Fit.FIRST, None, effort)
    for letters in PREFERENCES:
        yield stack(boxes, orders.sorted_by(letters), effort)
    for letters in ORDERS:
        for fit in Fit:
            yield place(boxes, orders.sorted_by(letters), fit, None, effort)


class _Orders:
    """The boxes can be sorted by any of the letters that ``ORDERS`` explains."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        """Compute every key of every box once; the smallest key goes first."""
        steps, live = live_bytes(boxes)
        spans = [(bisect_left(steps, lower), bisect_left(steps, upper)) for lower, upper, _ in boxes]
        lowers = sorted(lower for lower, _, _ in boxes)
        uppers = sorted(upper for _, upper, _ in boxes)
        self._keys = {
            "T": [-max(live[first:last]) for first, last in spans],
            "W": [lower - upper for lower, upper, _ in boxes],
            "U": [-upper for _, upper, _ in boxes],
            "L": [lower for lower, _, _ in boxes],
            "A": [(lower - upper) * size for lower, upper, size in boxes],
            "Z": [-size for _, _, size in boxes],
            # Negated: those that start before the end, less those that ended before the start.
            "O": [bisect_right(uppers, lower) - bisect_left(lowers, upper) for lower, upper, _ in boxes],
        }

    def sorted_by(self, letters: str) -> list[int]:
        """Return the indices of the boxes; boxes equal in all ``letters`` stay in index order."""
        columns = [self._keys[letter] for letter in letters]
        rows = list(zip(*columns, strict=True))
        return sorted(range(len(rows)), key=rows.__getitem__)


def live_bytes(boxes: Sequence[Box]) -> tuple[list[int], list[int]]:
    """Return the steps at which the set of living boxes changes, and the bytes alive from each on."""
    change: dict[int, int] = {}
    for lower, upper, size in boxes:
        change[lower] = change.get(lower, 0) + size
        change[upper] = change.get(upper, 0) - size
    steps = sorted(change)
    return steps, list(accumulate(change[step] for step in steps))
