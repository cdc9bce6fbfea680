"""Plans are valid, reproducible, and as small as an exact search says they can be."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from helpers import arena_checker
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import GraphcError, RangeError, UnknownNameError
from graphc.memory import ArenaPlan, Interval, plan_arena

ROOT = Path(__file__).resolve().parent.parent


def intervals_strategy(max_buffers: int, last_step: int = 12) -> st.SearchStrategy[list[Interval]]:
    """Return lists of intervals in which equal lifetimes, equal sizes and empty lists all occur."""
    lifetime = st.tuples(st.integers(0, last_step - 1), st.integers(1, last_step)).map(
        lambda t: (t[0], min(t[0] + t[1], last_step))
    )
    size = st.one_of(st.integers(1, 5).map(lambda k: 64 * k), st.integers(1, 1000))
    return st.lists(st.tuples(lifetime, size), max_size=max_buffers).map(
        lambda rows: [Interval(f"b{k}", lower, upper, size) for k, ((lower, upper), size) in enumerate(rows)]
    )


def shared_lifetimes_strategy(max_buffers: int) -> st.SearchStrategy[list[Interval]]:
    """Return lists of intervals that have few lifetimes between them, so that many are equal or touch."""
    lifetimes = st.lists(
        st.sets(st.integers(0, 6), min_size=2, max_size=2).map(sorted), min_size=1, max_size=3
    )
    return lifetimes.flatmap(
        lambda spans: st.lists(
            st.tuples(st.sampled_from(spans), st.integers(1, 300)), max_size=max_buffers
        ).map(lambda rows: named([(lower, upper, size) for (lower, upper), size in rows]))
    )


def training_net(layers: int, seed: int) -> list[Interval]:
    """Return buffers shaped like a training step: kept activations, gradients, workspaces and skips."""
    rng = random.Random(seed)
    end = 2 * layers + 1
    rows: list[tuple[int, int, int, bool]] = []
    for layer in range(layers):
        size = rng.choice([256, 1000, 4096, 10_000, 65_536])
        rows.append((layer, end - layer, size, True))
        rows.append((end - layer - 1, min(end, end - layer + 1), size, False))
        if rng.random() < 0.3:
            rows.append((layer, layer + 1, rng.randrange(1, 100_000), False))
        if rng.random() < 0.3:
            rows.append((layer, min(end, layer + rng.randint(2, 9)), size, False))
    return [Interval(f"b{k}", lower, upper, size, kept) for k, (lower, upper, size, kept) in enumerate(rows)]


def optimal_arena(intervals: Sequence[Interval], alignment: int) -> int:
    """Return the smallest possible arena, by dropping the buffers in every order.

    Each buffer goes to the lowest address that works, which is 0 or right after another buffer. Some
    order gives an optimal plan: that of an optimal plan's addresses. Orders that begin alike share that work.
    """
    sizes = {i.id: -(-i.size // alignment) * alignment for i in intervals}
    best = sum(sizes.values())

    def drop(placed: list[tuple[Interval, int]], waiting: list[Interval], height: int) -> None:
        nonlocal best
        if height >= best:
            return
        if not waiting:
            best = height
        for buffer in waiting:
            rivals = [
                (at, at + sizes[o.id])
                for o, at in placed
                if o.lower < buffer.upper and buffer.lower < o.upper
            ]
            offset = next(
                at
                for at in sorted({0} | {end for _, end in rivals})
                if all(at + sizes[buffer.id] <= begin or end <= at for begin, end in rivals)
            )
            others = [o for o in waiting if o is not buffer]
            drop([*placed, (buffer, offset)], others, max(height, offset + sizes[buffer.id]))

    drop([], list(intervals), 0)
    return best


def assert_valid(plan: ArenaPlan) -> None:
    """Compare every pair of buffers, step by step of the definition."""
    placed = list(zip(plan.intervals, plan.offsets, strict=True))
    assert all(offset >= 0 and offset % plan.alignment == 0 for _, offset in placed)
    for (a, at_a), (b, at_b) in combinations(placed, 2):
        if set(range(a.lower, a.upper)) & set(range(b.lower, b.upper)):
            assert at_a + a.size <= at_b or at_b + b.size <= at_a, f"{a} at {at_a} and {b} at {at_b}"
    assert plan.lower_bound_bytes <= plan.arena_bytes <= plan.total_bytes


@given(intervals_strategy(30), st.sampled_from([1, 16, 64, 4096]))
@settings(deadline=None)
def test_plans_are_valid(intervals: list[Interval], alignment: int) -> None:
    """Nothing overlaps, everything is aligned, and the arena lies between its two trivial bounds."""
    plan = plan_arena(intervals, alignment=alignment, effort=200_000)
    assert plan.intervals == tuple(intervals)
    assert_valid(plan)


@given(shared_lifetimes_strategy(40), st.sampled_from([1, 64]))
@settings(deadline=None)
def test_plans_of_shared_lifetimes_are_valid(intervals: list[Interval], alignment: int) -> None:
    """The same where whole groups of buffers come and go together."""
    plan = plan_arena(intervals, alignment=alignment, effort=100_000)
    assert_valid(plan)
    if len({(i.lower, i.upper) for i in intervals}) == 1:
        assert plan.arena_bytes == plan.total_bytes


@given(st.one_of(intervals_strategy(7, last_step=5), shared_lifetimes_strategy(7)), st.sampled_from([1, 64]))
@settings(deadline=None, max_examples=60)
def test_few_buffers_are_planned_optimally(intervals: list[Interval], alignment: int) -> None:
    """Up to seven buffers the arena is the true optimum, even where that is above the lower bound."""
    plan = plan_arena(intervals, alignment=alignment)
    assert_valid(plan)
    assert plan.arena_bytes == optimal_arena(intervals, alignment)


@pytest.mark.parametrize("seed", range(3))
def test_seven_buffers_are_planned_optimally(seed: int) -> None:
    """The largest case that the planner solves exactly."""
    rng = random.Random(seed)
    lowers = [rng.randrange(5) for _ in range(7)]
    intervals = named([(lower, lower + rng.randint(1, 4), rng.randint(1, 9)) for lower in lowers])
    assert plan_arena(intervals, alignment=1).arena_bytes == optimal_arena(intervals, 1)


def named(rows: Sequence[tuple[int, int, int]]) -> list[Interval]:
    """Return intervals called b0, b1 and so on."""
    return [Interval(f"b{k}", lower, upper, size) for k, (lower, upper, size) in enumerate(rows)]


def test_what_every_greedy_order_misses_is_found() -> None:
    """Only trying all orders finds the one that meets the bound here."""
    rows = [(0, 7, 1), (6, 8, 5), (3, 4, 8), (3, 7, 2), (4, 8, 1), (3, 6, 2), (5, 7, 4)]
    assert plan_arena(named(rows), alignment=1).ratio == 1.0


def test_a_bound_out_of_reach_is_not_promised() -> None:
    """The most bytes alive are 8, but no plan does with fewer than 9, as trying all 9! orders has shown."""
    rows = [(4, 6, 3), (0, 1, 5), (1, 4, 1), (0, 4, 1), (5, 6, 3), (0, 3, 2), (1, 5, 4), (3, 5, 1), (5, 9, 2)]
    plan = plan_arena(named(rows), alignment=1, effort=100_000)
    assert (plan.lower_bound_bytes, plan.arena_bytes) == (8, 9)
    assert_valid(plan)


@pytest.mark.parametrize("layers", [3, 10, 40, 120])
@pytest.mark.parametrize("seed", range(3))
def test_training_nets_meet_the_lower_bound(layers: int, seed: int) -> None:
    """Nets shaped like those that graphc compiles get a provably optimal arena."""
    plan = plan_arena(training_net(layers, seed))
    assert_valid(plan)
    assert plan.ratio == 1.0


@given(intervals_strategy(20), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_the_order_of_the_input_does_not_matter(intervals: list[Interval], rng: random.Random) -> None:
    """The same buffers get the same offsets however they are listed, and every time."""
    plan = plan_arena(intervals, effort=100_000)
    shuffled = rng.sample(intervals, len(intervals))
    again = plan_arena(shuffled, effort=100_000)
    assert {i.id: plan.offset_of(i.id) for i in intervals} == {i.id: again.offset_of(i.id) for i in intervals}


def hard_net() -> list[Interval]:
    """Return buffers for which no construction meets the bound, so that the random search runs."""
    rng = random.Random(8)
    lowers = [rng.randrange(40) for _ in range(60)]
    return named([(lower, lower + rng.randint(1, 20), 64 * rng.randint(1, 60)) for lower in lowers])


def test_the_search_repeats_in_another_process() -> None:
    """String hashes differ from process to process; plans do not."""
    program = "import test_memory_planner as t; print(t.plan_arena(t.hard_net(), effort=1_000_000).offsets)"
    folders = [str(Path(__file__).parent), *sys.path]  # the same graphc as here, installed or not
    outputs = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(folders)}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1] == f"{plan_arena(hard_net(), effort=1_000_000).offsets}\n"


def test_more_effort_never_gives_a_larger_arena() -> None:
    """The search only ever replaces a plan by a smaller one."""
    arenas = [plan_arena(hard_net(), effort=effort).arena_bytes for effort in (0, 100_000, 8_000_000)]
    assert arenas == sorted(arenas, reverse=True)
    assert plan_arena(hard_net()).ratio == 1.0


def test_a_thousand_buffers_meet_the_bound() -> None:
    assert plan_arena(training_net(390, 0)).ratio == 1.0


def test_parts_that_share_no_step_share_the_memory() -> None:
    """Two nets one after the other need what the larger one needs."""
    first = [Interval("a", 0, 2, 640), Interval("b", 1, 3, 64)]
    second = [Interval("c", 3, 5, 128), Interval("d", 4, 6, 128)]
    plan = plan_arena(first + second)
    assert plan.arena_bytes == plan.lower_bound_bytes == 704


def test_equal_lifetimes_are_kept_apart() -> None:
    """Buffers alive in exactly the same steps all overlap."""
    plan = plan_arena([Interval(f"b{k}", 2, 3, 10) for k in range(5)], alignment=16)
    assert sorted(plan.offsets) == [0, 16, 32, 48, 64]


def test_touching_lifetimes_share_an_address() -> None:
    """A lifetime that ends at a step and one that starts there do not overlap."""
    plan = plan_arena([Interval("a", 0, 1, 100), Interval("b", 1, 2, 100)])
    assert plan.offsets == (0, 0)


def test_no_buffers_need_no_arena() -> None:
    """The empty plan is a plan."""
    plan = plan_arena([])
    assert (plan.arena_bytes, plan.lower_bound_bytes, plan.ratio, plan.live_bytes) == (0, 0, 1.0, [])
    assert (plan.peak_step, plan.alive_at_peak) == (0, ())


@pytest.mark.parametrize(
    ("lower", "upper", "size", "message"),
    [
        (3, 3, 64, r"buffer 'x': the lifetime \[3, 3\) is empty"),
        (4, 3, 64, r"buffer 'x': the lifetime \[4, 3\) is empty"),
        (-1, 3, 64, "buffer 'x': the lifetime starts at step -1, before step 0"),
        (0, 1, 0, "buffer 'x': the size must be positive, got 0 bytes"),
        (0, 1, -8, "buffer 'x': the size must be positive, got -8 bytes"),
    ],
)
def test_impossible_intervals_are_refused(lower: int, upper: int, size: int, message: str) -> None:
    """The message names the buffer, the rule and the value."""
    with pytest.raises(RangeError, match=message):
        Interval("x", lower, upper, size)


def test_an_id_used_twice_is_refused() -> None:
    """The message shows both buffers."""
    twice = [Interval("x", 0, 1, 64), Interval("x", 2, 3, 32)]
    with pytest.raises(UnknownNameError, match=r"'x' is used twice: .*\[0, 1\) of 64 .*\[2, 3\) of 32"):
        plan_arena(twice)


@pytest.mark.parametrize("alignment", [0, -64, 48])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment: int) -> None:
    """C's alignas takes powers of two only."""
    with pytest.raises(RangeError, match=f"power of two, got {alignment}"):
        plan_arena([Interval("x", 0, 1, 64)], alignment=alignment)


def test_a_negative_effort_is_refused() -> None:
    """It would mean nothing."""
    with pytest.raises(GraphcError, match="effort must not be negative, got -1"):
        plan_arena([], effort=-1)


@pytest.mark.skipif(
    arena_checker() is None, reason="arena_check.py is neither in $GRAPHC_SHARED_TOOLS nor in ../shared"
)
@pytest.mark.parametrize("case", ["empty", "small", "training", "hard"])
def test_an_independent_checker_agrees(case: str, tmp_path: Path) -> None:
    """A program that shares no code with graphc finds the plan valid, and the same sizes."""
    intervals = {
        "empty": [],
        "small": [Interval("a, with a comma", 0, 2, 1), Interval("b", 1, 2, 65), Interval("c", 1, 2, 64)],
        "training": training_net(60, 5),
        "hard": hard_net(),
    }[case]
    plan = plan_arena(intervals)
    path = tmp_path / "plan.csv"
    plan.to_csv(path)
    checker = arena_checker()
    assert checker is not None
    run = subprocess.run(
        [sys.executable, str(checker), str(path), "--align", "64", "--capacity", str(plan.arena_bytes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    facts = {line[:12].strip(): line[12:].split()[0] for line in run.stdout.splitlines()[:5]}
    assert facts["arena"] == str(plan.arena_bytes)
    assert facts["lower bound"] == str(plan.lower_bound_bytes)
    assert facts["sum"] == str(plan.total_bytes)
