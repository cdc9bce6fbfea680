"""The order of kernels: of several good ones, that which needs the fewest bytes at its worst step.

A partial run is a *down-set*: a set of kernels that holds all that its members need. What is alive after it does
not depend on the order inside, so that the least peak over all orders is the cheapest path, by its highest
point, through the lattice of down-sets. Two facts leave few sets to look at. A kernel that frees at least what it
takes, without a new peak, can be run at once: whatever order is best, running it earlier makes no later step worse.
And a kernel that reads nothing from the arena (it packs weights) can wait until just before its first reader.
Before any search there is a bound: whatever must be written before a kernel and read behind it is alive while it
runs, in every order.

Source: the search over down-sets is that of Ahn et al. 2020, "Ordering chaos: memory-aware scheduling of irregularly
wired neural networks for edge devices".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from graphc.lower.arena import ALIGNMENT, buffer_bytes, in_place_pairs, lifetimes, reuse_in_place
from graphc.memory.interval import round_up
from graphc.program.ir import Buffer, Call, Space

MOST_SETS = 1000
"""Down-sets that the exact search looks at before it gives up."""


@dataclass(frozen=True)
class Order:
    """An order of kernels: its name, its peak of live bytes, and the least peak of all orders, None if not known."""

    name: str
    calls: tuple[Call, ...]
    peak: int
    least: int | None


def best_order(calls: Sequence[Call], last: Sequence[Call], batch: int, most_sets: int = MOST_SETS) -> Order:
    """Return the order with the least peak of those tried; of equals, the first. ``last`` come last.

    Units: bytes at the batch, sizes rounded up as the arena rounds them, operands in place where that is possible.
    """
    model = _Model(calls, last, batch)
    bound = model.bound()

    def arranged(order: Sequence[int]) -> tuple[Call, ...]:
        return (*(calls[k] for k in order), *last)

    orders: Iterator[tuple[str, list[int] | None]] = iter([
        ("depth first", model.eager(range(len(calls)))), ("least growth", model.greedy()),
    ])  # fmt: skip
    name, order = next(orders)
    assert order is not None
    best, peak, least = arranged(order), peak_bytes(arranged(order), batch), bound
    for other, order in orders:
        if peak == bound:
            break
        trial = arranged(order or ())
        if (found := peak_bytes(trial, batch)) < peak:
            name, best, peak = other, trial, found
    if peak > bound:
        known, order = model.search(peak, most_sets)
        if order is not None:
            name, best = "exact search", arranged(order)
            peak = peak_bytes(best, batch)
        least = known if known is not None else -1
    return Order(name, best, peak, None if least < 0 else least)


def peak_bytes(calls: Sequence[Call], batch: int) -> int:
    """Return the most bytes alive at a step, after operands were written over in place."""
    change = [0] * (len(calls) + 1)
    for buffer, (first, end) in lifetimes(reuse_in_place(calls)).items():
        size = round_up(buffer_bytes(buffer, batch), ALIGNMENT)
        change[first] += size
        change[end] -= size
    live = peak = 0
    for step in change:
        live += step
        peak = max(peak, live)
    return peak


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


class _Model:
    """The kernels as numbers: what each needs, and what it takes and frees after a down-set."""

    def __init__(self, calls: Sequence[Call], last: Sequence[Call], batch: int):
        self.count = len(calls)
        self.size: dict[Buffer, int] = {}
        self.uses: list[list[Buffer]] = []
        self.needs = [0] * self.count
        self.pairs: list[list[tuple[Buffer, Buffer]]] = []
        self.writers: dict[Buffer, int] = {}
        self.users: dict[Buffer, int] = {}
        readers: dict[Buffer, int] = {}
        for k, call in enumerate(calls):
            self.uses.append([b for b in dict.fromkeys(call.buffers) if b.space is Space.ARENA])
            self.pairs.append([(call.buffers[s], call.buffers[o]) for s, o in in_place_pairs(call)])
            operands = list(zip(call.kernel.operands, call.buffers, strict=True))
            for operand, buffer in operands:
                # Behind all that wrote it before; one that writes it, behind those that read it before, too.
                self.needs[k] |= self.writers.get(buffer, 0) | (readers.get(buffer, 0) if operand.written else 0)
            for operand, buffer in operands:
                table = self.writers if operand.written else readers
                table[buffer] = table.get(buffer, 0) | 1 << k
            for buffer in self.uses[k]:
                self.users[buffer] = self.users.get(buffer, 0) | 1 << k
                self.size[buffer] = round_up(buffer_bytes(buffer, batch), ALIGNMENT)
        for buffer in {b for call in last for b in call.buffers if b in self.users}:
            self.users[buffer] |= 1 << self.count  # by a kernel that is never run here: it stays
        self.followers: list[list[int]] = [[] for _ in calls]
        for k, needed in enumerate(self.needs):
            for earlier in _bits(needed):
                self.followers[earlier].append(k)
        # What reads nothing from the arena waits for its first reader.
        self.waiting = sum(1 << k for k in range(self.count) if not self.needs[k] and self.followers[k])

    def start(self) -> _State:
        """Return the state before anything has run."""
        return _State(0, 0, 0, tuple(self._ready(0, range(self.count))), None)

    def _ready(self, done: int, candidates: Sequence[int]) -> list[int]:
        able = done | self.waiting
        return [k for k in candidates if not self.needs[k] & ~able and not self.waiting >> k & 1]

    def run(self, state: _State, kernel: int) -> _State:
        """Return the state after a kernel more, with what waited for it."""
        done, live, peak, ready, path = state
        for k in (*_bits(self.needs[kernel] & ~done), kernel):
            now = done | 1 << k
            taken = freed = credit = 0
            for buffer in self.uses[k]:
                taken += 0 if self.users[buffer] & done else self.size[buffer]
                freed += 0 if self.users[buffer] & ~now else self.size[buffer]
            for source, out in self.pairs[k]:
                if not self.users[source] & ~now and not self.users[out] & done:
                    credit = self.size[out]
                    break
            peak = max(peak, live + taken - credit)
            done, live, path = now, live + taken - freed, _Path(k, path)
        follow = self._ready(done, self.followers[kernel])
        return _State(done, live, peak, (*(k for k in ready if k != kernel), *follow), path)

    def _settle(self, state: _State, highest: int | None = None) -> _State:
        """Run every kernel that frees at least what it takes, and goes above neither the peak nor ``highest``."""
        moved = True
        while moved:
            moved = False
            for kernel in state.ready:
                after = self.run(state, kernel)
                if after.live <= state.live and after.peak <= max(state.peak, highest or 0):
                    state, moved = after, True
                    break
        return state

    def eager(self, order: Sequence[int]) -> list[int]:
        """Return the order, changed so that kernels which free memory run as soon as they can."""
        state = self._settle(self.start(), 1 << 62)
        for kernel in order:
            if not (state.done | self.waiting) >> kernel & 1:
                state = self._settle(self.run(state, kernel), 1 << 62)
        return _unwound(state.path)

    def greedy(self) -> list[int]:
        """Return the order that always takes the kernel after which the fewest bytes are alive."""
        state = self.start()
        while state.ready:
            trials = [(after.live, after.peak, k, after) for k in state.ready for after in [self.run(state, k)]]
            state = min(trials, key=lambda trial: trial[:3])[3]
        return _unwound(state.path)

    def bound(self) -> int:
        """Return bytes that every order has alive at some kernel.

        These are the kernel's own, and those between what it must follow and what must follow it.
        """
        before = [1 << k for k in range(self.count)]
        behind = [1 << k for k in range(self.count)]
        for k in range(self.count):
            for needed in _bits(self.needs[k]):
                before[k] |= before[needed]
        for k in reversed(range(self.count)):
            behind[k] |= 1 << self.count
            for follower in self.followers[k]:
                behind[k] |= behind[follower]
        best = 0
        for k in range(self.count):
            alive = sum(self.size[b] for b in self.uses[k])
            alive -= max((self.size[out] for _, out in self.pairs[k]), default=0)
            for buffer, size in self.size.items():
                if self.writers[buffer] & before[k] and self.users[buffer] & behind[k]:
                    alive += 0 if self.users[buffer] >> k & 1 else size
            best = max(best, alive)
        return best

    def search(self, known: int, most_sets: int) -> tuple[int | None, list[int] | None]:
        """Return the least peak over all orders, and an order that has it if that is below a known one.

        The peak is None where more down-sets than allowed would have to be looked at.
        """
        numbers = count()
        start = self._settle(self.start())
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
                after = self._settle(self.run(state, kernel))
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
