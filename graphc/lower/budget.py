"""The training step within a budget of memory: which parts of the forward pass run again, as costs the least.

The forward pass is cut wherever one tensor alone leads on: the *articulation tensors* of its chain. What lies between
two cuts is kept for the backward pass, as it is without a budget, or dropped and run again from the tensor at its
first cut, once, just before its gradients; between neighbouring cuts some tensors can be dropped and others kept. A
walk along the chain knows for every cut the choices so far that no other beats in all of three: bytes kept, highest
peak, operations run again. What is alive during a part's gradients beside what is kept of the parts before it is read
off the plan without a budget, so that the walk is exact but for what sharing memory in place changes; the choices it
finds are then planned in full, cheapest first, until one fits.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; Feng and Huang 2021, "Optimal gradient
checkpoint search for arbitrary computation graphs", section 3 (chains).
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from graphc.errors import RangeError
from graphc.lower.arena import ALIGNMENT, buffer_bytes, lifetimes, middle_of
from graphc.lower.order import Order, live_bytes
from graphc.lower.rematerialise import (
    WORTH,
    is_as_before,
    read,
    rerun_cheap,
    run_again,
    uses_of,
    written,
)
from graphc.lower.replay import replay
from graphc.memory.interval import round_up
from graphc.program.ir import Buffer, Call, Space
from graphc.rewrites import Rewrites
from graphc.types import at

_MARGIN = 1.15  # by which the walk's estimate may be too high
_MOST_TRIES = 8
_MOST_SUBSETS = 6  # tensors between neighbouring cuts, up to which every choice of them is looked at
_WORTH = 0.002  # of all that is kept: smaller tensors are kept, whatever the budget
Finish = Callable[[list[Call]], Order]


def without_budget(calls: Sequence[Call], batch: int, rewrites: Rewrites, finish: Finish) -> Order:
    """Return the order of a training step in which cheap kernels alone run again."""
    middle = middle_of(calls)
    if middle is None or not rewrites.run_again:
        return finish(list(calls))
    return finish(rerun_cheap(calls, [(0, middle)], batch))


def within_budget(
    calls: Sequence[Call], batch: int, budget: int, rewrites: Rewrites, finish: Finish
) -> Order:
    """Return the cheapest order found whose peak is at most the budget.

    Raises: RangeError, which names the least peak found, if none is.
    """
    best = without_budget(calls, batch, rewrites, finish)
    least = best.peak
    if least > budget and middle_of(calls) is not None and rewrites.run_again:
        chain = _Chain(calls, batch, best)
        front = chain.front(round(_MARGIN * budget))
        if min(choice.peak for choice in front) > budget:
            front = chain.front(sys.maxsize)
        best, least = _cheapest_that_fits(front, budget, best, lambda choice: finish(chain.apply(choice)))
    if best.peak <= budget:
        return best
    raise RangeError(
        f"compile: memory_budget={budget:,} bytes is too small for the training step, whatever runs again; "
        f"the least that was found is {least:,} bytes"
    )


def _cheapest_that_fits(
    front: Sequence[_Choice], budget: int, base: Order, plan: Callable[[_Choice], Order]
) -> tuple[Order, int]:
    """Return the plan that fits with the fewest operations, or what there was; and the least peak of all plans made.

    The walk's estimate is nearly exact, so that the cheapest that should fit mostly does; where it does not, the step
    to the next doubles, and what was leapt over is halved. Then cheaper ones are tried that might fit after all.
    """
    made: dict[int, Order] = {}

    def fits(choice: _Choice) -> bool:
        made[id(choice)] = order = plan(choice)
        return order.peak <= budget

    lowest = sorted(front, key=lambda c: c.peak)
    should = [c for c in front if c.peak <= budget] + lowest[:_MOST_TRIES]
    below, step = -1, 1
    found = 0
    while not fits(should[found]):
        if found == len(should) - 1:
            return base, min(base.peak, *(order.peak for order in made.values()))
        below, found, step = found, min(found + step, len(should) - 1), 2 * step
    while found - below > 1:
        between = (below + found) // 2
        below, found = (below, between) if fits(should[between]) else (between, found)
    best = should[found]
    might = [c for c in lowest if budget < c.peak <= _MARGIN * budget and c.flops < best.flops]
    for choice in might[:_MOST_TRIES]:
        if choice.flops < best.flops and fits(choice):
            best = choice
    return made[id(best)], budget


@dataclass(frozen=True)
class _Part:
    """What lies between two cuts, with what of it is dropped, and the calls that give that again."""

    begin: int
    end: int
    dropped: frozenset[Buffer]
    again: tuple[Call, ...]
    first_reader: int  # the step in front of which they run
    saved: int
    flops: int


@dataclass(frozen=True)
class _Choice:
    """A way up to a cut: bytes kept, the highest peak, operations run again, and the parts that run again."""

    kept: int
    peak: int
    flops: int
    parts: tuple[_Part, ...] = ()


class _Chain:
    """The forward pass between its cuts."""

    def __init__(self, calls: Sequence[Call], batch: int, base: Order):
        middle = middle_of(calls)
        assert middle is not None
        self.calls, self.batch, self.middle = list(calls), batch, middle
        self.uses = uses_of(calls)
        self._copies: dict[tuple[int, frozenset[Buffer]], Call] = {}
        cheap = rerun_cheap(calls, [(0, middle)], batch)
        end = middle_of(cheap)
        assert end is not None
        self.kept = {b for b, (first, last) in lifetimes(cheap).items() if first < end and last > end + 1}
        across = {b for b, (first, last) in lifetimes(calls).items() if first < middle and last > middle + 1}
        self.cheap = across - self.kept  # computed again whether or not there is a budget
        self.worth = max(WORTH, _WORTH * sum(map(self.size, self.kept)))
        self.cuts, self.tensors = self._cut()
        self.room = _Room(self, base)

    def size(self, buffer: Buffer) -> int:
        """Return what a buffer takes in the arena."""
        return round_up(buffer_bytes(buffer, self.batch), ALIGNMENT)

    def _cut(self) -> tuple[list[int], list[Buffer | None]]:
        """Return the steps in front of which one tensor alone leads on, and these tensors; both ends are cuts."""
        # A concatenation that is written in part leads on too: no part can give all of it again.
        leads_to = {
            b: max(step for step in (*use.reads, *use.writes) if step <= self.middle)
            for b, use in self.uses.items()
            if b.space is Space.ARENA and self.size(b) >= WORTH and use.writes and use.writes[0] < self.middle
        }
        cuts, tensors = [0], list[Buffer | None]([None])
        for step in range(1, self.middle):
            leading = [b for b, last in leads_to.items() if self.uses[b].writes[0] < step <= last]
            if len(leading) == 1 and leading[0] != tensors[-1]:
                cuts.append(step)
                tensors.append(leading[0])
        return [*cuts, self.middle], [*tensors, None]

    def of_part(self, a: int, b: int) -> list[Buffer]:
        """Return what is kept of the part between two cuts where nothing of it runs again."""
        begin, end = self.cuts[a], self.cuts[b]
        return sorted(
            (x for x in self.kept if begin <= self.uses[x].writes[-1] < end),
            key=lambda x: (self.uses[x].writes[-1], x.name),
        )

    def parts(self, a: int, b: int) -> list[_Part]:
        """Return the ways to drop something between two cuts: all of it or, between neighbours, some."""
        tensors = [x for x in self.of_part(a, b) if x is not self.tensors[b] and self.size(x) >= self.worth]
        sets = [tuple(tensors)]
        if b == a + 1 and len(tensors) <= _MOST_SUBSETS:
            sets = [s for count in range(len(tensors)) for s in combinations(tensors, count + 1)]
        found = [part for s in sets if s and (part := self._part(a, b, frozenset(s))) is not None]
        best: list[_Part] = []
        for part in sorted(found, key=lambda p: (p.flops, -p.saved)):
            if not best or part.saved > best[-1].saved:
                best.append(part)
        return best

    def _part(self, a: int, b: int, dropped: frozenset[Buffer]) -> _Part | None:
        """Return a part; None if what runs again would read a parameter that has been updated."""
        gone = self._with_cheap(a, b, dropped)
        again = self._again(a, b, gone)
        first = min(r for x in gone for r in self.uses[x].reads if r > self.middle)
        if not all(is_as_before(x, first, self.uses) for call in again for x in read(call)):
            return None
        flops = sum(at(call.kernel.flops, self.batch) for call in again)
        return _Part(a, b, dropped, again, first, sum(map(self.size, dropped)), flops)

    def _with_cheap(self, a: int, b: int, dropped: frozenset[Buffer]) -> frozenset[Buffer]:
        """Return what is dropped, and what cheap kernels would compute from it in the backward pass."""
        gone = set(dropped)
        for step in range(self.cuts[a], self.cuts[b]):
            for result in self.cheap.intersection(written(self.calls[step])):
                if not gone.isdisjoint(read(self._copy(step, frozenset({result})))):
                    gone.add(result)
        return frozenset(gone)

    def _again(self, a: int, b: int, dropped: frozenset[Buffer]) -> tuple[Call, ...]:
        """Return the calls that compute what was dropped of a part."""
        wanted = set(dropped)
        found: list[Call] = []
        for step in reversed(range(self.cuts[a], self.cuts[b])):
            results = wanted.intersection(written(self.calls[step]))
            if results:
                copy = self._copy(step, frozenset(results))
                found.append(copy)
                wanted.update(x for x in read(copy) if self._is_gone(x, a, dropped))
        return tuple(found[::-1])

    def _copy(self, step: int, results: frozenset[Buffer]) -> Call:
        """Return the call that gives some results of a step again."""
        key = (step, results)
        if key not in self._copies:
            self._copies[key] = replay(self.calls[step], results) or self.calls[step]
        return self._copies[key]

    def _is_gone(self, buffer: Buffer, a: int, dropped: frozenset[Buffer]) -> bool:
        """Whether a buffer is of the part that begins at a cut, and not in memory when the part runs again."""
        if buffer.space is not Space.ARENA or self.uses[buffer].writes[-1] < self.cuts[a]:
            return False
        return buffer not in self.kept or buffer in dropped

    def front(self, limit: int) -> list[_Choice]:
        """Return the choices for the whole chain that no other beats, those that run the least again first.

        Choices whose peak is above the limit are left out, as far as others remain.
        """
        fronts: list[list[_Choice]] = [[] for _ in self.cuts]
        fronts[0] = [_Choice(0, 0, 0)]
        for b in range(1, len(self.cuts)):
            found: list[_Choice] = []
            for a in range(b):
                found += self._step(fronts[a], a, b)
            best = _unbeaten(found)
            low = [choice for choice in best if choice.peak <= limit]
            fronts[b] = low or [min(best, key=lambda choice: choice.peak)]
        return sorted(fronts[-1], key=lambda choice: (choice.flops, choice.peak))

    def _step(self, ways: Sequence[_Choice], a: int, b: int) -> Iterator[_Choice]:
        """Yield the ways on from one cut to another: kept, if they are neighbours, or run again."""
        room = self.room.beside(self.cuts[a], self.cuts[b])
        whole = sum(map(self.size, self.of_part(a, b)))
        if b == a + 1:
            for way in ways:
                yield _Choice(way.kept + whole, max(way.peak, way.kept + room), way.flops, way.parts)
        tensor = self.tensors[a]
        extra = self.size(tensor) if tensor is not None and tensor not in self.kept else 0
        for part in self.parts(a, b):
            for way in ways:
                kept = way.kept + extra
                yield _Choice(
                    kept + whole - part.saved,
                    max(way.peak, kept + room),
                    way.flops + part.flops,
                    (*way.parts, part),
                )

    def apply(self, choice: _Choice) -> list[Call]:
        """Return the calls of the training step with the chosen parts, and cheap kernels, run again."""
        again: dict[int, list[Call]] = {}
        for part in choice.parts:
            again.setdefault(part.first_reader, []).extend(part.again)
        calls, blocks = run_again(self.calls, again)
        return rerun_cheap(calls, [(0, self.middle), *blocks], self.batch)


class _Room:
    """What a plan without a budget has alive beside the tensors that are kept, step by step."""

    def __init__(self, chain: _Chain, base: Order):
        self._produced: list[int] = []  # the newest kept tensor that is alive, by the step that wrote it
        self._kept: list[list[tuple[int, int]]] = []  # of all that are alive: that step, and bytes
        self._live = live_bytes(base.in_place, chain.batch)
        spans = {b: span for b, span in lifetimes(base.calls).items() if b in chain.kept}
        for step in range(len(base.calls)):
            alive = [b for b, (first, end) in spans.items() if first <= step < end]
            kept = [(chain.uses[b].writes[-1], chain.size(b)) for b in alive]
            self._kept.append(kept)
            self._produced.append(max((k for k, _ in kept), default=0))

    def beside(self, begin: int, end: int) -> int:
        """Return the most bytes alive while a part is computed or differentiated, without what is kept before it."""
        most = 0
        for live, kept, newest in zip(self._live, self._kept, self._produced, strict=True):
            if begin <= newest < end:
                most = max(most, live - sum(size for step, size in kept if step < begin))
        return most


def _unbeaten(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return the choices that no other beats in all of bytes kept, peak and operations."""
    best: list[_Choice] = []
    # Of those with no more operations: bytes kept, ascending, and peaks, descending, that none of them beats.
    kept, peaks = [-1], [sys.maxsize]
    for choice in sorted(choices, key=lambda c: (c.flops, c.kept, c.peak)):
        place = bisect_right(kept, choice.kept)
        if peaks[place - 1] <= choice.peak:
            continue
        best.append(choice)
        end = place
        while end < len(kept) and peaks[end] >= choice.peak:
            end += 1
        begin = place - 1 if kept[place - 1] == choice.kept else place
        kept[begin:end], peaks[begin:end] = [choice.kept], [choice.peak]
    return best
