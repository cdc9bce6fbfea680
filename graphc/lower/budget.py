"""The training step within a budget of memory: which parts of the forward pass run again, as costs the least.

The forward pass is cut wherever one tensor alone leads on: the *articulation tensors* of its chain. What lies between
two cuts is kept for the backward pass, as it is without a budget, or dropped and run again from the tensor at its
first cut, once, just before its gradients. A walk along the chain knows for every cut the choices so far that no
other beats in all of three: bytes kept, highest peak, operations run again. What is alive during a part's gradients
beside what is kept of the parts before it is read off the plan without a budget, so that the walk is exact but for
what sharing memory in place changes; the choices it finds are then planned in full, cheapest first, until one fits.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; Feng and Huang 2021, "Optimal gradient
checkpoint search for arbitrary computation graphs", section 3 (chains).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from graphc.errors import RangeError
from graphc.lower.arena import ALIGNMENT, buffer_bytes, lifetimes, middle_of
from graphc.lower.order import Order, live_bytes
from graphc.lower.rematerialise import (
    WORTH,
    Block,
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

_MARGIN = 1.25  # by which the walk's estimate may be too high
_MOST_TRIES = 16
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
    base = without_budget(calls, batch, rewrites, finish)
    least = base.peak
    if least <= budget:
        return base
    if middle_of(calls) is not None and rewrites.run_again:
        chain = _Chain(calls, batch, base)
        front = chain.front()
        likely = [choice for choice in front if choice.peak <= _MARGIN * budget]
        for choice in [*likely[:_MOST_TRIES], min(front, key=lambda c: c.peak)]:
            order = finish(chain.apply(choice))
            least = min(least, order.peak)
            if order.peak <= budget:
                return order
    raise RangeError(
        f"compile: memory_budget={budget:,} bytes is too small for the training step, whatever runs again; "
        f"the least that was found is {least:,} bytes"
    )


@dataclass(frozen=True)
class _Choice:
    """A way up to a cut: bytes kept, the highest peak, operations run again, and the parts that run again."""

    kept: int
    peak: int
    flops: int
    parts: tuple[Block, ...] = ()

    def beats(self, other: _Choice) -> bool:
        return self.kept <= other.kept and self.peak <= other.peak and self.flops <= other.flops


class _Chain:
    """The forward pass between its cuts."""

    def __init__(self, calls: Sequence[Call], batch: int, base: Order):
        middle = middle_of(calls)
        assert middle is not None
        self.calls, self.batch, self.middle = list(calls), batch, middle
        self.uses = uses_of(calls)
        cheap = rerun_cheap(calls, [(0, middle)], batch)
        end = middle_of(cheap)
        assert end is not None
        self.kept = {b for b, (first, last) in lifetimes(cheap).items() if first < end and last > end + 1}
        self.cuts, self.tensors = self._cut()
        self.room = _Room(self, base)

    def size(self, buffer: Buffer) -> int:
        """Return what a buffer takes in the arena."""
        return round_up(buffer_bytes(buffer, self.batch), ALIGNMENT)

    def _cut(self) -> tuple[list[int], list[Buffer | None]]:
        """Return the steps in front of which one tensor alone leads on, and these tensors; both ends are cuts."""
        cuts, tensors = [0], list[Buffer | None]([None])
        for step in range(1, self.middle):
            leading = [
                b
                for b, use in self.uses.items()
                if b.space is Space.ARENA
                and self.size(b) >= WORTH
                and use.writes
                and use.writes[-1] < step <= max((r for r in use.reads if r <= self.middle), default=-1)
            ]
            if (
                len(leading) == 1
                and leading[0] != tensors[-1]
                and self.uses[leading[0]].writes[-1] == step - 1
            ):
                cuts.append(step)
                tensors.append(leading[0])
        return [*cuts, self.middle], [*tensors, None]

    def of_part(self, begin: int, end: int) -> list[Buffer]:
        """Return what is kept of a part where nothing of it runs again."""
        return [b for b in self.kept if begin <= self.uses[b].writes[-1] < end]

    def dropped(self, a: int, b: int) -> list[Buffer]:
        """Return what need not be kept of the part between two cuts if it runs again."""
        found = self.of_part(self.cuts[a], self.cuts[b])
        return [x for x in found if x is not self.tensors[b] and self.size(x) >= WORTH]

    def first_reader(self, a: int, b: int) -> int:
        """Return the step in front of which a part would run again."""
        return min(r for x in self.dropped(a, b) for r in self.uses[x].reads if r > self.middle)

    def _reads_as_before(self, again: Sequence[Call], step: int) -> bool:
        """Whether calls that run again in front of a step read the parameters that they read before."""
        return all(is_as_before(b, step, self.uses) for call in again for b in read(call))

    def again(self, a: int, b: int) -> list[Call]:
        """Return the calls that compute what was dropped of a part."""
        wanted = set(self.dropped(a, b))
        found: list[Call] = []
        for step in reversed(range(self.cuts[a], self.cuts[b])):
            call = self.calls[step]
            results = [x for x in written(call) if x in wanted]
            if results:
                copy = replay(call, results) or call
                found.append(copy)
                wanted.update(x for x in read(copy) if self._is_inside(x, a, b))
        return found[::-1]

    def _is_inside(self, buffer: Buffer, a: int, b: int) -> bool:
        """Whether a buffer of the part is gone when it runs again."""
        if buffer.space is not Space.ARENA or self.uses[buffer].writes[-1] < self.cuts[a]:
            return False
        return buffer not in self.kept or buffer in self.dropped(a, b)

    def front(self) -> list[_Choice]:
        """Return the choices for the whole chain that no other beats, those that run the least again first."""
        fronts: list[list[_Choice]] = [[] for _ in self.cuts]
        fronts[0] = [_Choice(0, 0, 0)]
        for b in range(1, len(self.cuts)):
            found: list[_Choice] = []
            for a in range(b):
                found += self._step(fronts[a], a, b)
            fronts[b] = _unbeaten(found)
        return sorted(fronts[-1], key=lambda choice: (choice.flops, choice.peak))

    def _step(self, ways: Sequence[_Choice], a: int, b: int) -> Iterator[_Choice]:
        """Yield the ways on from one cut to another: kept, if they are neighbours, or run again as a whole."""
        room = self.room.beside(self.cuts[a], self.cuts[b])
        whole = sum(map(self.size, self.of_part(self.cuts[a], self.cuts[b])))
        if b == a + 1:
            for way in ways:
                yield _Choice(way.kept + whole, max(way.peak, way.kept + room), way.flops, way.parts)
        saved = sum(map(self.size, self.dropped(a, b)))
        again = self.again(a, b) if saved else []
        if saved and self._reads_as_before(again, self.first_reader(a, b)):
            flops = sum(at(call.kernel.flops, self.batch) for call in again)
            tensor = self.tensors[a]
            extra = self.size(tensor) if tensor is not None and tensor not in self.kept else 0
            for way in ways:
                kept = way.kept + extra
                part = (*way.parts, (a, b))
                yield _Choice(kept + whole - saved, max(way.peak, kept + room), way.flops + flops, part)

    def apply(self, choice: _Choice) -> list[Call]:
        """Return the calls of the training step with the chosen parts, and cheap kernels, run again."""
        again: dict[int, list[Call]] = {}
        for a, b in choice.parts:
            again.setdefault(self.first_reader(a, b), []).extend(self.again(a, b))
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
    """Return the choices that no other beats."""
    best: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (c.flops, c.kept, c.peak)):
        if not any(other.beats(choice) for other in best):
            best.append(choice)
    return best
