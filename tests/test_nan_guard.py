"""nan_guard names the node, the kernel and the user's line where a NaN or Inf first appears."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import graphc as gc
from graphc.errors import NumericalError

_QUICK = gc.BuildOptions(optimisation=("-O1",))
_LABELS = np.array([0, 2], "i4")
_ONES = np.ones((2, 4), "f")


def line() -> int:
    return sys._getframe(1).f_lineno


class Net:
    """Linear, batch norm, square root, linear: the root is NaN below zero, and its slope is Inf at zero."""

    def __init__(self, nan_guard: bool):
        x, y = gc.input("x", ("N", 4)), gc.input("y", ("N",), dtype="int32")
        h = gc.nn.linear(x, 3, name="fc1")
        self.root_line = line() + 1
        root = gc.sqrt(h, name="root")
        hidden = gc.nn.batch_norm(root * 1.5 + h, name="bn")
        self.logits_line = line() + 1
        logits = gc.nn.linear(hidden, 3, name="fc2")
        self.loss_line = line() + 1
        loss = gc.losses.cross_entropy(gc.exp(logits, name="grown"), y)
        self.module = gc.compile(
            {"logits": logits}, loss, gc.SGD(lr=0.1, momentum=0.9), batch=3, build=_QUICK, nan_guard=nan_guard
        )
        self.set("fc1", 0.25, 0.5)

    def set(self, layer: str, weight: float, bias: float) -> None:
        params = self.module.params
        params[f"{layer}.weight"] = np.full(params[f"{layer}.weight"].shape, weight, "f")
        params[f"{layer}.bias"] = np.full(params[f"{layer}.bias"].shape, bias, "f")


@pytest.fixture
def net() -> Net:
    return Net(nan_guard=True)


def failing_step(net: Net, x: np.ndarray = _ONES) -> str:
    """Return the message of a step that must fail, having checked that it changed nothing."""
    before = net.module.state_dict()
    with pytest.raises(NumericalError) as caught:
        net.module.train_step(x=x, y=_LABELS)
    for name, value in net.module.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    return str(caught.value)


def test_sound_steps_pass(net: Net) -> None:
    values = np.random.default_rng(0).uniform(0.5, 1.5, (2, 4)).astype("f")
    first = net.module.train_step(x=values, y=_LABELS)
    assert net.module.step == 1
    assert np.isfinite([float(first), float(net.module.train_step(x=values, y=_LABELS))]).all()


def test_forward(net: Net) -> None:
    """sqrt(-2): the message names the root and its line, and neither the layer before nor the one after."""
    net.set("fc1", -0.5, 0.0)
    message = failing_step(net)
    assert message.startswith("train_step: a NaN or Inf first appears in root (sqrt), kernel root_sqrt")
    assert message.endswith(f"at test_nan_guard.py:{net.root_line}")
    assert "fc1" not in message
    with pytest.raises(NumericalError, match=rf"^predict: .*root.*:{net.root_line}$"):
        net.module.predict(x=_ONES)


def test_backward(net: Net) -> None:
    """The slope of the root at zero: the forward pass is finite, and the root's own line is named."""
    net.set("fc1", 0.0, 0.0)
    assert np.isfinite(net.module.predict(x=_ONES)["logits"]).all()
    message = failing_step(net)
    assert "sqrt_backward" in message
    assert message.endswith(f"at test_nan_guard.py:{net.root_line}")


def test_overflow_is_found_as_well(net: Net) -> None:
    net.set("fc2", 1.0, 1000.0)
    message = failing_step(net, np.random.default_rng(0).uniform(0.5, 1.5, (2, 4)).astype("f"))
    assert "grown (exp)" in message
    assert message.endswith(f"at test_nan_guard.py:{net.loss_line}")


def test_inputs_and_parameters_that_were_not_finite_are_named(net: Net) -> None:
    bad = _ONES.copy()
    bad[1, 2] = np.inf
    message = failing_step(net, bad)
    assert "fc1 (matmul)" in message
    assert message.endswith("not finite before that: input 'x'")
    net.module.params["fc2.bias"] = np.array([0, np.nan, 0], "f")
    with pytest.raises(
        NumericalError, match=rf":{net.logits_line}; not finite before that: parameter 'fc2\.bias'$"
    ):
        net.module.predict(x=_ONES)


def test_the_kernel_that_is_named_exists(net: Net) -> None:
    net.set("fc1", -0.5, 0.0)
    kernel = failing_step(net).split("kernel ")[1].split(",")[0]
    assert any(f"static void {kernel}(" in text for text in net.module.source.values())


def test_a_module_recovers(net: Net) -> None:
    net.set("fc1", -0.5, 0.0)
    failing_step(net)
    net.set("fc1", 0.25, 0.5)
    assert np.isfinite(float(net.module.train_step(x=_ONES * np.array([[1], [2]], "f"), y=_LABELS)))


def test_without_the_guard_nothing_is_raised() -> None:
    net = Net(nan_guard=False)
    net.set("fc1", -0.5, 0.0)
    assert np.isnan(net.module.predict(x=_ONES)["logits"]).all()
    assert np.isnan(float(net.module.backward(x=_ONES, y=_LABELS)))


def test_both_kinds_of_module_agree() -> None:
    """The guarded module runs one kernel for every node; single precision, a few roundings apart."""
    guarded, plain = Net(nan_guard=True).module, Net(nan_guard=False).module
    guarded.load_state_dict(plain.state_dict())
    values = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4)).astype("f")
    labels = np.array([0, 1, 2], "i4")
    for _ in range(3):
        losses = [float(m.train_step(x=values, y=labels)) for m in (guarded, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    np.testing.assert_allclose(
        guarded.predict(x=values)["logits"], plain.predict(x=values)["logits"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("poison", [False, True])
def test_parts_of_a_concatenation_are_no_values(poison: bool) -> None:
    """Before its last part is written, the rest of a concatenation holds anything: a step's NaNs from before, too."""
    x, y = gc.input("x", ("N", 4, 6, 6)), gc.input("y", ("N",), dtype="int32")
    branches = [gc.relu(gc.nn.conv2d(x, 4, 3, padding=1)), gc.relu(gc.nn.conv2d(x, 6, 1))]
    h = gc.nn.batch_norm(gc.nn.conv2d(gc.concat(branches, axis=1), 5, 3))
    logits = gc.nn.linear(gc.flatten(h), 3)
    module = gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.1), batch=2, build=_QUICK,
        nan_guard=True, poison=poison,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype("f")
    first = module.backward(x=images, y=_LABELS)
    with pytest.raises(NumericalError, match="first appears in conv2d"):
        module.train_step(x=images * np.nan, y=_LABELS)
    assert module.backward(x=images, y=_LABELS) == first
