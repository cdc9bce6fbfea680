"""Optimizers: their steps against torch.optim, their groups, their checks, and the loop that they print."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import sympy as sp

import graphc as gc
from graphc import scalar
from graphc.errors import RangeError, UnknownNameError
from graphc.optim import LR, G, Optimizer, Rule, W, new, slot

SHAPES = {"a.weight": (3, 4), "a.bias": (5,), "b.weight": (2, 3), "scale": (1,)}
# The same arithmetic in another order: a few roundings a step, over 20 steps. Adam divides by the root
# of a squared gradient, which magnifies them where the gradient is small.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def make_module(optimizer: Optimizer | None, dtype: str, name: str = "net") -> gc.Module:
    """Return a module whose gradients are neither constant nor linear, and start where they are not small."""
    loss = gc.constant(0.0)
    for k, (key, shape) in enumerate(SHAPES.items()):
        rng = np.random.default_rng(k)
        w = gc.parameter(key, shape, rng.uniform(0.5, 1.5, shape))
        x = gc.input(key.replace(".", "_"), shape)
        loss = loss + gc.sum(x * w * w + gc.exp(w * 0.3) * 0.2)
    return gc.compile({}, loss=loss, optimizer=optimizer, dtype=dtype, name=name)


def batches(dtype: str, steps: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(9)
    return [
        {k.replace(".", "_"): rng.uniform(-1, 1, s).astype(dtype) for k, s in SHAPES.items()}
        for _ in range(steps)
    ]


def torch_losses(weights: dict[str, Any], batch: dict[str, np.ndarray]) -> Any:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    total = 0
    for key, w in weights.items():
        x = torch.tensor(batch[key.replace(".", "_")])
        total = total + (x * w * w + torch.exp(w * 0.3) * 0.2).sum()
    return total


@dataclass(frozen=True)
class Pair:
    """An optimizer, and how to make PyTorch's of the same meaning from named parameters."""

    label: str
    ours: Optimizer
    theirs: Callable[[Any, dict[str, Any]], Any]


def all_of(kind: str, **options: Any) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda torch, w: getattr(torch.optim, kind)(w.values(), lr=0.1, **options)


def in_groups(kind: str, groups: list[tuple[list[str], dict[str, Any]]], **options: Any) -> Any:
    return lambda torch, w: getattr(torch.optim, kind)(
        [{"params": [w[n] for n in names], **more} for names, more in groups], lr=0.1, **options
    )


MATRICES, VECTORS = ["a.weight", "b.weight"], ["a.bias", "scale"]
PAIRS = [
    Pair("sgd", gc.SGD(0.1), all_of("SGD")),
    Pair("decay", gc.SGD(0.1, weight_decay=0.05), all_of("SGD", weight_decay=0.05)),
    Pair("momentum", gc.SGD(0.1, momentum=0.9, weight_decay=5e-4),
         all_of("SGD", momentum=0.9, weight_decay=5e-4)),
    Pair("dampening", gc.SGD(0.1, 0.8, 0.3, weight_decay=0.01),
         all_of("SGD", momentum=0.8, dampening=0.3, weight_decay=0.01)),
    Pair("nesterov", gc.SGD(0.1, 0.9, nesterov=True, weight_decay=0.01),
         all_of("SGD", momentum=0.9, nesterov=True, weight_decay=0.01)),
    Pair("adam", gc.Adam(0.1), all_of("Adam")),
    Pair("adam decay", gc.Adam(0.1, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1),
         all_of("Adam", betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1)),
    Pair("adamw", gc.AdamW(0.1), all_of("AdamW")),
    Pair("adamw decay", gc.AdamW(0.1, weight_decay=0.3), all_of("AdamW", weight_decay=0.3)),
    Pair("matrices only", gc.SGD(0.1, 0.9, weight_decay=0.1, decay="matrices"),
         in_groups("SGD", [(MATRICES, {"weight_decay": 0.1}), (VECTORS, {})], momentum=0.9)),
    Pair("adamw matrices only", gc.AdamW(0.1, weight_decay=0.2, decay="matrices"),
         in_groups("AdamW", [(MATRICES, {"weight_decay": 0.2}), (VECTORS, {"weight_decay": 0.0})])),
    Pair("groups",
         gc.SGD(0.1, 0.9, 0.2, 0.1, groups={"*.bias": {"weight_decay": 0.0}, "b.*": {"momentum": 0.0},
                                            "scale": {"momentum": 0.5, "dampening": 0.0}}),
         in_groups("SGD", [(["a.weight"], {}), (["a.bias"], {"weight_decay": 0.0}),
                           (["b.weight"], {"momentum": 0.0}),
                           (["scale"], {"momentum": 0.5, "dampening": 0.0})],
                   momentum=0.9, dampening=0.2, weight_decay=0.1)),
    Pair("momentum in one group", gc.SGD(0.1, groups={"a.*": {"momentum": 0.9}}),
         in_groups("SGD", [(["a.weight", "a.bias"], {"momentum": 0.9}), (["b.weight", "scale"], {})])),
    Pair("scaled rate", gc.Adam(0.1, groups={"b.*": {"lr_scale": 0.1, "beta1": 0.5}}),
         in_groups("Adam", [(["a.weight", "a.bias", "scale"], {}), (["b.weight"], {"betas": (0.5, 0.999)})])),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p.label.replace(" ", "-"))
def test_twenty_steps_follow_pytorch(pair: Pair, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = make_module(pair.ours, dtype)
    weights = {k: torch.tensor(np.array(module.params[k]), requires_grad=True) for k in SHAPES}
    theirs = pair.theirs(torch, weights)
    scales = [0.1 if pair.label == "scaled rate" and k == 1 else 1.0 for k in range(len(theirs.param_groups))]
    for step, batch in enumerate(batches(dtype, 20)):
        rate = 0.05 / (1 + 0.1 * step)
        for group, scale in zip(theirs.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        theirs.zero_grad()
        loss = torch_losses(weights, batch)
        loss.backward()
        theirs.step()
        got = module.train_step(lr=rate, **batch)
        assert got == pytest.approx(float(loss.detach()), rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        for key, w in weights.items():
            want = w.detach().numpy()
            scale = float(np.abs(want).max())
            np.testing.assert_allclose(
                module.params[key],
                want,
                rtol=TOLERANCE[dtype],
                atol=TOLERANCE[dtype] * scale,
                err_msg=f"{step} {key}",
            )
    assert module.step == 20


def test_the_rate_of_the_optimizer_is_the_default() -> None:
    module, other = (make_module(gc.SGD(lr), "float64") for lr in (0.25, 9.0))
    (batch,) = batches("float64", 1)
    module.train_step(**batch)
    other.train_step(lr=0.25, **batch)
    for key in SHAPES:
        np.testing.assert_array_equal(module.params[key], other.params[key])


def test_a_rate_of_zero_changes_no_weight() -> None:
    module = make_module(gc.AdamW(0.1), "float64")
    before = {k: v.copy() for k, v in module.params.items()}
    module.train_step(lr=0.0, **batches("float64", 1)[0])
    for key, value in before.items():
        np.testing.assert_array_equal(module.params[key], value)


def loop_of(module: gc.Module) -> str:
    source = module.source["net.c"]
    begin = source.index("static void update(")
    return source[begin : source.index("\n}\n", begin)]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p.label.replace(" ", "-"))
def test_the_update_loop_holds_nothing_that_could_stand_before_it(pair: Pair) -> None:
    """One loop a range; one division and one root in it where it is Adam's; never a power."""
    text = loop_of(make_module(pair.ours, "float32"))
    bodies = re.findall(r"for \(int64_t k = [^{]*\{(.*?)\n        \}", text, flags=re.DOTALL)
    adam = isinstance(pair.ours, gc.Adam)
    assert len(bodies) == text.count("for (int64_t k") >= 1
    for body in bodies:
        assert not re.search(r"\bpowf?\(", body)
        assert "double" not in body
        assert body.count("/") == int(adam)
        assert body.count("sqrt") == int(adam)


def test_parameters_of_one_kind_share_a_loop() -> None:
    one = loop_of(make_module(gc.SGD(0.1, 0.9), "float32"))
    two = loop_of(make_module(gc.SGD(0.1, 0.9, weight_decay=0.1, decay="matrices"), "float32"))
    assert one.count("for (int64_t") == 1
    assert two.count("for (int64_t") == 2
    assert "a.weight, b.weight" in two
    assert "a.bias, scale" in two


@dataclass(frozen=True)
class Lion(Optimizer):
    """Sign of an interpolated momentum: what adding an optimizer takes. Source: Chen et al. 2023."""

    beta1: float = 0.9
    beta2: float = 0.99

    @property
    def hyperparameters(self) -> dict[str, float]:
        return {"beta1": self.beta1, "beta2": self.beta2}

    def rule(self, h: Any) -> Rule:
        blend = h["beta1"] * slot("average") + (1 - h["beta1"]) * G
        sign = scalar.piecewise(
            (1, scalar.compare(sp.Gt, blend, 0)), (-1, scalar.compare(sp.Lt, blend, 0)), (0, True)
        )
        average = h["beta2"] * slot("average") + (1 - h["beta2"]) * G
        return Rule(("average",), (), (("w", W - LR * sign), ("average", average)))


def test_an_optimizer_of_the_users_own() -> None:
    module = make_module(Lion(0.01), "float64")
    weights = {k: np.array(v) for k, v in module.params.items()}
    average = {k: np.zeros(s) for k, s in SHAPES.items()}
    for batch in batches("float64", 5):
        module.train_step(**batch)
        for key, w in weights.items():
            g = 2 * batch[key.replace(".", "_")] * w + 0.06 * np.exp(w * 0.3)
            weights[key] = w - 0.01 * np.sign(0.9 * average[key] + 0.1 * g)
            average[key] = 0.99 * average[key] + 0.01 * g
    for key, w in weights.items():
        np.testing.assert_allclose(module.params[key], w, rtol=1e-12)
        np.testing.assert_allclose(module.slots["average"][key], average[key], rtol=1e-12)
    assert str(new("average")) == "average_new"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: gc.SGD(-0.1), RangeError, "lr"),
        (lambda: gc.SGD(float("nan")), RangeError, "lr"),
        (lambda: gc.SGD(0.1, momentum=-1), RangeError, "momentum"),
        (lambda: gc.SGD(0.1, weight_decay=-1e-9), RangeError, "weight_decay"),
        (lambda: gc.SGD(0.1, nesterov=True), RangeError, "nesterov"),
        (lambda: gc.SGD(0.1, 0.9, dampening=0.1, nesterov=True), RangeError, "nesterov"),
        (lambda: gc.SGD(0.1, decay="biases"), RangeError, "biases"),
        (lambda: gc.SGD(0.1, groups={"*.bias": {"weight_decya": 0}}), UnknownNameError, "weight_decya"),
        (lambda: gc.SGD(0.1, groups={"*.bias": {"weight_decay": -1}}), RangeError, "bias"),
        (lambda: gc.Adam(0.1, betas=(0.9, 1.0)), RangeError, "betas"),
        (lambda: gc.Adam(0.1, betas=(-0.1, 0.9)), RangeError, "beta"),
        (lambda: gc.Adam(0.1, eps=-1.0), RangeError, "eps"),
        (lambda: replace(gc.AdamW(0.1), weight_decay=float("inf")), RangeError, "weight_decay"),
        (lambda: gc.Adam(0.1, groups={"*": {"beta1": 1.0}}), RangeError, "beta1"),
    ],
)
def test_bad_numbers_are_refused(make: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
