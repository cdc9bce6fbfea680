"""Orders are varied until the arena meets its lower bound or the effort is spent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from random import Random

from graphc.memory.placement import Box, Effort, Fit, Placement, place

MOST_BOXES_FOR_ALL_ORDERS = 7
"""Up to this many boxes all orders are tried (5040 for 7), which finds the true optimum."""

_TO_FRONT = 0.3
"""How often a box that did not fit goes to the very front instead of somewhere before its place."""


def try_all_orders(boxes: Sequence[Box], best: Placement, goal: int) -> Placement:
    """Return an optimal placement, or the first that is no higher than ``goal``.

    The work is the number of orders: for at most ``MOST_BOXES_FOR_ALL_ORDERS`` boxes.
    """
    uncounted = Effort(0)
    for order in permutations(range(len(boxes))):
        if best.height <= goal:
            break
        trial = place(boxes, order, Fit.FIRST, best.height - 1, uncounted)
        if trial.overflow is None:
            best = trial
    return best


def squeaky_wheel(
    boxes: Sequence[Box], best: Placement, start: Sequence[int], goal: int, effort: Effort, seed: int
) -> Placement:
    """Return a placement no higher than ``best``, found by moving boxes that did not fit to earlier places.

    The limit alternates between the goal and just below the best so far: aiming at the goal shows
    which boxes are really in the way, and aiming near gains a little where the goal is out of reach.

    Numerics: only ``Random.random`` is used, the one method whose sequence for a seed Python promises to
    keep from version to version.

    Source: "squeaky wheel" optimization, Joslin and Clements (JAIR 10, 1999).
    """
    random = Random(seed).random
    order = list(start)
    aim_at_goal = True
    while best.height > goal and not effort.spent:
        trial = place(boxes, order, Fit.FIRST, goal if aim_at_goal else best.height - 1, effort)
        aim_at_goal = not aim_at_goal
        if trial.overflow is None:
            best = trial
            continue
        box = order.pop(trial.overflow)
        order.insert(0 if random() < _TO_FRONT else int(random() * trial.overflow), box)
    return best
