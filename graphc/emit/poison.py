"""Lines that fill with NaNs whatever is not alive in the arena, so that an error in a lifetime shows at once.

Without them such an error may hide: a buffer that is read after its end often still holds what it held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphc.emit.text import SUFFIX
from graphc.memory import ArenaPlan
from graphc.memory.interval import round_up
from graphc.types import DType


def poison(place: int, size: int | str, dtype: DType) -> str:
    """Return the statement that fills so many bytes of the arena."""
    return f"gc_poison_{SUFFIX[dtype]}(arena, {place}, {size});"


def poison_on_device(place: int, size: int) -> str:
    """Return the same for an arena of a device: all bits of a NaN may be set."""
    return f"cudaMemsetAsync(arena + {place}, 0xff, {size}, stream);"


def poison_dead(
    plan: ArenaPlan, offsets: Mapping[str, int], variables: Mapping[str, str], fill: Callable[[int, int], str]
) -> dict[int, list[str]]:
    """Return by the number of a call the statements that fill the buffers which die with it.

    ``variables`` says how the code calls each buffer, ``fill`` gives the statement for a place and a size. Sizes are
    those at the batch that was planned for, up to the next buffer: what lies between two buffers is nobody's.
    """
    found: dict[int, list[str]] = {}
    for interval in sorted(plan.intervals, key=lambda i: offsets[i.id]):
        place, size = offsets[interval.id], round_up(interval.size, plan.alignment)
        line = f"{fill(place, size)} /* {variables[interval.id]} */"
        found.setdefault(interval.upper - 1, []).append(line)
    return found
