"""With poison=True the arena holds NaNs wherever nothing is alive: nets do not notice, wrong lifetimes do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emitted import emission, lenet_module
from helpers import full_only

import graphc as gc
from graphc import models
from graphc.lower import arena
from graphc.memory import ArenaPlan, Interval, plan_arena
from graphc.models import GoogLeNetLogits

# Where buffers lie, and when they are filled, does not depend on how well the C compiler optimises.
QUICK = gc.BuildOptions(optimisation=("-O0",))
BATCH, CLASSES = 2, 3


@dataclass(frozen=True)
class Case:
    """A net of ``graphc.models``, on images as small as it takes."""

    label: str
    build: Callable[..., gc.Tensor | GoogLeNetLogits]
    shape: tuple[int, int, int]


def vgg_case(depth: int, norm: bool) -> Case:
    build = partial(models.vgg, depth=depth, norm=norm, width=4, hidden=16)
    return Case(f"vgg{depth}{'_bn' if norm else ''}", build, (3, 32, 32))


CASES = [
    Case("mlp", partial(models.mlp, hidden=(12, 8)), (1, 5, 5)),
    Case("lenet", models.lenet, (1, 32, 32)),
    Case("lenet_1998", models.lenet_1998, (1, 32, 32)),
    Case("alexnet_2012", models.alexnet_2012, (3, 67, 67)),
    vgg_case(11, norm=True),
    vgg_case(16, norm=False),
    Case("googlenet", partial(models.googlenet, norm=False, kernel=3), (3, 32, 32)),
    Case("resnet18", models.resnet18, (3, 33, 33)),
    Case("resnet_cifar20", partial(models.resnet_cifar, width=4), (3, 32, 32)),
    Case("alexnet", models.alexnet, (3, 63, 63)),  # 54 million weights whatever the image
    *[vgg_case(depth, norm=False) for depth in (11, 13, 19)],
    *[vgg_case(depth, norm=True) for depth in (13, 16, 19)],
    Case("googlenet_with_heads", models.googlenet_with_heads, (3, 64, 64)),
    *[
        Case(f"resnet{depth}", partial(models.resnet, depth=depth), (3, 33, 33))
        for depth in (34, 50, 101, 152)
    ],
    Case("resnet_cifar56", partial(models.resnet_cifar, width=4, depth=56), (3, 32, 32)),
]
SLOW = ("googlenet_with_heads", "resnet34", "resnet50", "resnet101", "resnet152")
# More of what GoogLeNet, ResNet-18 and ResNet-50 are.
LONG = ("googlenet_with_heads", "resnet34", "resnet101", "resnet152")


def marks(label: str) -> list[pytest.MarkDecorator]:
    """Return when a net is tested."""
    return [pytest.mark.slow] * (label in SLOW) + [full_only] * (label in LONG)


def compiled(case: Case, poison: bool) -> gc.Module:
    x, y = gc.input("x", ("N", *case.shape)), gc.input("y", ("N",), dtype="int32")
    out = case.build(x, classes=CLASSES)
    outputs = out._asdict() if isinstance(out, GoogLeNetLogits) else {"logits": out}
    losses = [gc.losses.cross_entropy(logits, y) for logits in outputs.values()]
    loss = losses[0] + 0.3 * (losses[1] + losses[2]) if len(losses) == 3 else losses[0]
    return gc.compile(outputs, loss, gc.SGD(lr=1e-3), batch=BATCH, build=QUICK, poison=poison)


def results(module: gc.Module) -> dict[str, np.ndarray]:
    """Return what inference and two training steps give, and everything that the steps change."""
    rng = np.random.default_rng(0)
    (_, shape) = module.input_types["x"]
    found: dict[str, np.ndarray] = {}
    for step, batch in enumerate((BATCH, 1)):  # the second leaves a part of every buffer unused
        x = rng.standard_normal((batch, *shape[1:])).astype(module.dtype)
        y = rng.integers(0, CLASSES, batch).astype(np.int32)
        found |= {f"{name} {step}": value for name, value in module.predict(x=x).items()}
        found[f"loss {step}"] = np.array(float(module.train_step(x=x, y=y)))
    return found | module.state_dict()


def differing(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> list[str]:
    """Return the names whose bits differ."""
    assert list(got) == list(want)
    return [name for name, value in want.items() if got[name].tobytes() != value.tobytes()]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.label, marks=marks(case.label)) for case in CASES],
)
def test_a_net_does_not_notice(case: Case) -> None:
    """The same bits with and without poison."""
    want = results(compiled(case, poison=False))
    assert all(np.isfinite(value).all() for value in want.values())
    assert differing(results(compiled(case, poison=True)), want) == []


def test_every_model_is_here() -> None:
    """A model that is added to graphc.models is added here."""
    labels = [case.label for case in CASES]
    functions = [name for name in models.__all__ if name[0].islower()]
    assert [name for name in functions if not any(label.startswith(name) for label in labels)] == []


def without_poison(text: str) -> str:
    """Return the text without the helper and the lines that call it."""
    text = re.sub(r"\n/\* Signalling NaNs(.*\n)+?}\n", "", text)
    return re.sub(r" *gc_poison_[fd]\(.*\n", "", text)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_text_differs_in_lines_of_poison_alone(dtype: str) -> None:
    plain, poisoned = (lenet_module(dtype=dtype, poison=poison) for poison in (False, True))
    assert "gc_poison" not in plain.source
    assert poisoned.source.count("gc_poison_") > 20
    assert without_poison(poisoned.source) == plain.source and poisoned.header == plain.header


def test_lines_follow_the_last_kernel_that_uses_a_buffer() -> None:
    x = gc.input("x", ("N", 6))
    text = emission("soft", {"out": gc.softmax(gc.exp(gc.nn.linear(x, 5)), 0)}, poison=True).source
    body = [line.strip() for line in text[text.index("int soft_predict(") :].splitlines()]
    lines = [k for k, line in enumerate(body) if line.startswith("gc_poison_f")]
    assert body[lines[0]] == "gc_poison_f(arena, 0, memory->arena_bytes);"
    for k in lines[1:]:
        offset, size, name = re.fullmatch(
            r"gc_poison_f\(arena, (\d+), (\d+)\); /\* (\w+) \*/", body[k]
        ).groups()  # type: ignore[union-attr]
        assert f" *const {name} = (float *)(arena + {offset});" in text and int(size) % 64 == 0
        uses = [j for j, line in enumerate(body) if re.search(rf"\b{name}\b", line.partition("/*")[0])]
        assert max(uses) < k and not any(
            body[j].endswith(";") for j in range(max(uses) + 1, k) if j not in lines
        )


def test_nan_guard_does_not_take_poison_for_a_result() -> None:
    """Workspaces of Winograd's method, parts of which nobody writes, hold no results."""
    x = gc.input("x", ("N", 3, 16, 16))
    h = gc.relu(gc.nn.conv2d(x, 32, kernel=3, padding=1, name="conv1"))
    h = gc.nn.conv2d(h, 32, kernel=3, padding=1, name="conv2")
    options = {"batch": 3, "build": QUICK, "nan_guard": True, "poison": True}
    module = gc.compile({"h": h}, gc.mean(h * h), gc.SGD(lr=0.1), **options)
    assert any("winograd" in text for text in module.source.values())
    image = np.ones((1, 3, 16, 16), np.float32)
    assert np.isfinite(float(module.train_step(x=image)))
    assert np.isfinite(module.predict(x=image)["h"]).all()


def tiny(x: gc.Tensor, classes: int) -> gc.Tensor:
    """Return a perceptron with batch norm."""
    h = gc.tanh(gc.nn.batch_norm(gc.nn.linear(gc.flatten(x), 6, name="fc1"), name="bn"))
    return gc.nn.linear(h, classes, name="fc2")


def shortened(victim: str) -> Callable[..., ArenaPlan]:
    """Return a planner that takes a buffer to die one kernel before its last."""

    def plan(intervals: Sequence[Interval], **options: Any) -> ArenaPlan:
        return plan_arena(
            [replace(i, upper=i.upper - 1) if i.id == victim else i for i in intervals], **options
        )

    return plan


def test_a_lifetime_that_is_too_short_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever buffer of the training step dies one kernel too early, results become NaN or other bits."""
    case = Case("tiny", tiny, (1, 2, 2))
    module = compiled(case, poison=True)
    want, unnoticed = results(module), []
    victims = [i.id for i in module.plan("train").intervals if i.upper - i.lower > 1]
    assert len(victims) > 10
    # The cache does not know of planners that err.
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    for victim in victims:
        monkeypatch.setattr(arena, "plan_arena", shortened(victim))
        shutil.rmtree(tmp_path)
        if not differing(results(compiled(case, poison=True)), want):
            unnoticed.append(victim)
    assert unnoticed == []
