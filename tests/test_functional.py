"""Softmax and its kin over any axis, and what infinities and NaN do in them; one-hot and pick."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.errors import DTypeError, RangeError, ShapeError

INF, NAN = np.inf, np.nan
# Each row is one slice: ordinary, huge, tiny differences of large values, forbidden entries, infinities, NaN.
ROWS = np.array([
    [0.5, -1.0, 2.0, 0.0], [1e4, -1e4, 9999.0, 0.0], [1e4, 1e4, 1e4, 1e4], [-1e30, -1e30, 1e30, 0.0],
    [-INF, 1.0, 2.0, -INF], [-INF, -INF, -INF, -INF], [INF, 1.0, 2.0, -INF], [INF, INF, 0.0, 0.0],
    [NAN, 1.0, 2.0, 3.0], [NAN, INF, 0.0, 0.0], [-INF, NAN, 0.0, 0.0], [88.0, 89.0, 90.0, -104.0],
])  # fmt: skip
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


def log_sum(x: np.ndarray, axis: Any) -> np.ndarray:
    """Return the logarithm of the sum with the axes kept; infinities as the limits have it."""
    with np.errstate(all="ignore"):
        top = x.max(axis, keepdims=True)
        safe = np.where(np.isinf(top), 0.0, top)
        return np.asarray(safe + np.log(np.exp(x - safe).sum(axis, keepdims=True)))


def log_share(x: np.ndarray, axis: int) -> np.ndarray:
    """Return the logarithm of the softmax; NaN where the slice has no finite maximum."""
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(dtype: str) -> None:
    x = gc.input("x", ("N", 4))
    outputs = {"lse": gc.logsumexp(x, 1), "soft": gc.softmax(x), "log": gc.log_softmax(x)}
    rows = ROWS.astype(dtype)
    got = gc.compile(outputs, batch=len(ROWS), dtype=dtype).predict(x=rows)
    rows = rows.astype(np.float64)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(got["lse"], log_sum(rows, 1)[:, 0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got["log"], log_share(rows, 1), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got["soft"], np.exp(log_share(rows, 1)), rtol=10 * tolerance, atol=tolerance)
    assert got["lse"][5] == -INF
    assert got["lse"][6] == INF
    assert np.isnan(got["lse"][[8, 9, 10]]).all()
    # The probabilities of four equal values of 1e4 keep all their digits.
    np.testing.assert_allclose(got["log"][2], -np.log(4), rtol=tolerance)


def test_gradients_at_special_values() -> None:
    """Forbidden entries get a gradient of zero and leave the others alone, as in PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = gc.input("x", ("N", 4))
    c = np.array([1.0, -2.0, 0.5, 3.0])
    ours = {"lse": gc.logsumexp(x, 1, keepdims=True), "soft": gc.softmax(x), "log": gc.log_softmax(x)}
    theirs = {
        "lse": lambda t: torch.logsumexp(t, 1, keepdim=True),
        "soft": lambda t: torch.softmax(t, 1),
        "log": lambda t: torch.log_softmax(t, 1),
    }
    rows = ROWS[[0, 1, 2, 3, 4, 5, 6, 8, 11]]
    masked = {k: gc.where(gc.greater(x, -INF), v, 0.0) if k == "log" else v for k, v in ours.items()}
    outputs = {k: gc.grad(gc.sum(v * gc.constant(c)), [x])[0] for k, v in masked.items()}
    got = gc.compile(outputs, batch=len(rows), dtype="float64").predict(x=rows)
    for name, function in theirs.items():
        t = torch.tensor(rows, requires_grad=True)
        value = function(t)
        if name == "log":
            value = torch.where(t > -INF, value, torch.zeros(()))
        (value * torch.tensor(c)).sum().backward()
        finite = [k for k, row in enumerate(rows) if np.isfinite(row.max())]
        np.testing.assert_allclose(got[name][finite], t.grad.numpy()[finite], atol=1e-12, err_msg=name)
        others = [k for k in range(len(rows)) if k not in finite]
        assert np.isnan(got[name][others]).any(1).all(), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_axis(dtype: str) -> None:
    x = gc.input("x", ("N", 3, 4))
    fixed = gc.input("fixed", (3, 1, 5))
    outputs = {}
    for axis in (-3, -1, 0, 1, 2):
        outputs[f"soft{axis + 3}"] = gc.softmax(x, axis)
        outputs[f"log{axis + 3}"] = gc.log_softmax(x, axis)
        outputs[f"fixed{axis + 3}"] = gc.softmax(fixed, axis)
    reductions: list[Any] = [None, 0, 1, -1, (0, 1), (2, 0), (1, 2), (0, 1, 2)]
    for k, axes in enumerate(reductions):
        outputs[f"lse{k}"] = gc.logsumexp(x, axes)
        outputs[f"kept{k}"] = gc.logsumexp(x, axes, keepdims=True)
    outputs["nothing"] = gc.logsumexp(x, ()) + 0.0
    module = gc.compile(outputs, batch=5, dtype=dtype)
    rng = np.random.default_rng(2)
    values = rng.standard_normal((5, 3, 4)).astype(dtype) * 3
    small = rng.standard_normal((3, 1, 5)).astype(dtype)
    tolerance = 5 * TOLERANCE[dtype]
    for batch in (1, 5):
        part = values[:batch]
        got = module.predict(x=part, fixed=small)
        part = part.astype(np.float64)
        for axis in (-3, -1, 0, 1, 2):
            want = log_share(part, axis)
            np.testing.assert_allclose(got[f"log{axis + 3}"], want, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(got[f"soft{axis + 3}"], np.exp(want), rtol=tolerance, atol=tolerance)
            want = np.exp(log_share(small.astype(np.float64), axis))
            np.testing.assert_allclose(got[f"fixed{axis + 3}"], want, rtol=tolerance, atol=tolerance)
        for k, axes in enumerate(reductions):
            kept = log_sum(part, axes)
            np.testing.assert_allclose(got[f"kept{k}"], kept, rtol=tolerance, atol=tolerance)
            assert got[f"kept{k}"].shape == kept.shape
            np.testing.assert_allclose(got[f"lse{k}"], np.squeeze(kept, axes), rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(got["nothing"], part.astype(dtype))


def test_softmax_is_one_kernel() -> None:
    x = gc.input("x", ("N", 10))
    for build in (gc.softmax, gc.log_softmax, lambda x: gc.logsumexp(x, 1)):
        module = gc.compile(build(x), batch=8)
        (entry,) = module.manifest["entries"]
        assert len(entry["calls"]) == 1


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_columns_that_need_no_index_make_no_unused_variable(tmp_path: Path) -> None:
    """The sum of a log-softmax over columns leaves statements of constants, which read no index."""
    x = gc.input("x", ("N", 4))
    module = gc.compile({"dx": gc.grad(gc.sum(gc.log_softmax(x, 0)), [x])[0]}, batch=5)
    for file, text in module.source.items():
        (tmp_path / file).write_text(text)
    command = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(tmp_path / "net.c")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_one_hot_and_pick() -> None:
    """Indices of every integer dtype; what lies outside gives zeros."""
    outputs, given = {}, {}
    index = np.array([[0, 3, 2], [1, 4, 200]])
    table = np.random.default_rng(3).standard_normal((2, 4, 3))
    x = gc.input("x", (2, 4, 3))
    for dtype in ("int32", "int64", "uint8"):
        y = gc.input(f"y_{dtype}", (2, 3), dtype=dtype)
        given[f"y_{dtype}"] = index.astype(dtype)
        for axis in (-1, 0, 1):
            outputs[f"hot_{dtype}_{axis + 1}"] = gc.one_hot(y, 4, axis=axis)
        outputs[f"whole_{dtype}"] = gc.one_hot(y, 4, dtype="int32")
        outputs[f"pick_{dtype}"] = gc.pick(x, y, -2)
    got = gc.compile(outputs).predict(x=table.astype(np.float32), **given)
    hot = (index[..., None] == np.arange(4)).astype(np.float32)
    picked = np.where(index < 4, np.take_along_axis(table, np.minimum(index, 3)[:, None], 1)[:, 0], 0)
    for dtype in ("int32", "int64", "uint8"):
        for axis in (-1, 0, 1):
            np.testing.assert_array_equal(got[f"hot_{dtype}_{axis + 1}"], np.moveaxis(hot, -1, axis))
        np.testing.assert_array_equal(got[f"whole_{dtype}"], hot.astype(np.int32))
        np.testing.assert_array_equal(got[f"pick_{dtype}"], picked.astype(np.float32)[:, None])


def test_pick_passes_the_gradient_to_what_was_picked() -> None:
    """Infinities elsewhere in the row do not disturb it."""
    x = gc.input("x", ("N", 4))
    y = gc.input("y", ("N",), dtype="int32")
    picked = gc.pick(x, y)
    module = gc.compile({"picked": picked, "dx": gc.grad(gc.sum(picked * picked), [x])[0]}, batch=3)
    rows = np.array([[1, -INF, INF, NAN], [INF, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    got = module.predict(x=rows, y=np.array([0, 2, 3], np.int32))
    np.testing.assert_array_equal(got["picked"][:, 0], [1, 3, 8])
    np.testing.assert_array_equal(got["dx"], [[2, 0, 0, 0], [0, 0, 6, 0], [0, 0, 0, 16]])


X = gc.input("x", ("N", 4))
Y = gc.input("y", ("N",), dtype="int32")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: gc.softmax(X, 2), ShapeError, "softmax: axis 2 is out of range for rank 2"),
        (lambda: gc.log_softmax(Y, 0), DTypeError, r"log_softmax: needs a floating.*got int32\(N,\)"),
        (lambda: gc.logsumexp(X, (0, 0)), ShapeError, "logsumexp: axes.*twice"),
        (lambda: gc.pick(X, X), DTypeError, "pick: needs integer indices"),
        (lambda: gc.pick(X, Y, 0), ShapeError, r"pick: expected indices of shape \(4,\), got \(N,\)"),
        (lambda: gc.pick(X, Y, 5), ShapeError, "pick: axis 5"),
        (lambda: gc.one_hot(X, 4), DTypeError, "one_hot: needs integer indices"),
        (lambda: gc.one_hot(Y, 0), RangeError, "classes must be a positive int, got 0"),
        (lambda: gc.one_hot(Y, 4, axis=2), ShapeError, "one_hot: axis 2"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message + r".*, at test_functional\.py:\d+"):
        call()
