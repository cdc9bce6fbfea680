"""The plans of all ready-made nets, at full size: proven minimal, and no larger than published figures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from budget import cost
from helpers import arena_checker

import graphc as gc
from graphc.isa import ISAS
from graphc.lower.arena import buffer_bytes, lifetimes
from graphc.memory import ArenaPlan
from graphc.memory.interval import round_up
from graphc.pipeline import Request, compile_program
from graphc.program.ir import Entry, Space
from graphc.rewrites import ALL, Rewrites

NETS = ("lenet", "alexnet", "vgg16", "googlenet", "resnet18", "resnet50")
MIB = 2**20
IMAGES = {
    "lenet": (1, 32, 32), "lenet_1998": (1, 32, 32), "mlp": (1, 28, 28), "resnet_cifar": (3, 32, 32)
}  # fmt: skip
NONE = Rewrites(in_place=False, accumulate=False, concat=False, pool=False, run_again=False)
LOOPS = replace(NONE, in_place=True, concat=True)
SKIPS = replace(LOOPS, accumulate=True)


def request(net: str, batch: int, train: bool, **options: Any) -> Request:
    """Return a request for a net with 1000 classes and images of 224 x 224 (LeNet: 10, 32 x 32), AVX-512."""
    x = gc.input("x", ("N", *IMAGES.get(net, (3, 224, 224))))
    y = gc.input("y", ("N",), dtype="int32")
    logits = getattr(gc.models, net)(x)
    loss = gc.losses.cross_entropy(logits, y) if train else None
    sgd = gc.SGD(lr=0.01, momentum=0.9) if train else None
    return Request(net, {"logits": logits}, loss, {}, sgd, batch, "float32", isa=ISAS["avx512"], **options)


@lru_cache(maxsize=4)
def planned(
    net: str, batch: int, train: bool, rewrites: Rewrites = ALL, winograd: bool = True
) -> dict[str, Any]:
    """Return entries and plans by name."""
    compiled = compile_program(request(net, batch, train, rewrites=rewrites, winograd=winograd))
    return {e.name: (e, compiled.plans[e.name]) for e in compiled.program.entries}


def with_input(entry: Entry, plan: ArenaPlan, batch: int) -> int:
    """Return the most bytes of values alive at one step, the network's input counted until its last reader."""
    live = [0] * (len(entry.calls) + 1)
    scratch = {i.id for i in plan.intervals if i.scratch}
    spans = {b: s for b, s in lifetimes(entry.calls).items() if b.name not in scratch}
    for step, call in enumerate(entry.calls):
        for buffer in call.buffers:
            if buffer.space is Space.INPUT and buffer.dtype == "float32":
                spans[buffer] = (0, step + 1)
    for buffer, (first, end) in spans.items():
        for step in range(first, end):
            live[step] += round_up(buffer_bytes(buffer, batch), 64)
    return max(live)


# MiB of inference at batch 1, the input included: without any rewrite; loops in place and concatenations without
# copies; moreover convolutions that add in place; moreover pooling in convolutions.
INFERENCE = {
    "vgg16": (24.500, 24.500, 24.500, 15.312),
    "alexnet": (1.313, 1.313, 1.313, 0.752),
    "googlenet": (3.828, 3.828, 3.828, 2.967),
    "resnet18": (3.828, 3.828, 3.828, 1.531),
    "resnet50": (9.188, 6.891, 4.977, 4.977),
    "lenet": (23520 / MIB, 23520 / MIB, 23520 / MIB, 8800 / MIB),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("column", range(4))
def test_inference_is_as_small_as_published(net: str, column: int) -> None:
    """Rounding up to 64 bytes is all that is allowed on top: at most eight arrays are alive at the peak.

    Convolutions are direct, since a workspace would decide the order. VGG's are not: its largest images are copied
    with a border where they are convolved directly.
    """
    rewrites = (NONE, LOOPS, SKIPS, ALL)[column]
    entry, plan = planned(net, 1, False, rewrites, net == "vgg16")["predict"]
    assert with_input(entry, plan, 1) <= INFERENCE[net][column] * MIB * 1.0002 + 8 * 64


# MiB kept for the backward pass at batch 1, the input included, and the peak of the whole step.
TRAINING = {
    "vgg16": (36.236, 37.898),
    "alexnet": (1.445, 1.777),
    "googlenet": (19.648, 20.119),
    "resnet18": (13.883, 14.260),
    "resnet50": (64.994, 65.939),
    "lenet": (12832 / MIB, 33496 / MIB),
}


@pytest.mark.parametrize("net", NETS)
def test_training_keeps_no_more_than_published(net: str) -> None:
    """Kept bytes and peak of values; every small array may take up to 63 bytes more than it has."""
    entry, plan = planned(net, 1, True)["train_step"]
    image = (1024 if net == "lenet" else 3 * 224 * 224) * 4
    padding = 64 * sum(i.kept for i in plan.intervals)
    assert plan.kept_bytes + image <= TRAINING[net][0] * MIB * 1.0002 + padding
    assert with_input(entry, plan, 1) <= TRAINING[net][1] * MIB * 1.0002 + padding


# Net, whether convolutions may use Winograd's algorithm, and the budget as a part of the arena without one; then what
# may be kept for the backward pass as a part of what is kept without a budget, and the percentage of the forward pass
# that may run again for it: published figures, which count direct convolutions. VGG-16 has no published figure for
# what its first two layers let be kept; 30.5 is that for 60 %. The last line has none: there the arena itself is
# less than two fifths of what is kept without a budget, and what it cost when this was written is allowed.
BUDGETS = [
    ("resnet50", True, 0.61, 0.6, 19.2),
    ("resnet50", True, 0.504, 0.5, 29.9),
    ("resnet18", False, 0.62, 0.6, 19.3),
    ("resnet18", False, 0.513, 0.5, 32.0),
    ("googlenet", False, 0.6, 0.6, 33.7),
    ("googlenet", False, 0.5, 0.5, 56.9),
    ("vgg16", True, 0.77, 0.64, 30.5),
    ("resnet50", True, 0.389, 0.4, 46.0),
]


@pytest.mark.parametrize(("net", "winograd", "part", "kept", "again"), BUDGETS)
def test_a_budget_costs_no_more_than_published(
    net: str, winograd: bool, part: float, kept: float, again: float
) -> None:
    """Operations that run again, as the plan's kernels count them."""
    _, free = planned(net, 32, True, winograd=winograd)["train_step"]
    tight, repeated = cost(net, 32, int(part * free.arena_bytes), winograd)
    assert tight.arena_bytes == tight.lower_bound_bytes <= part * free.arena_bytes
    assert tight.kept_bytes <= kept * free.kept_bytes
    if part < 0.4:
        assert tight.arena_bytes <= 0.4 * free.kept_bytes
    assert repeated <= again


MODELS = (
    "mlp", "lenet", "lenet_1998", "alexnet", "alexnet_2012", "vgg11", "vgg13", "vgg16", "vgg19", "googlenet",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_cifar",
)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("net", MODELS)
def test_every_plan_meets_its_bound(net: str, batch: int, tmp_path: Path) -> None:
    """The arena is the bound of its order, in all entry points; inference is proven over all orders, too."""
    checker = arena_checker()
    for name, (_, plan) in planned(net, batch, True).items():
        assert plan.arena_bytes == plan.lower_bound_bytes, name
        if checker is not None:
            plan.to_csv(tmp_path / "plan.csv")
            options = ["--align", "64", "--capacity", str(plan.lower_bound_bytes)]
            subprocess.run([sys.executable, str(checker), str(tmp_path / "plan.csv"), *options], check=True)
        if name == "predict":
            assert plan.least_bound_bytes == plan.lower_bound_bytes
        else:  # where the search gave up, that is said; a bound that is known is never above the plan
            assert plan.least_bound_bytes in (None, plan.lower_bound_bytes)
