"""Who is faster: a variant must beat the cost model's choice clearly, in timings that did not select it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

GAIN = 0.97  # of the cost model's time: a variant that takes more is not worth a different kernel
_HOPELESS = 1.1  # times the best of the first round
_ROUNDS = 4
_DUELS = (5, 15)  # at the least, at the most
_SECONDS = 0.4  # for the rounds, and again for the duels, unless so few take longer


@dataclass(frozen=True)
class Outcome:
    """The winner's place (0 is the cost model's choice), and seconds a call: the cost model's, the winner's."""

    winner: int
    before: float
    after: float


def contest(count: int, seconds: Callable[[int], float]) -> Outcome:
    """Return the fastest of ``count`` variants, timed by ``seconds``; the first unless another is 3 % faster.

    All are timed once, then those that have a chance in turns. Whoever has the least time then meets the first
    in a duel of new timings, since the least of many noisy timings flatters: both its minimum and its median
    must be 3 % below.
    """
    times = [[seconds(k)] for k in range(count)]
    best = min(first for (first,) in times)
    alive = [k for k in range(count) if times[k][0] <= _HOPELESS * best]
    for _ in range(_affordable(sum(times[k][0] for k in alive), 1, _ROUNDS)):
        for k in alive:
            times[k].append(seconds(k))
    challenger = min(range(count), key=lambda k: min(times[k]))
    before = min(times[0])
    if challenger == 0:
        return Outcome(0, before, before)
    old: list[float] = []
    new: list[float] = []
    for turn in range(_affordable(before + min(times[challenger]), *_DUELS)):
        # In turns also within a pair: whoever comes second finds the caches as the other left them.
        for k in (0, challenger) if turn % 2 else (challenger, 0):
            (new if k else old).append(seconds(k))
    if _beats(new, old):
        return Outcome(challenger, min(old), min(new))
    return Outcome(0, min(old), min(old))


def _beats(new: Sequence[float], old: Sequence[float]) -> bool:
    return min(new) <= GAIN * min(old) and median(new) <= GAIN * median(old)


def _affordable(seconds: float, least: int, most: int) -> int:
    """Return how many turns of so many seconds there is time for."""
    return max(least, min(most, int(_SECONDS / max(seconds, 1e-9))))
