"""Boxes are stacked from the bottom up, each time on the lowest stretch of the skyline.

Where :mod:`graphc.memory.placement` takes a box and looks for an address, this takes an address and looks
for a box. The two fail on different nets, so trying both finds many more optimal plans than trying
more orders of either.

Source: the best-fit heuristic for strip packing of Burke, Kendall and Whitwell (Operations Research
52(4), 2004), used for the memory of neural nets by Sekiyama, Imai, Negishi and Kawachiya, "Profile-guided
memory optimization for deep neural networks" (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.memory.placement import Box, Effort, Placement


@dataclass(slots=True)
class _Stretch:
    """During ``[lower, upper)`` everything below ``height`` is taken or given up."""

    lower: int
    upper: int
    height: int


def stack(boxes: Sequence[Box], preference: Sequence[int], effort: Effort) -> Placement:
    """Place all boxes; of those that fit a stretch, the first in ``preference`` goes there."""
    offsets = [0] * len(boxes)
    height = 0
    waiting = list(preference)
    skyline = [_Stretch(min(b[0] for b in boxes), max(b[1] for b in boxes), 0)]
    while waiting:
        at = min(range(len(skyline)), key=lambda k: skyline[k].height)
        floor = skyline[at]
        effort.left -= len(waiting) + len(skyline)
        index = next((i for i in waiting if floor.lower <= boxes[i][0] and boxes[i][1] <= floor.upper), None)
        if index is None:
            _raise_to_neighbour(skyline, at)
            continue
        lower, upper, size = boxes[index]
        waiting.remove(index)
        offsets[index] = floor.height
        height = max(height, floor.height + size)
        pieces = (
            _Stretch(floor.lower, lower, floor.height),
            _Stretch(lower, upper, floor.height + size),
            _Stretch(upper, floor.upper, floor.height),
        )
        skyline[at : at + 1] = [piece for piece in pieces if piece.lower < piece.upper]
        _merge(skyline)
    return Placement(offsets, height)


def _raise_to_neighbour(skyline: list[_Stretch], at: int) -> None:
    """Give up the space above a stretch that no box fits on, up to its lower neighbour."""
    neighbours = [skyline[k].height for k in (at - 1, at + 1) if 0 <= k < len(skyline)]
    # A skyline of one stretch spans every lifetime, so any waiting box fits on it.
    assert neighbours
    skyline[at].height = min(neighbours)
    _merge(skyline)


def _merge(skyline: list[_Stretch]) -> None:
    """Join neighbours of equal height in place."""
    merged = skyline[:1]
    for stretch in skyline[1:]:
        if stretch.height == merged[-1].height:
            merged[-1].upper = stretch.upper
        else:
            merged.append(stretch)
    skyline[:] = merged
