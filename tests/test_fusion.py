"""Which kernels a net becomes, and that fusion and folding leave its values as they are."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.graph.node import Node

RNG = np.random.default_rng(0)


def lenet() -> tuple[Node, Node]:
    x = gc.input("x", ("N", 1, 32, 32))
    y = gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    return logits, gc.losses.cross_entropy(logits, y)


def kernels(module: gc.Module, entry: str) -> list[str]:
    return [c["kernel"] for e in module.manifest["entries"] if e["name"] == entry for c in e["calls"]]


@pytest.fixture(scope="module")
def normed() -> gc.Module:
    """A net with everything that inference removes: two batch norms, one with a bias before it, and dropout."""
    x = gc.input("x", ("N", 3, 8, 8))
    y = gc.input("y", ("N",), dtype="int32")
    h = gc.nn.conv2d(x, 8, 3, padding=1, bias=False, name="conv1")
    h = gc.relu(gc.nn.batch_norm(h, name="bn1"))
    h = gc.nn.conv2d(h, 8, 3, padding=1, name="conv2")
    h = gc.relu(gc.nn.batch_norm(h, name="bn2"))
    h = gc.nn.dropout(gc.flatten(gc.nn.max_pool2d(h, 2)), 0.5)
    h = gc.relu(gc.nn.batch_norm(gc.nn.linear(h, 16, name="fc1"), name="bn3"))
    logits = gc.nn.linear(h, 10, name="fc2")
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile(
        {"logits": logits}, loss=loss, optimizer=gc.SGD(lr=0.1, momentum=0.9), batch=8, dtype="float64"
    )


def test_lenet_inference_is_one_kernel_a_layer() -> None:
    logits, _ = lenet()
    module = gc.compile({"logits": logits}, batch=4)
    assert [k.split("_")[0] for k in kernels(module, "predict")] == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_softmax_with_cross_entropy_and_its_gradient_are_one_kernel() -> None:
    logits, loss = lenet()
    module = gc.compile({"logits": logits}, loss=loss, optimizer=gc.SGD(lr=0.1), batch=4)
    with_exp = [
        c for e in module.manifest["entries"] if e["name"] == "train_step" for c in e["calls"]
        if any("exp" in n for n in c["nodes"])
    ]  # fmt: skip
    assert len(with_exp) == 1
    assert any("max" in n for n in with_exp[0]["nodes"])
    assert any("exp_backward" in n for n in with_exp[0]["nodes"])


def test_batch_norm_and_dropout_vanish_in_inference(normed: gc.Module) -> None:
    layers = [k.split("_")[0] for k in kernels(normed, "predict") if "place" not in k]
    assert layers == ["conv1", "conv2", "fc1", "fc2"]


def test_folded_inference_equals_batch_norm_by_its_formula(normed: gc.Module) -> None:
    x = RNG.standard_normal((5, 3, 8, 8))
    y = RNG.integers(0, 10, 5).astype(np.int32)
    for _ in range(3):  # running statistics that differ from their first values
        normed.train_step(x=x, y=y)
    p, s = dict(normed.params), dict(normed.state)

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        shape = (1, -1) + (1,) * (v.ndim - 2)
        mean, var = s[f"{name}.running_mean"].reshape(shape), s[f"{name}.running_var"].reshape(shape)
        scaled = (v - mean) / np.sqrt(var + 1e-5)
        return np.maximum(scaled * p[f"{name}.weight"].reshape(shape) + p[f"{name}.bias"].reshape(shape), 0)

    def conv(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded = np.pad(v, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        return np.einsum("ncyxij,ocij->noyx", windows, w)

    h = norm(conv(x, p["conv1.weight"]), "bn1")
    h = norm(conv(h, p["conv2.weight"]) + p["conv2.bias"].reshape(1, -1, 1, 1), "bn2")
    h = h.reshape(5, 8, 4, 2, 4, 2).max((3, 5)).reshape(5, -1)
    h = norm(h @ p["fc1.weight"].T + p["fc1.bias"], "bn3")
    want = h @ p["fc2.weight"].T + p["fc2.bias"]
    # float64 sums of a few hundred terms; folding multiplies in another order.
    np.testing.assert_allclose(normed.predict(x=x)["logits"], want, rtol=1e-11, atol=1e-11)


def test_folding_follows_new_weights(normed: gc.Module) -> None:
    x = RNG.standard_normal((2, 3, 8, 8))
    before = normed.predict(x=x)["logits"]
    normed.params["bn1.weight"] = normed.params["bn1.weight"] * 2
    changed = normed.predict(x=x)["logits"]
    normed.params["bn1.weight"] = normed.params["bn1.weight"] / 2
    assert not np.allclose(before, changed)
    np.testing.assert_array_equal(normed.predict(x=x)["logits"], before)


def test_batch_norm_in_training_is_one_kernel_forward_and_one_backward(normed: gc.Module) -> None:
    calls = next(e["calls"] for e in normed.manifest["entries"] if e["name"] == "train_step")
    root = [c for c in calls if any(n.startswith("rsqrt") for n in c["nodes"])]
    forward = [c for c in root if not any("backward" in n for n in c["nodes"])]
    backward = [c for c in root if any("backward" in n for n in c["nodes"])]
    assert len(forward) == 4  # one of them again: its ReLU, without the sums
    assert len({c["kernel"] for c in forward}) == 4
    assert len(backward) == 3


def test_training_keeps_one_tensor_for_convolution_batch_norm_and_relu() -> None:
    """What outlives conv2's forward kernel: the input of the batch norm; the ReLU is computed again."""
    x = gc.input("x", ("N", 4, 16, 16))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 4, 3, padding=1, bias=False, name="conv1"), name="bn1"))
    loss = gc.mean(gc.square(gc.nn.conv2d(h, 4, 3, padding=1, name="conv2")))
    module = gc.compile({}, loss=loss, optimizer=gc.SGD(lr=0.1), batch=8)
    plan = module.plan("train")
    image = 8 * 4 * 16 * 16 * 4
    large = [i for i in plan.intervals if i.size >= image]
    middle = next(i for i in large if i.label == "conv2").lower
    alive = {i.label for i in large if i.lower < middle and i.upper > middle + 1}
    assert alive == {"conv1"}


def test_recomputed_values_change_no_gradient() -> None:
    """The gradient of a net whose backward kernels compute values again, against central differences."""
    x = gc.input("x", ("N", 3, 12, 12))
    w = gc.parameter("w", (4, 3, 3, 3), gc.initialisers.Normal(0.3))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 4, 3, weight=w, bias=False), name="bn"))
    loss = gc.mean(gc.square(gc.nn.avg_pool2d(h, 2) - 0.3))
    module = gc.compile({}, loss=loss, optimizer=gc.SGD(lr=0.1), batch=4, dtype="float64")
    images = RNG.standard_normal((4, 3, 12, 12))
    module.backward(x=images)
    gradient = module.grads["w"].copy()
    start = module.params["w"].copy()
    for position in [(0, 0, 0, 0), (3, 2, 1, 1), (1, 1, 2, 0)]:
        sides = []
        for step in (1e-5, -1e-5):
            changed = start.copy()
            changed[position] += step
            module.params["w"] = changed
            sides.append(float(module.backward(x=images)))
        assert gradient[position] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_the_second_compilation_comes_from_the_cache(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    options = gc.BuildOptions(cache_dir=tmp_path / "cache")

    def net(width: int) -> gc.Module:
        x = gc.input("x", ("N", 3))
        return gc.compile({"y": gc.relu(gc.nn.linear(x, width, name="fc"))}, batch=2, build=options)

    first = net(4)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the pipeline ran although the net is in the cache")

    with monkeypatch.context() as patch:
        patch.setattr("graphc.api.compile_program", never)
        again = net(4)
        with pytest.raises(AssertionError):
            net(5)
    assert again.source == first.source
    values = {"x": np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(again.predict(**values)["y"], first.predict(**values)["y"])


def test_dump_writes_every_step(tmp_path) -> None:  # type: ignore[no-untyped-def]
    logits, loss = lenet()
    gc.compile(
        {"logits": logits}, loss=loss, optimizer=gc.SGD(lr=0.1), batch=2, name="lenet", dump_dir=tmp_path
    )
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[0] == "01-written.txt"
    assert {"99-lenet.c", "99-lenet.h"} < set(names)
    assert any("differentiate" in n for n in names)
    assert "derivative from output" in (tmp_path / "01-written.txt").read_text()


def test_a_large_net_is_split_into_units_that_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, loss = lenet()
    options = {"loss": loss, "optimizer": gc.SGD(lr=0.1, momentum=0.9), "batch": 4}
    whole = gc.compile({"logits": logits}, name="whole", **options)  # type: ignore[arg-type]
    monkeypatch.setattr("graphc.emit.units.SPLIT_FROM", 1)
    monkeypatch.setattr("graphc.emit.units.UNIT_LINES", 300)
    split = gc.compile({"logits": logits}, name="split", **options)  # type: ignore[arg-type]
    assert list(whole.source) == ["whole.h", "whole.c"]
    assert "split_kernels_2.c" in split.source
    x = RNG.standard_normal((4, 1, 32, 32)).astype(np.float32)
    y = np.array([0, 3, 9, 9], np.int32)
    for _ in range(3):
        assert float(whole.train_step(x=x, y=y)) == float(split.train_step(x=x, y=y))
    np.testing.assert_array_equal(whole.predict(x=x)["logits"], split.predict(x=x)["logits"])


def test_the_cache_sees_a_changed_formula_of_the_users_own_optimizer() -> None:
    def optimizer(factor: float) -> gc.optim.Optimizer:
        class Mine(gc.SGD):
            def rule(self, h: object) -> gc.optim.Rule:
                return gc.optim.Rule((), (), (("w", gc.optim.W - gc.optim.LR * gc.optim.G * factor),))

        return Mine(lr=0.5)

    def moved(factor: float) -> float:
        w = gc.parameter("w", (1,), 1.0)
        module = gc.compile({}, loss=gc.sum(w * 3.0), optimizer=optimizer(factor), dtype="float64")
        module.train_step()
        return float(1.0 - module.params["w"][0])

    assert [moved(1), moved(2)] == [1.5, 3.0]
