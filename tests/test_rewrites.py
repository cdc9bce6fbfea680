"""Rewrites that save memory change where values lie and when they are computed, and not one bit of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError

BATCH = 4


def net() -> tuple[Any, Any, Any]:
    """Return logits, loss and a metric of a net with residual blocks, branches, pooling and dropout."""
    x = gc.input("x", ("N", 3, 16, 16))
    y = gc.input("y", ("N",), dtype="int32")

    def conv(h: Any, channels: int, kernel: int, name: str) -> Any:
        h = gc.nn.conv2d(h, channels, kernel, padding=kernel // 2, bias=False, name=name)
        return gc.nn.batch_norm(h, name=f"{name}_norm")

    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 40, 5, padding=2, name="stem")), 2)
    for block in range(4):
        inner = gc.relu(conv(h, 40, 3, f"block{block}_a"))
        h = gc.relu(conv(inner, 40, 3, f"block{block}_b") + h)
    pooled = gc.nn.max_pool2d(h, 3, stride=1, padding=1)
    branches = [gc.relu(conv(h, 12, 1, "one")), gc.relu(conv(h, 20, 3, "three"))]
    h = gc.concat([*branches, gc.nn.conv2d(pooled, 8, 1, name="pool")], axis=1)
    h = gc.relu(gc.nn.conv2d(h, 24, 1, name="after"))
    h = gc.nn.dropout(gc.flatten(gc.nn.avg_pool2d(h, 2)), 0.3)
    logits = gc.nn.linear(h, 10, name="fc")
    return logits, gc.losses.cross_entropy(logits, y), gc.mean(gc.square(h))


def compiled(**options: Any) -> gc.Module:
    """Return the net, compiled with options."""
    logits, loss, power = net()
    named: dict[str, Any] = {"metrics": {"power": power}, "optimizer": gc.SGD(lr=0.05, momentum=0.9)}
    return gc.compile(
        {"logits": logits}, loss=loss, batch=BATCH, name="rewritten", seed=3, **named, **options
    )


def results(module: gc.Module) -> dict[str, np.ndarray]:
    """Return everything that three steps, one of them with a smaller batch, and a prediction give."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 3, 16, 16)).astype(np.float32)
    labels = rng.integers(0, 10, BATCH).astype(np.int32)
    losses = [module.train_step(x=images[:n], y=labels[:n]) for n in (BATCH, BATCH - 1, BATCH)]
    found = module.state_dict()
    found["losses"] = np.array(losses)
    found["power"] = np.array([step.metrics["power"] for step in losses])
    found["logits"] = module.predict(x=images)["logits"]
    return found


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Every array is the same, bit by bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.fixture(scope="module")
def plain() -> tuple[gc.Module, dict[str, np.ndarray]]:
    """The net without any rewrite."""
    none = gc.Rewrites(
        in_place=False, accumulate=False, concat=False, pool=False, run_again=False, order=False
    )
    module = compiled(rewrites=none)
    return module, results(module)


@pytest.mark.parametrize("name", ["in_place", "accumulate", "concat", "pool", "run_again", "order"])
def test_one_rewrite_alone_keeps_the_bits(name: str, plain: tuple[gc.Module, dict[str, np.ndarray]]) -> None:
    """Each rewrite by itself is seen in the plan or the calls, and gives the same bits."""
    switched = {f: f == name for f in ("in_place", "accumulate", "concat", "pool", "run_again", "order")}
    module = compiled(rewrites=gc.Rewrites(**switched))
    assert module.source != plain[0].source
    assert_same_bits(results(module), plain[1])


def test_all_rewrites_together_keep_the_bits(plain: tuple[gc.Module, dict[str, np.ndarray]]) -> None:
    """All of them save memory in training and in inference."""
    module = compiled()
    assert_same_bits(results(module), plain[1])
    for mode in ("inference", "train"):
        assert module.plan(mode).arena_bytes < plain[0].plan(mode).arena_bytes
        assert module.plan(mode).arena_bytes == module.plan(mode).lower_bound_bytes
    counts = dict(module.plan("train").notes.rewrites)
    assert (
        counts["run_again"] >= 4 and counts["in_place"] >= 4
    )  # a ReLU of each block; a gradient of each norm


@pytest.mark.parametrize("share", [0.95, 0.9, 0.83, 0.78])
def test_a_budget_is_kept_and_keeps_the_bits(
    share: float, plain: tuple[gc.Module, dict[str, np.ndarray]]
) -> None:
    """With less memory more runs again, and nothing else changes."""
    free = compiled().plan("train")
    budget = int(share * free.arena_bytes)
    module = compiled(memory_budget=budget)
    plan = module.plan("train")
    assert plan.arena_bytes <= budget
    assert dict(plan.notes.rewrites)["run_again"] > dict(free.notes.rewrites)["run_again"]
    assert_same_bits(results(module), plain[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.8), ("resnet18", 0.6), ("googlenet", 0.6)])
def test_a_budget_keeps_the_bits_of_real_nets(name: str, share: float) -> None:
    """Parts between cuts, tensors of blocks and whole stages run again, and the weights after a step are the same."""
    rng = np.random.default_rng(1)
    batch = {
        "x": rng.normal(size=(8, 3, 64, 64)).astype(np.float32),
        "y": rng.integers(0, 10, 8).astype(np.int32),
    }

    def after_a_step(**options: Any) -> tuple[gc.Module, dict[str, np.ndarray]]:
        x, y = gc.input("x", ("N", 3, 64, 64)), gc.input("y", ("N",), dtype="int32")
        logits = getattr(gc.models, name)(x, 10)
        loss, sgd = gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9)
        module = gc.compile(
            {"logits": logits},
            loss=loss,
            optimizer=sgd,
            batch=8,
            seed=3,
            build=gc.BuildOptions(extra_flags=("-O1",)),
            **options,
        )
        module.train_step(**batch)
        return module, module.state_dict()

    free, expected = after_a_step()
    budget = int(share * free.plan("train").arena_bytes)
    tight, found = after_a_step(memory_budget=budget)
    assert tight.plan("train").arena_bytes <= budget
    assert_same_bits(found, expected)


def test_a_budget_that_cannot_be_kept_names_the_least() -> None:
    """The error says what would do, and that does."""
    with pytest.raises(
        GraphcError, match=r"memory_budget=1,000 bytes is too small.* least .* is ([\d,]+) bytes"
    ) as info:
        compiled(memory_budget=1000)
    least = int(str(info.value).rsplit(" is ", 1)[1].split()[0].replace(",", ""))
    assert compiled(memory_budget=least).plan("train").arena_bytes <= least


def test_a_budget_that_is_no_number_of_bytes_is_refused() -> None:
    """Neither a negative number, nor one without a loss, is compiled."""
    with pytest.raises(GraphcError, match="memory_budget must be a number of bytes"):
        compiled(memory_budget=-1)
    logits, _, _ = net()
    with pytest.raises(GraphcError, match="there is no loss"):
        gc.compile({"logits": logits}, memory_budget=10**9)


def test_a_tensor_beside_itself_is_put_together_again() -> None:
    """Its second and third copy are read from the first, in the buffer that they are written to."""
    x = gc.input("x", ("N", 2, 9, 9))
    h = (x * x + 1.0) ** 0.3
    inner = gc.nn.conv2d(gc.concat([h, h, h], 1), 5, 3, name="inner", bias=False)
    loss = gc.mean(gc.square(gc.nn.conv2d(gc.tanh(inner), 64, 3, name="outer", bias=False)))
    modules = [
        gc.compile({"loss_value": loss}, loss, gc.SGD(lr=0.1), batch=8, name="net", rewrites=rewrites)
        for rewrites in (gc.Rewrites(), gc.Rewrites(run_again=False))
    ]
    calls = [next(e for e in m.manifest["entries"] if e["name"] == "train_step")["calls"] for m in modules]
    assert [sum(c["nodes"] == ["concat"] for c in of) for of in calls] == [4, 2]
    given = np.random.default_rng(0).standard_normal((8, 2, 9, 9)).astype("f")
    for module in modules:
        module.backward(x=given)
    for name in modules[0].grads:
        np.testing.assert_array_equal(modules[0].grads[name], modules[1].grads[name])
