"""Buffers with known lifetimes get fixed offsets in one arena, with a proof of how good the plan is.

Give :func:`plan_arena` one :class:`Interval` per buffer; the :class:`ArenaPlan` that comes back
knows every offset, the arena's size, and the lower bound that no plan of these lifetimes can beat.
"""

from graphc.memory.interval import Interval
from graphc.memory.plan import ArenaPlan, PlanNotes
from graphc.memory.planner import plan_arena

__all__ = ["ArenaPlan", "Interval", "PlanNotes", "plan_arena"]
