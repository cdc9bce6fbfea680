"""An arena plan: where every buffer lies, and how close that is to the best possible."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from graphc.errors import DataError, GraphcError, RangeError, UnknownNameError
from graphc.memory.interval import Interval, check_alignment, check_unique, round_up

CSV_HEADER = ("id", "lower", "upper", "size", "offset")

MOST_NAMES = 8
"""How many buffers the table names as alive at the peak."""

T = TypeVar("T")

Ordering = Literal["lifetime", "size", "offset"]


class _Peak(NamedTuple):
    bytes: int
    step: int


@dataclass(frozen=True, slots=True)
class PlanNotes:
    """How the lifetimes of a plan came about.

    ``order`` names the order of the kernels. ``least_bytes`` is the least peak of live bytes over all orders, None
    where the search for it gave up. ``rewrites`` counts the changes that were made to save memory.
    """

    order: str = ""
    least_bytes: int | None = None
    rewrites: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Every interval has an offset, and intervals alive at the same step never share a byte.

    That is checked when the plan is made, wherever it comes from.

    Units: bytes. All totals count sizes rounded up to the alignment, which is what a buffer really
    takes; so does the lower bound.

    Raises: GraphcError when two buffers collide or one is misaligned.
    """

    intervals: tuple[Interval, ...]
    offsets: tuple[int, ...]
    alignment: int = 64
    notes: PlanNotes = PlanNotes()

    def __post_init__(self) -> None:
        """Check the promise of the class."""
        check_alignment(self.alignment)
        check_unique(self.intervals)
        if len(self.offsets) != len(self.intervals):
            buffers, offsets = _count(len(self.intervals), "buffer"), _count(len(self.offsets), "offset")
            raise GraphcError(f"arena plan: {buffers} but {offsets}")
        for interval, offset in zip(self.intervals, self.offsets, strict=True):
            if offset < 0 or offset % self.alignment:
                raise GraphcError(
                    f"arena plan: buffer {interval.id!r} at offset {offset}: expected a multiple of"
                    f" {self.alignment} that is not negative"
                )
        self._check_collisions()

    def _check_collisions(self) -> None:
        """Raise GraphcError when two buffers share a byte at some step.

        The buffers alive are kept sorted by address while time passes. As long as they do not collide,
        a new one can only collide with its two neighbours.
        """
        # False sorts before True: what ends at a step is gone before anything starts there.
        ends = [(interval.upper, False, k) for k, interval in enumerate(self.intervals)]
        starts = [(interval.lower, True, k) for k, interval in enumerate(self.intervals)]
        alive: list[tuple[int, int, int]] = []
        for step, begins, k in sorted(ends + starts):
            entry = (self.offsets[k], self._end(k), k)
            at = bisect_left(alive, entry)
            if not begins:
                del alive[at]
                continue
            for other in alive[max(at - 1, 0) : at + 1]:
                if entry[0] < other[1] and other[0] < entry[1]:
                    raise GraphcError(
                        f"arena plan: at step {step} buffer {self.intervals[k].id!r} at bytes"
                        f" [{entry[0]}, {entry[1]}) collides with buffer"
                        f" {self.intervals[other[2]].id!r} at bytes [{other[0]}, {other[1]})"
                    )
            alive.insert(at, entry)

    def _size(self, index: int) -> int:
        return round_up(self.intervals[index].size, self.alignment)

    def _end(self, index: int) -> int:
        return self.offsets[index] + self._size(index)

    # ------------------------------------------------------------------ the certificate

    @property
    def arena_bytes(self) -> int:
        """How many bytes the arena has."""
        return max((self._end(k) for k in range(len(self.intervals))), default=0)

    @property
    def lower_bound_bytes(self) -> int:
        """The most bytes alive at one step: no plan of these lifetimes needs fewer."""
        return self._peak().bytes

    @property
    def peak_step(self) -> int:
        """The first step at which ``lower_bound_bytes`` are alive (0 when there are no buffers)."""
        return self._peak().step

    @property
    def ratio(self) -> float:
        """Arena over lower bound; 1.0 means that the plan is proven optimal."""
        bound = self.lower_bound_bytes
        return self.arena_bytes / bound if bound else 1.0

    @property
    def alive_at_peak(self) -> tuple[str, ...]:
        """The ids of the buffers that make up the lower bound, in address order."""
        step = self.peak_step
        alive = [k for k, i in enumerate(self.intervals) if i.lower <= step < i.upper]
        return tuple(self.intervals[k].id for k in sorted(alive, key=self.offsets.__getitem__))

    @property
    def live_bytes(self) -> list[int]:
        """The bytes alive at each step, from step 0 to the last one that any buffer lives in."""
        return self._live(range(len(self.intervals)))

    @property
    def values_bound_bytes(self) -> int:
        """The most bytes of the graph's own values alive at one step: the lower bound without scratch."""
        return max(self._live(k for k, i in enumerate(self.intervals) if not i.scratch), default=0)

    def _live(self, indices: Iterable[int]) -> list[int]:
        change = [0] * (max((interval.upper for interval in self.intervals), default=0) + 1)
        for index in indices:
            change[self.intervals[index].lower] += self._size(index)
            change[self.intervals[index].upper] -= self._size(index)
        return list(accumulate(change))[:-1]

    @property
    def least_bound_bytes(self) -> int | None:
        """The least ``lower_bound_bytes`` over all orders of the kernels; None where that is not known."""
        return self.notes.least_bytes

    @property
    def total_bytes(self) -> int:
        """What the buffers would take if none shared memory."""
        return sum(self._size(k) for k in range(len(self.intervals)))

    @property
    def kept_bytes(self) -> int:
        """What is kept for the backward pass."""
        return sum(self._size(k) for k, interval in enumerate(self.intervals) if interval.kept)

    def _peak(self) -> _Peak:
        live = self.live_bytes
        peak = max(live, default=0)
        return _Peak(peak, live.index(peak) if live else 0)

    # ------------------------------------------------------------------ looking things up

    def offset_of(self, buffer_id: str) -> int:
        """Return where in the arena a buffer starts.

        Raises: UnknownNameError when the plan has no such buffer.
        """
        for interval, offset in zip(self.intervals, self.offsets, strict=True):
            if interval.id == buffer_id:
                return offset
        raise UnknownNameError(f"the arena plan has no buffer {buffer_id!r}")

    # ------------------------------------------------------------------ reports

    def to_csv(self, path: str | Path) -> None:
        """Write the plan in the output format of minimalloc, for checking it with other tools.

        Units: bytes, sizes rounded up to the alignment; lifetimes half open.

        Source: the format is that of https://github.com/google/minimalloc (Moffitt, ASPLOS 2023).
        """
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(CSV_HEADER)
            for index, interval in enumerate(self.intervals):
                row = (interval.id, interval.lower, interval.upper, self._size(index), self.offsets[index])
                writer.writerow(row)

    def table(self, *, by: Ordering = "lifetime") -> str:
        """Return the certificate and one line per buffer, as text.

        ``by`` says which buffers come first: those that live longest, the largest, or those at the
        lowest addresses.

        Raises: RangeError when ``by`` is none of these.
        """
        keys: dict[str, Callable[[int], tuple[int | str, ...]]] = {
            "lifetime": lambda k: (-self._steps(k), -self._size(k), self.intervals[k].id),
            "size": lambda k: (-self._size(k), -self._steps(k), self.intervals[k].id),
            "offset": lambda k: (self.offsets[k], self.intervals[k].lower),
        }
        if by not in keys:
            raise RangeError(f"arena table: by= is one of {', '.join(keys)}, got {by!r}")
        rows = [("buffer", "steps", "lives", "bytes", "offset", "kept", "label")]
        for k in sorted(range(len(self.intervals)), key=keys[by]):
            interval = self.intervals[k]
            span = f"[{interval.lower}, {interval.upper})"
            size, offset, kept = f"{self._size(k):,}", f"{self.offsets[k]:,}", "kept" if interval.kept else ""
            rows.append((interval.id, span, str(self._steps(k)), size, offset, kept, interval.label))
        return "\n".join([*self._certificate(), "", *_align_columns(rows, to_the_left=(0, 5, 6))]) + "\n"

    def _steps(self, index: int) -> int:
        return self.intervals[index].upper - self.intervals[index].lower

    def _certificate(self) -> list[str]:
        """Return the lines that say how large the arena is and why it cannot be (much) smaller."""
        arena, bound = self.arena_bytes, self.lower_bound_bytes
        alive = self.alive_at_peak
        at_peak, in_all = _count(len(alive), "buffer"), _count(len(self.intervals), "buffer")
        above = arena - bound
        verdict = f"{above:,} bytes above the bound" if above else "optimal: the arena meets the bound"
        shared = f", {self.total_bytes / arena:.2f} times the arena" if arena else ""
        least = self.notes.least_bytes
        over_all = "not known, the search gave up" if least is None else _bytes(least)
        lines = [
            f"arena        {_bytes(arena)}",
            f"lower bound  {_bytes(bound)}: alive at step {self.peak_step}, in {at_peak}",
            f"ratio        {self.ratio:.4f}  {verdict}",
            f"total        {_bytes(self.total_bytes)} in {in_all}{shared}",
        ]
        if self.notes.order:
            lines.insert(2, f"least bound  {over_all}, over all orders; this order: {self.notes.order}")
        if self.values_bound_bytes < bound:
            lines.append(f"values       {_bytes(self.values_bound_bytes)} alive at most, without scratch")
        if self.notes.rewrites:
            lines.append(
                f"rewrites     {', '.join(f'{name}: {count}' for name, count in self.notes.rewrites)}"
            )
        if self.kept_bytes:
            lines.append(f"kept         {_bytes(self.kept_bytes)} for the backward pass")
        if alive:
            more = f" and {len(alive) - MOST_NAMES} more" if len(alive) > MOST_NAMES else ""
            lines.append(f"peak         {', '.join(alive[:MOST_NAMES])}{more}")
        return lines

    def plot(self, path: str | Path) -> None:
        """Draw addresses and live bytes over time into an SVG or PNG file, as the suffix says.

        Raises: GraphcError when matplotlib is missing; RangeError for any other suffix.
        """
        try:
            # Matplotlib is an extra: whoever only compiles can do without it.
            from graphc.memory.picture import Rectangle, draw_plan
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "matplotlib":
                raise
            raise GraphcError("arena plot: this needs matplotlib: pip install graphc[plot]") from error
        rectangles = [
            Rectangle(i.label or i.id, i.lower, i.upper, self.offsets[k], self._size(k), i.kept)
            for k, i in enumerate(self.intervals)
        ]
        draw_plan(rectangles, live=self.live_bytes, lower_bound=self.lower_bound_bytes, path=Path(path))

    # ------------------------------------------------------------------ plain data

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types, with the certificate for readers of the file."""
        return {
            "alignment": self.alignment,
            "arena_bytes": self.arena_bytes,
            "lower_bound_bytes": self.lower_bound_bytes,
            "peak_step": self.peak_step,
            "notes": {**asdict(self.notes), "rewrites": [list(pair) for pair in self.notes.rewrites]},
            "buffers": [
                {**asdict(interval), "offset": offset}
                for interval, offset in zip(self.intervals, self.offsets, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArenaPlan:
        """Return the plan that ``to_dict`` described, checked again.

        Raises: DataError when something is missing, has the wrong type, or makes no valid plan.
        """
        try:
            intervals = tuple(
                Interval(
                    id=_typed(buffer, "id", str),
                    lower=_typed(buffer, "lower", int),
                    upper=_typed(buffer, "upper", int),
                    size=_typed(buffer, "size", int),
                    kept=_typed(buffer, "kept", bool),
                    label=_typed(buffer, "label", str),
                    scratch=_typed(buffer, "scratch", bool),
                )
                for buffer in _typed(data, "buffers", list)
            )
            offsets = tuple(_typed(buffer, "offset", int) for buffer in data["buffers"])
            return cls(
                intervals, offsets, _typed(data, "alignment", int), _notes(_typed(data, "notes", dict))
            )
        except DataError:
            raise
        except GraphcError as error:
            raise DataError(f"stored arena plan: {error}") from error


def _notes(data: Mapping[str, Any]) -> PlanNotes:
    """Return the notes of a stored plan."""
    least = data.get("least_bytes")
    pairs = _typed(data, "rewrites", list)
    if not (least is None or isinstance(least, int)) or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"stored arena plan: notes {data!r} are not as they were written")
    return PlanNotes(_typed(data, "order", str), least, tuple((str(k), int(v)) for k, v in pairs))


def _typed(data: Any, key: str, kind: type[T]) -> T:
    """Return ``data[key]`` after checking that it is there and of the right type."""
    if not isinstance(data, Mapping) or key not in data:
        raise DataError(f"stored arena plan: {key!r} is missing")
    value = data[key]
    # Python counts True as an int; a plan file that says so is broken all the same.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"stored arena plan: {key!r} should be {kind.__name__}, got {value!r}")
    return value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _bytes(count: int) -> str:
    """Return a number of bytes, with its rounded value in the unit that suits it."""
    exact = f"{count:,} bytes"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{exact} ({count / size:.2f} {unit})"
    return exact


def _align_columns(rows: Sequence[Sequence[str]], *, to_the_left: Collection[int]) -> list[str]:
    """Return the rows as lines with columns of equal width, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in to_the_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
