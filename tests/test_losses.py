"""Every loss against PyTorch: values and gradients, reductions and edge cases; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers import weighted_sum

import graphc as gc
from graphc import losses
from graphc.errors import DTypeError, RangeError, ShapeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn.functional

RNG = np.random.default_rng(5)
ROWS, CLASSES = 6, 5
LOGITS = RNG.standard_normal((ROWS, CLASSES)) * 2
LABELS = RNG.integers(0, CLASSES, ROWS)
IMAGE = RNG.standard_normal((3, CLASSES, 2, 4))
IMAGE_LABELS = RNG.integers(0, CLASSES, (3, 2, 4))
WEIGHT = np.array([0.5, 2.0, 1.0, 0.0, 3.0])
SHARES = RNG.dirichlet(np.ones(CLASSES), ROWS)
IMAGE_SHARES = np.moveaxis(RNG.dirichlet(np.ones(CLASSES), (3, 2, 4)), -1, 1)
SOME_IGNORED = np.where(np.arange(ROWS) % 3 == 1, -100, LABELS)
IMAGE_IGNORED = np.where(IMAGE_LABELS == 2, -7, IMAGE_LABELS)
# Where exp overflows, where float32 resolves no more than a thousandth, and forbidden scores.
EXTREME = np.array([
    [1e4, -1e4, 0, 1, 2], [1e4, 1e4, 1e4, 1e4, 1e4], [-1e4, -1e4, -1e4 + 1, -1e4, -1e4],
    [-np.inf, 1, 2, 3, 4], [90, 89, -np.inf, -np.inf, -90], [0, 0, 0, 0, 0],
])  # fmt: skip
EXTREME_LABELS = np.array([0, 3, 2, 4, 1, 1])
A, B = RNG.standard_normal((2, 4, 7)) * 1.5
P, Q = RNG.uniform(0.02, 0.98, (2, 4, 7))
ROW = np.array([0.5, 2.0, 1.0, 0.0, 3.0, 1.5, 1.0])
SIGNS = RNG.choice([-1, 1], (4, 7))
FAR = np.array([[-1e4, 1e4, -50, 50, -120, 800, 0.0]] * 2)
HARD = np.array([[0, 1, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0, 0]], dtype=float)


@dataclass(frozen=True)
class Case:
    """One call of a loss, of ours and of PyTorch's."""

    name: str
    ours: Callable[[Any, Any], Any]
    torch: Callable[[Any, Any], Any]
    x: np.ndarray
    y: np.ndarray
    target_gradient: bool = True


def both(
    name: str,
    ours: Any,
    theirs: Any,
    x: np.ndarray,
    y: np.ndarray,
    reductions: str = "none mean sum",
    **more: Any,
) -> list[Case]:
    """Return a case for each reduction; keyword arguments go to both, arrays to PyTorch as tensors."""
    differentiable = more.pop("target_gradient", True)

    def make(reduction: str) -> Case:
        def theirs_called(a: Any, b: Any) -> Any:
            given = {
                k: torch.as_tensor(v, dtype=a.dtype) if isinstance(v, np.ndarray) else v
                for k, v in more.items()
            }
            return theirs(a, b, reduction=reduction, **given)

        label = f"{name}-{reduction}"
        return Case(
            label, lambda a, b: ours(a, b, reduction=reduction, **more), theirs_called, x, y, differentiable
        )

    return [make(r) for r in reductions.split()]


def classification() -> list[Case]:
    ce, torch_ce = losses.cross_entropy, nn.cross_entropy
    wide, tall = np.float64(IMAGE), IMAGE_LABELS
    everything = {"weight": WEIGHT, "ignore_index": -7, "label_smoothing": 0.1}
    squares = {"p": 2, "margin": 0.5, "weight": WEIGHT}
    logs = np.log(SHARES)
    return [
        *both("ce", ce, torch_ce, LOGITS, LABELS),
        *both("ce-int64-weight", ce, torch_ce, LOGITS, LABELS.astype(np.int64), weight=WEIGHT),
        *both("ce-ignore", ce, torch_ce, LOGITS, SOME_IGNORED, ignore_index=-100),
        *both("ce-ignore-class", ce, torch_ce, LOGITS, LABELS, ignore_index=int(LABELS[0])),
        *both("ce-ignore-all", ce, torch_ce, LOGITS, np.full(ROWS, -1), ignore_index=-1),
        *both("ce-smooth", ce, torch_ce, LOGITS, LABELS, label_smoothing=0.2),
        *both("ce-smooth-all", ce, torch_ce, LOGITS, LABELS, "mean", label_smoothing=1.0),
        *both("ce-image", ce, torch_ce, wide, tall),
        *both("ce-image-everything", ce, torch_ce, wide, IMAGE_IGNORED, **everything),
        *both("ce-one-row", ce, torch_ce, LOGITS[0], LABELS[0]),
        *both("ce-extreme", ce, torch_ce, EXTREME, EXTREME_LABELS),
        *both("ce-shares", ce, torch_ce, LOGITS, SHARES),
        *both("ce-shares-weight-smooth", ce, torch_ce, LOGITS, SHARES, weight=WEIGHT, label_smoothing=0.3),
        *both("ce-image-shares", ce, torch_ce, wide, IMAGE_SHARES, "none mean", label_smoothing=0.1),
        *both("nll", losses.nll, nn.nll_loss, logs, LABELS),
        *both("nll-weight", losses.nll, nn.nll_loss, logs, SOME_IGNORED, weight=WEIGHT, ignore_index=-100),
        *both("nll-image", losses.nll, nn.nll_loss, wide, IMAGE_IGNORED, ignore_index=-7),
        *both("margin", losses.multi_margin, nn.multi_margin_loss, LOGITS, LABELS),
        *both("margin-2", losses.multi_margin, nn.multi_margin_loss, LOGITS, LABELS, **squares),
        *both("margin-row", losses.multi_margin, nn.multi_margin_loss, LOGITS[1], LABELS[1], "mean"),
    ]  # fmt: skip


def pointwise() -> list[Case]:
    def torch_hinge(a: Any, y: Any, reduction: str) -> Any:
        values = torch.relu(1 - y * a)
        return values if reduction == "none" else getattr(values, reduction)()

    logs = np.log(SHARES)
    log_target, every = {"log_target": True}, "none mean sum batchmean"
    with_logits, torch_with_logits = losses.bce_with_logits, nn.binary_cross_entropy_with_logits
    return [
        *both("mse", losses.mse, nn.mse_loss, A, B),
        *both("l1", losses.l1, nn.l1_loss, np.where(A > 1, B, A), B),
        *both("smooth", losses.smooth_l1, nn.smooth_l1_loss, A, B, beta=0.7),
        *both("smooth-0", losses.smooth_l1, nn.smooth_l1_loss, A, B, "mean", beta=0.0),
        *both("huber", losses.huber, nn.huber_loss, A, B, delta=1.3),
        *both("bce", losses.bce, nn.binary_cross_entropy, P, Q, target_gradient=False),
        *both("bce-weight", losses.bce, nn.binary_cross_entropy, P, Q, weight=ROW, target_gradient=False),
        *both("logits", with_logits, torch_with_logits, A, Q),
        *both("logits-weights", with_logits, torch_with_logits, A, Q, weight=P, pos_weight=ROW),
        *both("logits-extreme", with_logits, torch_with_logits, FAR, HARD, target_gradient=False),
        *both("kl", losses.kl_div, nn.kl_div, logs, SHARES[::-1].copy(), every),
        *both("kl-log", losses.kl_div, nn.kl_div, logs, logs[::-1].copy(), every, **log_target),
        *both("kl-zeros", losses.kl_div, nn.kl_div, A, HARD[:1].repeat(4, 0), "sum", target_gradient=False),
        *both("hinge", losses.hinge, torch_hinge, A, SIGNS),
        *both("hinge-float", losses.hinge, torch_hinge, A, SIGNS.astype(float), target_gradient=False),
        *both("embedding", losses.hinge_embedding, nn.hinge_embedding_loss, A, SIGNS, margin=0.8),
    ]  # fmt: skip


def node_dtype(array: np.ndarray) -> str:
    return "float32" if array.dtype.kind == "f" else str(array.dtype)


def evaluate(cases: list[Case], dtype: str) -> dict[str, np.ndarray]:
    """Return value and gradients of all cases by one compiled module."""
    outputs: dict[str, gc.Tensor] = {}
    given: dict[str, np.ndarray] = {}
    for k, case in enumerate(cases):
        x = gc.input(f"x{k}", case.x.shape)
        y = gc.input(f"y{k}", np.shape(case.y), dtype=node_dtype(case.y))
        value = case.ours(x, y)
        wrt = [x, y] if y.type.is_float and case.target_gradient else [x]
        outputs[f"value{k}"] = value
        for name, gradient in zip("xy", gc.grad(weighted_sum(value), wrt), strict=False):
            outputs[f"d{name}{k}"] = gradient
        given[f"x{k}"] = case.x.astype(dtype)
        given[f"y{k}"] = np.asarray(case.y, dtype=dtype if y.type.is_float else y.dtype)
    module = gc.compile(outputs, dtype=dtype)
    used = {name: array for name, array in given.items() if name in module.input_types}
    return module.predict(**used)


def torch_weighted_sum(value: Any) -> Any:
    """Return what ``helpers.weighted_sum`` returns."""
    total = value + value**2 * 0.25
    for axis in range(value.ndim):
        index = torch.arange(value.shape[axis], dtype=value.dtype)
        shape = [-1 if a == axis else 1 for a in range(value.ndim)]
        total = total * torch.cos(index * 0.7 + 0.3 * axis + 0.1).reshape(shape)
    return total.sum()


def by_torch(case: Case, dtype: str) -> tuple[Any, Any, Any]:
    """Return value and gradients in float64, at inputs rounded to the dtype."""
    x = torch.tensor(case.x.astype(dtype).astype(np.float64), requires_grad=True)
    y = torch.as_tensor(case.y)
    y = y.to(torch.float64).to(getattr(torch, dtype)).to(torch.float64) if y.is_floating_point() else y.long()
    differentiate = y.is_floating_point() and case.target_gradient
    y.requires_grad_(differentiate)
    value = case.torch(x, y)
    torch_weighted_sum(value).backward()
    return value.detach().numpy(), x.grad.numpy(), y.grad.numpy() if differentiate else None


# The gradients hold the squares of values up to 1e4, so the error is measured against the largest entry.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@pytest.mark.filterwarnings("ignore:.*reduction. 'mean' divides")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("cases", [classification, pointwise], ids=lambda f: f.__name__)
def test_torch(cases: Callable[[], list[Case]], dtype: str) -> None:
    results = evaluate(cases(), dtype)
    for k, case in enumerate(cases()):
        expected = dict(zip(("value", "dx", "dy"), by_torch(case, dtype), strict=True))
        for name, want in expected.items():
            if want is None or (name != "value" and np.isnan(expected["value"]).any()):
                continue  # a NaN loss has its own test: here its square would be differentiated
            got = results[f"{name}{k}"]
            assert got.shape == want.shape, (case.name, name)
            scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
            np.testing.assert_allclose(
                got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale, err_msg=f"{case.name} {name}"
            )


def test_torch_with_batch_and_tensor_weight() -> None:
    """The run-time batch divides the mean, and a weight may be a tensor that is trained."""
    x = gc.input("x", ("N", CLASSES))
    y = gc.input("y", ("N",), dtype="int32")
    w = gc.input("w", (CLASSES,))
    loss = losses.cross_entropy(x, y, weight=w, ignore_index=-1)
    gradient = gc.grad(loss, [w])[0]
    module = gc.compile({"loss": loss, "dw": gradient}, batch=8, dtype="float64")
    for batch in (1, 3, 6):
        labels = np.where(np.arange(batch) % 3 == 1, -1, LABELS[:batch]).astype(np.int32)
        got = module.predict(x=LOGITS[:batch], y=labels, w=WEIGHT + 0.1)
        tensor = torch.tensor(WEIGHT + 0.1, requires_grad=True)
        rows = nn.log_softmax(torch.tensor(LOGITS[:batch]), 1)[range(batch), labels]
        share = torch.where(torch.as_tensor(labels) < 0, torch.zeros(()), tensor[labels])
        want = -(rows * share).sum() / share.sum()
        want.backward()
        np.testing.assert_allclose(got["loss"], want.item(), rtol=1e-12)
        np.testing.assert_allclose(got["dw"], tensor.grad.numpy(), atol=1e-12)


def test_bce_edges() -> None:
    """Logarithms stop at -100; what is no probability gives NaN; the gradient stays finite."""
    p = gc.input("p", (7,))
    t = gc.input("t", (7,))
    loss = losses.bce(p, t, reduction="none")
    (gradient,) = gc.grad(gc.sum(loss), [p])
    values = np.array([0, 0, 1, 1, -0.5, 1.5, np.nan])
    targets = np.array([0, 1, 0, 1, 1, 0, 1.0])
    for dtype in ("float32", "float64"):
        got = gc.compile({"loss": loss, "dp": gradient}, dtype=dtype).predict(
            p=values.astype(dtype), t=targets.astype(dtype)
        )
        np.testing.assert_array_equal(got["loss"], [0, 100, 100, 0, np.nan, np.nan, np.nan])
        assert np.isfinite(got["dp"][:4]).all()
    want = nn.binary_cross_entropy(torch.tensor(values[:4]), torch.tensor(targets[:4]), reduction="none")
    np.testing.assert_array_equal(got["loss"][:4], want.numpy())


def test_bce_with_logits_keeps_small_losses() -> None:
    """A loss of exp(-60) is not rounded to zero, for either label, in float32."""
    x = gc.input("x", (2,))
    t = gc.input("t", (2,))
    module = gc.compile({"loss": losses.bce_with_logits(x, t, reduction="none")})
    got = module.predict(x=np.float32([60, -60]), t=np.float32([1, 0]))["loss"]
    np.testing.assert_allclose(got, np.exp([-60.0, -60.0]), rtol=1e-5)


def test_nothing_to_average_gives_nan_and_no_gradient() -> None:
    x = gc.input("x", ("N", 4))
    y = gc.input("y", ("N",), dtype="int32")
    loss = losses.cross_entropy(x, y, ignore_index=-100)
    module = gc.compile({"loss": loss, "dx": gc.grad(loss, [x])[0]}, batch=3)
    got = module.predict(x=np.ones((3, 4), np.float32), y=np.full(3, -100, np.int32))
    assert np.isnan(got["loss"])
    np.testing.assert_array_equal(got["dx"], 0)


def test_cross_entropy_is_one_kernel_for_the_rows() -> None:
    """Maximum, exponentials, sum and picked logit share one kernel, forward and backward."""
    x = gc.input("x", ("N", 10))
    y = gc.input("y", ("N",), dtype="int32")
    rows = losses.cross_entropy(x, y, reduction="none")
    module = gc.compile({"rows": rows}, batch=8)
    calls = {e["name"]: e["calls"] for e in module.manifest["entries"]}
    assert len(calls["predict"]) == 1
    assert {"max", "exp", "sum", "log"} <= set(calls["predict"][0]["nodes"])
    mean = losses.cross_entropy(x, y)
    module = gc.compile({"mean": mean}, batch=8)
    calls = {e["name"]: e["calls"] for e in module.manifest["entries"]}
    assert len(calls["predict"]) == 2  # the rows, and their mean
    logits = gc.nn.linear(x, 10)
    module = gc.compile({}, loss=losses.cross_entropy(logits, y), batch=8)
    calls = {e["name"]: e["calls"] for e in module.manifest["entries"]}
    rows_kernel = [c["nodes"] for c in calls["train_step"] if "max" in c["nodes"]]
    assert len(rows_kernel) == 1
    assert "exp_backward" in rows_kernel[0]
    everything = losses.cross_entropy(x, y, weight=np.ones(10), ignore_index=-1, label_smoothing=0.1)
    module = gc.compile({"mean": everything}, batch=8)
    calls = {e["name"]: e["calls"] for e in module.manifest["entries"]}
    assert len(calls["predict"]) == 2


@pytest.mark.parametrize(
    ("make", "good", "bad"),
    [
        (lambda x, y: losses.cross_entropy(x, y), 3, 4),
        (lambda x, y: losses.cross_entropy(x, y), 0, -1),
        (lambda x, y: losses.cross_entropy(x, y), 0, -100),
        (lambda x, y: losses.cross_entropy(x, y, ignore_index=-100), -100, -99),
        (lambda x, y: losses.nll(x, y), 3, 4),
        (lambda x, y: losses.multi_margin(x, y), 3, 4),
        (lambda x, y: losses.soft_margin(x, y), 3, -1),
        (lambda x, y: losses.hinge(x[:, 0], y), -1, 0),
        (lambda x, y: losses.hinge_embedding(x[:, 0], y), 1, 2),
    ],
)  # fmt: skip
def test_labels_out_of_range(make: Any, good: int, bad: int) -> None:
    x = gc.input("x", ("N", 4))
    y = gc.input("y", ("N",), dtype="int32")
    module = gc.compile({"loss": make(x, y)}, batch=4)
    images = np.ones((4, 4), np.float32)
    labels = np.full(4, good, np.int32)
    module.predict(x=images, y=labels)
    labels[2] = bad
    with pytest.raises(RangeError, match=rf"y\[2\] is {bad}"):
        module.predict(x=images, y=labels)


X = gc.input("x", ("N", 4))
Y = gc.input("y", ("N",), dtype="int32")
WIDE = gc.input("z", ("N", 4), dtype="int32")
LINE = r", at test_losses\.py:\d+"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: losses.cross_entropy(X, X[:, 0]), ShapeError,
         r"cross_entropy: expected equal shapes.*\(N, 4\).*\(N,\)"),
        (lambda: losses.cross_entropy(X, WIDE), ShapeError, r"labels of shape \(N,\)"),
        (lambda: losses.cross_entropy(X, gc.input("z", ("N",), dtype="bool")), DTypeError, r"bool\(N,\)"),
        (lambda: losses.cross_entropy(Y, Y), DTypeError, r"cross_entropy: input must be floating-point"),
        (lambda: losses.cross_entropy(X, Y, weight=[1, 2]), ShapeError,
         r"weight must have shape \(4,\).*\(2,\)"),
        (lambda: losses.cross_entropy(X, Y, weight="heavy"), DTypeError, r"weight must be numbers"),
        (lambda: losses.cross_entropy(X, Y, label_smoothing=1.5), RangeError,
         r"label_smoothing must be in \[0, 1\]"),
        (lambda: losses.cross_entropy(X, Y, ignore_index=1.5), RangeError, r"ignore_index must be an int"),
        (lambda: losses.cross_entropy(X, Y, reduction="avg"), RangeError, r"reduction must be one of.*'avg'"),
        (lambda: losses.cross_entropy(X, np.zeros(4)), DTypeError, r"target must be a tensor, got ndarray"),
        (lambda: losses.nll(gc.input("z", ()), Y), ShapeError, r"nll: expected \(N, C, ...\)"),
        (lambda: losses.mse(X, X[:, :1]), ShapeError, r"mse: expected equal shapes"),
        (lambda: losses.mse(X, 1.0), DTypeError, r"mse: target must be a tensor"),
        (lambda: losses.huber(X, X, delta=0), RangeError, r"huber: delta must be"),
        (lambda: losses.smooth_l1(X, X, beta=-1), RangeError, r"smooth_l1: beta must be"),
        (lambda: losses.bce(X, X, weight=np.ones(3)), ShapeError,
         r"weight \(3,\) does not broadcast to \(N, 4\)"),
        (lambda: losses.bce_with_logits(X, X, pos_weight=np.ones((2, 1, 4))), ShapeError, "pos_weight"),
        (lambda: losses.kl_div(X, X, reduction="batch"), RangeError, r"'batchmean', got 'batch'"),
        (lambda: losses.hinge(X[:, 0], gc.input("z", ("N",), dtype="uint8")), DTypeError, r"-1 or \+1"),
        (lambda: losses.multi_margin(X, Y, p=3), RangeError, r"p must be 1 or 2, got 3"),
        (lambda: losses.soft_margin(X, Y, epsilon=-1.0), RangeError, r"epsilon must be finite and at least"),
        (lambda: losses.soft_margin(X, Y, epsilon=float("nan")), RangeError, r"epsilon"),
        (lambda: losses.soft_margin(X, Y, task_loss=np.ones((3, 3))), ShapeError,
         r"task_loss must have shape \(4, 4\)"),
        (lambda: losses.soft_margin(X, Y, task_loss="hamming"), DTypeError, r"'zero_one'"),
        (lambda: losses.soft_margin(X[:, 0], Y), ShapeError, r"expected scores \(N, K\)"),
        (lambda: losses.binary_scores(X), ShapeError, r"expected \(N,\) or \(N, 1\)"),
        (lambda: losses.l2([]), gc.GraphcError, r"at least one tensor"),
        (lambda: gc.metrics.accuracy(X, X), DTypeError, r"accuracy: needs integer labels"),
        (lambda: gc.metrics.top_k_accuracy(X, Y, 9), RangeError, r"k must be an int in 1..4"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    """The error names the loss, the rule, the values and the user's line."""
    with pytest.raises(kind, match=message + r"(?s:.*)" + LINE):
        call()


def test_metrics() -> None:
    x = gc.input("x", ("N", CLASSES))
    y = gc.input("y", ("N",), dtype="int32")
    b = gc.input("b", ("N",), dtype="int32")
    outputs = {
        "top1": gc.metrics.accuracy(x, y),
        "top3": gc.metrics.top_k_accuracy(x, y, 3),
        "binary": gc.metrics.binary_accuracy(x[:, 0], b),
    }
    got = gc.compile(outputs, batch=ROWS, dtype="float64").predict(
        x=LOGITS, y=LABELS.astype(np.int32), b=SIGNS.reshape(-1)[:ROWS].astype(np.int32)
    )
    order = np.argsort(-LOGITS, axis=1)
    assert got["top1"] == np.mean(order[:, 0] == LABELS)
    assert got["top3"] == np.mean((order[:, :3] == LABELS[:, None]).any(1))
    assert got["binary"] == np.mean((LOGITS[:, 0] > 0) == (SIGNS.reshape(-1)[:ROWS] > 0))
