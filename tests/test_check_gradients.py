"""check_gradients finds a wrong derivative, names it, and passes what is right."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError, NumericalError
from graphc.ops import elementwise as ops


def net(activation: object = gc.tanh) -> gc.Tensor:
    x, y = gc.input("x", ("N", 2, 6, 6)), gc.input("y", ("N",), dtype="int32")
    h = gc.nn.batch_norm(gc.nn.conv2d(x, 4, 3, name="conv"), name="norm")
    h = gc.nn.dropout(activation(h), 0.2)  # type: ignore[operator]
    return gc.losses.cross_entropy(gc.nn.linear(gc.flatten(h), 3, name="fc"), y)


def test_right_gradients_pass() -> None:
    """Dropout draws the same mask for every value; the worst is first."""
    check = gc.check_gradients(net())
    assert check.passes
    # The bias in front of batch norm has gradient 0 up to rounding, which is no error.
    assert {row.name for row in check.rows} == {
        "conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias"
    }  # fmt: skip
    weight = next(row for row in check.rows if row.name == "fc.weight")
    assert (weight.checked, weight.elements) == (50, 192)
    assert abs(weight.compiled - weight.difference) < 1e-8
    assert len(check.table().splitlines()) == 6


def test_a_wrong_derivative_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative of sin is made half as large again: what is behind it stays right."""
    original = ops.Elementwise.vjp

    def off(self: ops.Elementwise, node: gc.Tensor, cotangent: gc.Tensor, *rest: object) -> object:
        found = original(self, node, cotangent, *rest)  # type: ignore[call-arg]
        return [g * 1.5 if g is not None and self.name == "sin" else g for g in found]

    monkeypatch.setattr(ops.Elementwise, "vjp", off)
    with pytest.raises(
        NumericalError, match=r"3 of 6 parameters have wrong gradients, at .*\nFAIL"
    ) as caught:
        gc.check_gradients(net(gc.sin))
    assert "FAIL conv.weight: 50 of 72 checked, worst" in str(caught.value)
    assert "fc.weight" not in str(caught.value)
    check = gc.check_gradients(net(gc.sin), raises=False, only="norm.*")
    assert not check.passes
    assert [row.passes for row in check.rows] == [False, False]
    ratio = check.rows[0].compiled / check.rows[0].difference
    assert ratio == pytest.approx(1.5, rel=1e-6)


def test_own_inputs_and_parameters() -> None:
    """Values that are given are used: the gradient of (w x)^2 at w = 3, x = 2 is 24."""
    x = gc.input("x", ("N",))
    loss = gc.sum(gc.square(gc.parameter("w", (), 1.0) * x))
    check = gc.check_gradients(loss, {"x": np.array([2.0])}, parameters={"w": np.array(3.0)})
    assert check.rows[0].compiled == pytest.approx(24)
    assert check.rows[0].difference == pytest.approx(24)


def test_what_cannot_be_checked_is_refused() -> None:
    w = gc.parameter("w", (3,), 1.0)
    with pytest.raises(GraphcError, match="no trainable parameter fits 'v'; there are w"):
        gc.check_gradients(gc.sum(w), only="v")
    with pytest.raises(GraphcError, match="the loss must be a floating-point scalar"):
        gc.check_gradients(w)
    with pytest.raises(NumericalError, match="the loss is not finite"):
        gc.check_gradients(gc.sum(gc.log(-w)))
    with pytest.raises(GraphcError, match="expected samples of at least 1"):
        gc.check_gradients(gc.sum(w), samples=0)
