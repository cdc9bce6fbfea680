"""The order of kernels: of several good ones, that which needs the fewest bytes at its worst step.

A partial run is a *down-set*: a set of kernels that holds all that its members need. What is alive after it does
not depend on the order inside, so that the least peak over all orders is the cheapest path, by its highest
point, through the lattice of down-sets. Two facts leave few sets to look at. A kernel that frees at least what it
takes, without a new peak, can be run at once: whatever order is best, running it earlier makes no later step worse.
And a kernel that reads nothing from the arena (it packs weights) can wait until just before its first reader.
Before any search there is a bound: whatever must be written before a kernel and is read behind it is alive while it
runs, in every order.

Source: the search over down-sets is that of Ahn et al. 2020, "Ordering chaos: memory-aware scheduling of irregularly
wired neural networks for edge devices".
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, count
from typing import NamedTuple

from graphc.lower.arena import ALIGNMENT, buffer_bytes, in_place_pairs, lifetimes, reuse_in_place
from graphc.memory import PlanNotes
from graphc.memory.interval import round_up
from graphc.program.ir import Call, LoopSpec, Space
from graphc.rewrites import ALL, Rewrites

MOST_STEPS = 200_000
"""Kernels times down-sets that the exact search looks at before it gives up."""


@dataclass(frozen=True)
class Order:
    """An order of kernels: its name, its peak of live bytes, and the least peak of all orders, None if not known."""

    name: str
    calls: tuple[Call, ...]
    peak: int
    least: int | None
    rewrites: Rewrites

    @cached_property
    def in_place(self) -> list[Call]:
        """The calls as they run, operands written over where that is possible."""
        return reuse_in_place(self.calls, self.rewrites)

    @property
    def notes(self) -> PlanNotes:
        """What a plan of these calls says of them."""
        operands = [[o.name for o in call.kernel.operands] for call in self.in_place]
        loops = [isinstance(call.kernel.spec, LoopSpec) for call in self.in_place]
        counts = {
            "in_place": sum("inout" in names and loop for names, loop in zip(operands, loops, strict=True)),
            "accumulate": sum(
                "inout" in names and not loop for names, loop in zip(operands, loops, strict=True)
            ),
            "pool": sum(
                c.kernel.epilogue is not None and c.kernel.epilogue.pool is not None for c in self.calls
            ),
            "run_again": sum(call.again for call in self.calls),
        }
        return PlanNotes(self.name, self.least, tuple((name, n) for name, n in counts.items() if n))


def eager_order(calls: Sequence[Call], last: Sequence[Call], batch: int, rewrites: Rewrites) -> list[Call]:
    """Return the order changed so that what frees memory runs as soon as it can."""
    if not rewrites.order:
        return list(calls)
    return [calls[k] for k in _Model(calls, last, batch, rewrites).eager(range(len(calls)))]


def best_order(
    calls: Sequence[Call],
    last: Sequence[Call],
    batch: int,
    rewrites: Rewrites = ALL,
    most_steps: int = MOST_STEPS,
) -> Order:
    """Return the order with the least peak of those tried; of equals, the first. ``last`` come last.

    Units: bytes at the batch, sizes rounded up as the arena rounds them, operands in place where that is possible.
    """

    def measured(name: str, order: Sequence[int]) -> Order:
        arranged = (*(calls[k] for k in order), *last)
        return Order(name, arranged, peak_bytes(arranged, batch, rewrites), None, rewrites)

    if not rewrites.order:
        return measured("depth first", range(len(calls)))
    model = _Model(calls, last, batch, rewrites)
    eager = model.eager(range(len(calls)))
    best = measured("depth first, what frees memory at once", eager)
    bound = model.bound(eager)
    if best.peak > bound:
        best = min(best, measured("least growth", model.greedy()), key=lambda order: order.peak)
    if best.peak > bound:
        least, order = model.search(best.peak, most_steps // len(calls))
        if order is not None:
            best = measured("exact search", order)
        bound = best.peak if least is not None else bound
    return replace(best, least=bound if best.peak == bound else None)


def peak_bytes(calls: Sequence[Call], batch: int, rewrites: Rewrites = ALL) -> int:
    """Return the most bytes alive at a step, after operands were written over in place."""
    return max(live_bytes(reuse_in_place(calls, rewrites), batch), default=0)


def live_bytes(calls: Sequence[Call], batch: int) -> list[int]:
    """Return the bytes alive at each step, sizes rounded up as the arena rounds them."""
    change = [0] * (len(calls) + 1)
    for buffer, (first, end) in lifetimes(calls).items():
        size = round_up(buffer_bytes(buffer, batch), ALIGNMENT)
        change[first] += size
        change[end] -= size
    return list(accumulate(change[:-1]))


class _Path(NamedTuple):
    """The kernels run so far, last first."""

    kernel: int
    before: _Path | None


class _State(NamedTuple):
    """A down-set as bits, the bytes alive after it, the peak on the way, and what can run next."""

    done: int
    live: int
    peak: int
    ready: tuple[int, ...]
    path: _Path | None


class _Change(NamedTuple):
    """The bytes by which a kernel changes what is alive, the most in between, and the kernels that run for it."""

    live: int
    peak: int
    together: tuple[int, ...]


class _Model:
    """Kernels and buffers as numbers: what each kernel needs, and what it takes and frees after a down-set."""

    def __init__(self, calls: Sequence[Call], last: Sequence[Call], batch: int, rewrites: Rewrites):
        self.count = len(calls)
        # Kernels depend on each other through results outside the arena as well, which take nothing in it.
        numbers = {b: k for k, b in enumerate(dict.fromkeys(b for call in calls for b in call.buffers))}
        arena = [b.space is Space.ARENA for b in numbers]
        sizes = [round_up(buffer_bytes(b, batch), ALIGNMENT) for b in numbers]
        self.size = [size if inside else 0 for size, inside in zip(sizes, arena, strict=True)]
        self.users = [0] * len(numbers)
        self.writers = [0] * len(numbers)
        readers = [0] * len(numbers)
        self.uses: list[list[int]] = []
        self.pairs: list[list[tuple[int, int]]] = []
        self.needs = [0] * self.count
        for k, call in enumerate(calls):
            operands = [
                (numbers[buffer], operand.written)
                for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True)
            ]
            self.uses.append(list(dict.fromkeys(b for b, _ in operands if arena[b])))
            pairs = in_place_pairs(call, rewrites)
            self.pairs.append([(numbers[call.buffers[s]], numbers[call.buffers[o]]) for s, o in pairs])
            for b, written in operands:
                # Behind all that wrote it before; one that writes it, behind those that read it before, too.
                self.needs[k] |= self.writers[b] | (readers[b] if written else 0)
            for b, written in operands:
                table = self.writers if written else readers
                table[b] |= 1 << k
                self.users[b] |= 1 << k
        for buffer in {b for call in last for b in call.buffers if b in numbers}:
            self.users[numbers[buffer]] |= 1 << self.count  # by a kernel that is never run here: it stays
        self.followers: list[list[int]] = [[] for _ in calls]
        for k, needed in enumerate(self.needs):
            for earlier in _bits(needed):
                self.followers[earlier].append(k)
        # What reads nothing from the arena waits for its first reader.
        self.waiting = sum(1 << k for k in range(self.count) if not self.needs[k] and self.followers[k])
        self.near = [self._near(k) for k in range(self.count)]
        self.known: list[dict[int, _Change]] = [{} for _ in calls]

    def _near(self, kernel: int) -> int:
        """Return the kernels on which it depends what the kernel, and what waits for it, takes and frees."""
        found = self.needs[kernel]
        for k in (*_bits(self.needs[kernel] & self.waiting), kernel):
            for b in self.uses[k]:
                found |= self.users[b]
            for pair in self.pairs[k]:
                for b in pair:
                    found |= self.users[b]
        return found

    def start(self) -> _State:
        """Return the state before anything has run."""
        return _State(0, 0, 0, tuple(self._ready(0, range(self.count))), None)

    def _ready(self, done: int, candidates: Sequence[int]) -> list[int]:
        missing = ~(done | self.waiting)
        return [k for k in candidates if not self.needs[k] & missing and not self.waiting >> k & 1]

    def change(self, done: int, kernel: int) -> _Change:
        """Return what a kernel, with what waited for it, does behind a down-set.

        A search asks this some million times, and hardly ever of a neighbourhood that it has not met.
        """
        near = done & self.near[kernel]
        known = self.known[kernel].get(near)
        if known is None:
            known = self.known[kernel][near] = self._change(near, kernel)
        return known

    def _change(self, done: int, kernel: int) -> _Change:
        live, peaks = 0, []
        together = (*_bits(self.needs[kernel] & ~done), kernel)
        for k in together:
            now = done | 1 << k
            taken = freed = credit = 0
            for b in self.uses[k]:
                users = self.users[b]
                if not users & done:
                    taken += self.size[b]
                if not users & ~now:
                    freed += self.size[b]
            for source, out in self.pairs[k]:
                if not self.users[source] & ~now and not self.users[out] & done:
                    credit = self.size[out]
                    break
            peaks.append(live + taken - credit)
            live += taken - freed
            done = now
        return _Change(live, max(peaks), together)

    def cost(self, done: int, live: int, kernel: int) -> tuple[int, int]:
        """Return the bytes alive after a kernel, and while it and what waited for it run."""
        change = self.change(done, kernel)
        return live + change.live, live + change.peak

    def run(self, state: _State, kernel: int) -> _State:
        """Return the state after a kernel more, with what waited for it."""
        change = self.change(state.done, kernel)
        path, done = state.path, state.done
        for k in change.together:
            done, path = done | 1 << k, _Path(k, path)
        ready = [k for k in state.ready if k != kernel]
        if self.followers[kernel]:
            ready += self._ready(done, self.followers[kernel])
        peak = max(state.peak, state.live + change.peak)
        return _State(done, state.live + change.live, peak, tuple(ready), path)

    def _relax(self, state: _State) -> _State:
        """Run every kernel that frees at least what it takes, without a new peak.

        No order is better for delaying it.
        """
        while True:
            done, room = state.done, state.peak - state.live
            for kernel in state.ready:
                change = self.known[kernel].get(done & self.near[kernel]) or self.change(done, kernel)
                if change.live <= 0 and change.peak <= room:
                    state = self.run(state, kernel)
                    break
            else:
                return state

    def _settle(self, state: _State, after: Callable[[_State, int], _State | None]) -> _State:
        """Run every kernel that shrinks what is alive; ``after`` gives the state behind such a kernel, or None."""
        untried = list(state.ready)
        while untried:
            found = after(state, untried.pop(0))
            if found is not None:
                state = found
                untried = list(state.ready)  # what was the last but one reader of a tensor is the last now
        return state

    def _if_it_frees(self, state: _State, kernel: int) -> _State | None:
        """Run a kernel that frees more than it takes, or leaves nothing; or that does so with its only reader.

        A weights' gradient leaves nothing in the arena. Behind it, the gradient for the input may be written over
        what both read.
        """
        after = self.run(state, kernel)
        if after.live < state.live or not self._leaves(state, after, kernel):
            return after
        if len(self.followers[kernel]) != 1:
            return None
        (reader,) = self.followers[kernel]
        if self.needs[reader] & ~(after.done | self.waiting):
            return None
        both = self.run(after, reader)
        left = self._leaves(state, both, kernel) or self._leaves(state, both, reader)
        return both if both.live < state.live or not left else None

    def _leaves(self, before: _State, after: _State, kernel: int) -> bool:
        """Whether a kernel, run between two states, leaves an array behind."""
        return any(not self.users[b] & before.done and self.users[b] & ~after.done for b in self.uses[kernel])

    def eager(self, order: Sequence[int]) -> list[int]:
        """Return the order, changed so that kernels which free memory run as soon as they can."""
        state = self._settle(self.start(), self._if_it_frees)
        for kernel in order:
            if not (state.done | self.waiting) >> kernel & 1:
                state = self._settle(self.run(state, kernel), self._if_it_frees)
        return _unwound(state.path)

    def greedy(self) -> list[int]:
        """Return the order that always takes the kernel after which the fewest bytes are alive."""
        state = self.start()
        while state.ready:
            state = self.run(state, min((*self.cost(state.done, state.live, k), k) for k in state.ready)[2])
        return _unwound(state.path)

    def bound(self, order: Sequence[int]) -> int:
        """Return bytes that are alive in every order while some kernel runs: that of the given order's peak.

        These are the kernel's own, and those between what it must follow and what must follow it.
        """
        if not order:
            return 0
        done = live = highest = top = 0
        for k in order:
            live, peak = self.cost(done, live, k)
            done |= 1 << k
            if peak > highest:
                highest, top = peak, k
        before, behind = 1 << top, 1 << top | 1 << self.count
        for k in reversed(range(top)):
            if any(before >> follower & 1 for follower in self.followers[k]):
                before |= 1 << k
        for k in range(top + 1, self.count):
            if self.needs[k] & behind:
                behind |= 1 << k
        alive = sum(self.size[b] for b in self.uses[top])
        later = behind & ~(1 << top)  # a tensor that is read there is not written over here
        alive -= max(
            (self.size[out] for source, out in self.pairs[top] if not self.users[source] & later), default=0
        )
        between = (
            size
            for size, writers, users in zip(self.size, self.writers, self.users, strict=True)
            if writers & before and users & behind and not users >> top & 1
        )
        return alive + sum(between)

    def search(self, known: int, most_sets: int) -> tuple[int | None, list[int] | None]:
        """Return the least peak over all orders, and an order that has it if that is below a known one.

        The peak is None where more down-sets than allowed would have to be looked at.
        """
        numbers = count()
        start = self._relax(self.start())
        queue = [(start.peak, next(numbers), start)]
        seen: set[int] = set()
        while queue:
            peak, _, state = heapq.heappop(queue)
            if peak >= known:
                return known, None  # every other order is as high as one that is known
            if not state.ready:
                return peak, _unwound(state.path)
            if state.done in seen:
                continue
            seen.add(state.done)
            if len(seen) > most_sets:
                break
            for kernel in state.ready:
                after = self._relax(self.run(state, kernel))
                if after.done not in seen:
                    heapq.heappush(queue, (after.peak, next(numbers), after))
        return None, None


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _unwound(path: _Path | None) -> list[int]:
    order = []
    while path is not None:
        order.append(path.kernel)
        path = path.before
    return order[::-1]
