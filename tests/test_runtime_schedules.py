"""Learning-rate schedules against their closed forms and against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from graphc_runtime.errors import RangeError
from graphc_runtime.schedules import Constant, Cosine, Schedule, Step, Warmup, as_schedule


def test_constant_is_the_same_at_every_time() -> None:
    assert [Constant(0.3)(t) for t in (0.0, 0.5, 1e6)] == [0.3] * 3
    assert as_schedule(0.3) == Constant(0.3)
    assert as_schedule(Cosine(0.1, 5)) == Cosine(0.1, 5)


def test_step_drops_at_the_milestone_and_not_before() -> None:
    schedule = Step(0.1, (2, 4), gamma=0.5)
    assert [schedule(t) for t in (0, 1.999, 2, 3.999, 4, 100)] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    assert Step(0.1, [2, 4]) == Step(0.1, (2, 4))  # type: ignore[arg-type]  # what many people write
    assert hash(schedule) == hash(Step(0.1, (2, 4), gamma=0.5))


def test_cosine_follows_its_formula_within_epochs_and_then_stays_low() -> None:
    schedule = Cosine(1.0, epochs=8, floor=0.1)
    for step in range(80):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 80)) / 2
        assert schedule(step / 10) == pytest.approx(expected, rel=1e-14)
    assert schedule(8) == schedule(11) == 0.1


def test_warmup_rises_linearly_and_then_starts_the_other_clock() -> None:
    schedule = Warmup(Cosine(1.0, 10), epochs=4, start=0.2)
    assert [schedule(t) for t in (0, 1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule(4) == 1.0
    assert schedule(9) == Cosine(1.0, 10)(5)


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "warmup"])
def test_values_at_whole_epochs_are_those_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    schedulers = torch.optim.lr_scheduler

    def warmup(optimizer: Any) -> Any:
        first = schedulers.LinearLR(optimizer, start_factor=0.25, total_iters=3)
        return schedulers.SequentialLR(
            optimizer, [first, schedulers.CosineAnnealingLR(optimizer, T_max=9)], milestones=[3]
        )

    cases: dict[str, tuple[Schedule, Callable[[Any], Any]]] = {
        "constant": (Constant(0.3), lambda o: schedulers.ConstantLR(o, factor=1.0)),
        "step": (Step(0.3, (3, 7)), lambda o: schedulers.MultiStepLR(o, [3, 7], gamma=0.1)),
        "cosine": (
            Cosine(0.3, 12, floor=0.01),
            lambda o: schedulers.CosineAnnealingLR(o, T_max=12, eta_min=0.01),
        ),
        "warmup": (Warmup(Cosine(0.3, 9), 3, start=0.25), warmup),
    }
    ours, make = cases[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = make(optimizer)
    for epoch in range(12):
        assert ours(float(epoch)) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1.0),
        lambda: Constant(math.nan),
        lambda: Step(0.1, (3, 3)),
        lambda: Step(0.1, (0, 3)),
        lambda: Step(0.1, (math.nan,)),
        lambda: Step(0.1, (3,), gamma=math.inf),
        lambda: Cosine(0.1, 0),
        lambda: Cosine(0.1, math.inf),
        lambda: Cosine(0.1, 5, floor=-0.1),
        lambda: Warmup(Constant(0.1), 0),
        lambda: Warmup(Constant(0.1), 2, start=1.5),
    ],
)
def test_impossible_schedules_are_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(RangeError):
        make()
