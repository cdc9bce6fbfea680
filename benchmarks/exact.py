"""An arena plan by constraint programming, to hold the planner's against: exact, if it is given the time.

Every buffer is a rectangle whose steps are fixed and whose address is not; no two overlap, and the highest end is as
low as can be. A search over time limits depends on the machine, which the compiler's plans must not; so this is
no part of graphc. It needs OR-Tools: pip install -e '.[exact]'

Source: the model is the usual one for packing rectangles of which one side is fixed, two-dimensional NoOverlap with
the redundant Cumulative of the bytes alive.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence

from graphc.memory import ArenaPlan, Interval
from graphc.memory.interval import round_up


def installed() -> bool:
    """Return whether OR-Tools is there."""
    return importlib.util.find_spec("ortools") is not None


def plan_exactly(intervals: Sequence[Interval], start: ArenaPlan, seconds: float) -> tuple[ArenaPlan, bool]:
    """Return the best plan found in so many seconds, no larger than ``start``, and whether none is smaller."""
    from ortools.sat.python import cp_model

    bound = start.lower_bound_bytes
    if start.arena_bytes == bound:
        return start, True
    sizes = [round_up(i.size, start.alignment) for i in intervals]
    unit = math.gcd(*sizes)  # all addresses of a plan in which nothing can drop are sums of sizes
    model = cp_model.CpModel()
    height = model.new_int_var(bound // unit, start.arena_bytes // unit, "height")
    offsets, spans, places = [], [], []
    for number, (interval, size) in enumerate(zip(intervals, sizes, strict=True)):
        offset = model.new_int_var(0, (start.arena_bytes - size) // unit, f"offset{number}")
        steps = interval.upper - interval.lower
        spans.append(model.new_fixed_size_interval_var(interval.lower, steps, f"span{number}"))
        places.append(model.new_fixed_size_interval_var(offset, size // unit, f"place{number}"))
        model.add(offset + size // unit <= height)
        model.add_hint(offset, start.offsets[number] // unit)
        offsets.append(offset)
    model.add_no_overlap_2d(spans, places)
    model.add_cumulative(spans, [size // unit for size in sizes], height)
    model.minimize(height)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return start, False
    found = ArenaPlan(tuple(intervals), tuple(solver.value(o) * unit for o in offsets), start.alignment)
    return min(found, start, key=lambda plan: plan.arena_bytes), status == cp_model.OPTIMAL
