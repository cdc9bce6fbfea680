"""Modules in which tensors of float32 and float64 meet, each computed in its own precision."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.errors import DTypeError, RangeError

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("target", ["c", "cuda-emulated"])
def test_every_tensor_keeps_its_precision(target: str) -> None:
    """One kernel that mixes both, a product in float64, a sum in float64 of what was float32, and a constant."""
    x, wide = gc.input("x", ("N", 40)), gc.input("wide", ("N", 40), dtype="float64")
    table = RNG.standard_normal(40)
    weight = gc.parameter("w", (3, 40), RNG.standard_normal((3, 40)), dtype="float64")
    outputs = {
        "fused": gc.exp(x) + wide * gc.constant(table, "float64"),
        "single": gc.cast(wide, "float32") * x,
        "product": gc.matmul(wide, gc.transpose(weight, (1, 0))),
        "narrow": gc.cast(gc.matmul(wide, gc.transpose(gc.exp(weight), (1, 0))), "float32"),
        "total": gc.sum(gc.cast(x, "float64") * 1e-3, axes=1),
    }
    module = gc.compile(outputs, batch=3, dtype="mixed", target=target)
    a, b = RNG.standard_normal((3, 40)).astype(np.float32), RNG.standard_normal((3, 40))
    got = module.predict(x=a, wide=b)
    w = module.params["w"]
    assert {k: v.dtype.name for k, v in got.items()} == {
        "fused": "float64", "single": "float32", "product": "float64", "narrow": "float32", "total": "float64",
    }  # fmt: skip
    # Rounding of float64 alone: exp of a float32 is computed in float32, as its own tensor, so it has that error.
    close = np.testing.assert_allclose
    np.testing.assert_allclose(got["fused"], np.exp(a.astype(float)) + b * table, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(got["single"], b.astype(np.float32) * a)
    close(got["product"], b @ w.T, rtol=0, atol=1e-13)  # sums of 40 terms of size 1
    close(got["narrow"], b @ np.exp(w).T, rtol=1e-6, atol=1e-5)
    close(got["total"], (a.astype(float) * 1e-3).sum(1), rtol=0, atol=1e-17)  # eps/2 of terms of 1e-3


def test_a_float64_value_is_trained_through_float32_parameters() -> None:
    """The gradient comes back in the parameter's own dtype."""
    weight = gc.parameter("w", (4,), np.arange(4.0))
    x = gc.input("x", ("N", 4), dtype="float64")
    loss = gc.mean(gc.square(gc.cast(weight, "float64") * x))
    module = gc.compile({}, gc.cast(loss, "float32"), batch=2, dtype="mixed")
    given = RNG.standard_normal((2, 4))
    module.backward(x=given)
    expected = 2 * np.arange(4) * (given**2).sum(0) / 8
    np.testing.assert_allclose(module.grads["w"], expected, rtol=1e-6)  # rounded to float32 once


def test_parameters_that_are_trained_must_be_float32() -> None:
    weight = gc.parameter("w", (4,), 1.0, dtype="float64")
    loss = gc.sum(weight * gc.input("x", (4,)))
    with pytest.raises(DTypeError, match=r"'w' at .* is float64\(4,\)"):
        gc.compile({}, loss, gc.SGD(0.1), dtype="mixed")
    with pytest.raises(RangeError, match="'float32', 'float64' or 'mixed', got 'half'"):
        gc.compile(weight, dtype="half")
