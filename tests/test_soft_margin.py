"""The soft-margin objective: robust at every temperature, its gradient, and the models it contains."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.losses import binary_labels, binary_scores, l2, soft_margin, weights_of

RNG = np.random.default_rng(11)
ROWS, CLASSES, FEATURES, HIDDEN = 12, 4, 5, 6
SCORES = RNG.standard_normal((ROWS, CLASSES)) * 2
LABELS = RNG.integers(0, CLASSES, ROWS).astype(np.int32)
ZERO_ONE = 1 - np.eye(CLASSES)
MATRIX = RNG.uniform(0, 2, (CLASSES, CLASSES))  # not symmetric, and not zero on the diagonal
TASK_LOSSES = {"zero_one": ("zero_one", ZERO_ONE), "matrix": (MATRIX, MATRIX), "none": (None, 0 * ZERO_ONE)}
EPSILONS = (3.0, 1.0, 0.1, 1e-3, 1e-30, 0.0)


def objective(F: np.ndarray, y: np.ndarray, L: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the rows of the objective in float64, with the definition's maximum at epsilon 0."""
    scores = F + L[y]
    top = scores.max(1)
    if epsilon > 0:
        with np.errstate(over="ignore"):
            top = top + epsilon * np.log(np.exp((scores - top[:, None]) / epsilon).sum(1))
    return np.asarray(top - F[np.arange(len(y)), y])


def probabilities(F: np.ndarray, y: np.ndarray, L: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the softmax of (L + F)/epsilon; its limit at 0 is even over the largest."""
    scores = F + L[y]
    scores = scores - scores.max(1, keepdims=True)
    with np.errstate(over="ignore"):
        weights = np.exp(scores / epsilon) if epsilon > 0 else (scores == 0).astype(float)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def one_hot(y: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    return np.asarray(np.eye(classes)[y])


def compiled_rows(dtype: str) -> tuple[Any, list[tuple[str, np.ndarray, float]]]:
    """Return one module that gives every combination of task loss and temperature, with its gradient."""
    F = gc.input("F", ("N", CLASSES))
    y = gc.input("y", ("N",), dtype="int32")
    outputs, cases = {}, []
    for label, (ours, L) in TASK_LOSSES.items():
        for k, epsilon in enumerate(EPSILONS):
            rows = soft_margin(F, y, task_loss=ours, epsilon=epsilon, reduction="none")
            outputs[f"{label}{k}"] = rows
            outputs[f"d{label}{k}"] = gc.grad(gc.sum(rows), [F])[0]
            cases.append((f"{label}{k}", L, epsilon))
    return gc.compile(outputs, batch=ROWS, dtype=dtype), cases


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient_at_every_temperature(dtype: str) -> None:
    """Ordinary and huge scores, and scores as small as the temperature, where the choice stays soft."""
    module, cases = compiled_rows(dtype)
    rounded = MATRIX.astype(dtype).astype(np.float64)
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype]
    for scale in (1e-3, 1.0, 1e3):
        F = (SCORES * scale).astype(dtype)
        got = module.predict(F=F, y=LABELS)
        for name, task_loss, epsilon in cases:
            L = rounded if task_loss is MATRIX else task_loss
            if dtype == "float32" and 0 < epsilon < 0.01:
                # p depends on score/epsilon: rounding score + loss by 2^-24 of its size counts.
                tolerance_p = max(scale, 1) * 1e-6 / max(epsilon, 1e-3)
            else:
                tolerance_p = tolerance * max(scale, 1) / max(epsilon, 1e-3)
            want = objective(F.astype(np.float64), LABELS, L, epsilon)
            np.testing.assert_allclose(
                got[name], want, atol=tolerance * max(scale, 1), rtol=tolerance, err_msg=name
            )
            expected = probabilities(F.astype(np.float64), LABELS, L, epsilon) - one_hot(LABELS)
            np.testing.assert_allclose(got[f"d{name}"], expected, atol=min(tolerance_p, 1e-2), err_msg=name)


def test_forbidden_labels_and_ties() -> None:
    """A score of -inf takes part in nothing; labels that tie share the gradient, at epsilon 0 and near it."""
    module, cases = compiled_rows("float32")
    forbidden = SCORES.astype(np.float32)
    forbidden[np.arange(ROWS), (LABELS + 1) % CLASSES] = -np.inf
    tied = np.zeros_like(forbidden)
    for F in (forbidden, tied):
        got = module.predict(F=F, y=LABELS)
        for name, L, epsilon in cases:
            if L is MATRIX:
                L = MATRIX.astype(np.float32).astype(np.float64)
            want = objective(F.astype(np.float64), LABELS, L, epsilon)
            np.testing.assert_allclose(got[name], want, atol=1e-5, err_msg=name)
            expected = probabilities(F.astype(np.float64), LABELS, L, epsilon) - one_hot(LABELS)
            np.testing.assert_allclose(got[f"d{name}"], expected, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(got["dnone5"], 0.25 - one_hot(LABELS), atol=1e-6)
    np.testing.assert_allclose(got["dnone4"], got["dnone5"], atol=1e-6)


def test_epsilon_zero_is_the_maximum() -> None:
    F = gc.input("F", ("N", CLASSES))
    y = gc.input("y", ("N",), dtype="int32")
    L = gc.input("L", (CLASSES, CLASSES))
    limit = soft_margin(F, y, task_loss=L, epsilon=0, reduction="mean")
    maximum = gc.max(F + gc.take(L, y), 1) - gc.reshape(gc.pick(F, y), F.shape[:1])
    smooth = soft_margin(F, y, task_loss=L, epsilon=0.5, reduction="mean")
    outputs = {"limit": limit, "maximum": gc.mean(maximum), "dL": gc.grad(smooth, [L])[0]}
    got = gc.compile(outputs, batch=ROWS, dtype="float64").predict(F=SCORES, y=LABELS, L=MATRIX)
    assert got["limit"] == got["maximum"]
    # The task loss may be learned: its gradient sums the probabilities over the rows of each right label.
    p = probabilities(SCORES, LABELS, MATRIX, 0.5) / ROWS
    np.testing.assert_allclose(got["dL"], one_hot(LABELS).T @ p, atol=1e-12)


def test_special_cases_as_closed_forms() -> None:
    """Logistic loss, hinge loss, cross-entropy and the loss of Crammer and Singer, from one function."""
    f = gc.input("f", ("N",))
    sign = gc.input("sign", ("N",), dtype="int32")
    F = gc.input("F", ("N", CLASSES))
    y = gc.input("y", ("N",), dtype="int32")
    two, column = binary_scores(f), binary_labels(sign)
    outputs = {
        "logistic": soft_margin(two, column, task_loss=0, epsilon=1, reduction="none"),
        "hinge": soft_margin(two, column, epsilon=0, reduction="none"),
        "softmax": soft_margin(F, y, task_loss=None, epsilon=1, reduction="none"),
        "cross_entropy": gc.losses.cross_entropy(F, y, reduction="none"),
        "multiclass": soft_margin(F, y, epsilon=0, reduction="none"),
        "sum": soft_margin(F, y),
        "columns": binary_scores(gc.reshape(f, (*f.shape, 1))),
    }
    score = SCORES[:, 0] * 3
    signs = np.random.default_rng(3).choice([-1, 1], ROWS).astype(np.int32)
    module = gc.compile(outputs, batch=ROWS, dtype="float64")
    got = module.predict(f=score, sign=signs, F=SCORES, y=LABELS)
    np.testing.assert_allclose(got["logistic"], np.log1p(np.exp(-signs * score)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got["hinge"], np.maximum(0, 1 - signs * score), atol=1e-12)
    np.testing.assert_allclose(got["softmax"], got["cross_entropy"], rtol=1e-12)
    own = SCORES[np.arange(ROWS), LABELS]
    crammer_singer = (SCORES + ZERO_ONE[LABELS] - own[:, None]).max(1)
    np.testing.assert_allclose(got["multiclass"], crammer_singer, atol=1e-12)
    np.testing.assert_allclose(got["sum"], objective(SCORES, LABELS, ZERO_ONE, 1).sum(), rtol=1e-12)
    np.testing.assert_array_equal(got["columns"], np.stack([-score / 2, score / 2], 1))
    with pytest.raises(gc.GraphcError, match=r"sign\[0\] is 0"):
        module.predict(f=score, sign=0 * signs, F=SCORES, y=LABELS)


def test_the_rows_are_one_kernel() -> None:
    F = gc.input("F", ("N", 10))
    y = gc.input("y", ("N",), dtype="int32")
    for epsilon in (1.0, 0.0):
        module = gc.compile({"rows": soft_margin(F, y, epsilon=epsilon, reduction="none")}, batch=8)
        (entry,) = module.manifest["entries"]
        assert len(entry["calls"]) == 1


X = RNG.standard_normal((ROWS, FEATURES))


def softness(epsilon: float) -> float:
    """Return the size of scores and task losses at which this temperature leaves several labels likely."""
    return min(1.0, epsilon)


def training_module(kind: str, epsilon: float, C: float) -> Any:
    """Return a module whose loss is the whole objective, for a linear model or a net with a hidden layer."""
    rng = np.random.default_rng(7)
    x = gc.input("x", ("N", FEATURES))
    y = gc.input("y", ("N",), dtype="int32")
    if kind == "net":
        v = gc.parameter("v", (FEATURES, HIDDEN), rng.standard_normal((FEATURES, HIDDEN)) * 0.5)
        h = gc.tanh(gc.matmul(x, v) + gc.parameter("c", (HIDDEN,), rng.standard_normal(HIDDEN) * 0.1))
    else:
        h = x
    width = HIDDEN if kind == "net" else FEATURES
    scale = softness(epsilon)
    w = gc.parameter("w", (width, CLASSES), rng.standard_normal((width, CLASSES)) * scale)
    F = gc.matmul(h, w) + gc.parameter("b", (CLASSES,), rng.standard_normal(CLASSES) * 0.1 * scale)
    loss = soft_margin(F, y, task_loss=MATRIX * scale, epsilon=epsilon) + l2(weights_of(F, biases=True), C)
    return gc.compile({"F": F}, loss=loss, batch=ROWS, dtype="float64")


def score_gradients(kind: str, p: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return F (i, k), and dF[i, k]/dw for every parameter w with the parameter's axes last, in NumPy."""
    eye = np.eye(CLASSES)
    h = np.tanh(X @ p["v"] + p["c"]) if kind == "net" else X
    F = h @ p["w"] + p["b"]
    jacobian = {
        "w": np.einsum("ia,kj->ikaj", h, eye),
        "b": np.broadcast_to(eye, (ROWS, CLASSES, CLASSES)),
    }
    if kind == "net":
        jacobian["c"] = np.einsum("hk,ih->ikh", p["w"], 1 - h**2)
        jacobian["v"] = np.einsum("ikh,ia->ikah", jacobian["c"], X)
    return F, jacobian


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("kind", ["linear", "net"])
def test_gradient_of_the_compiled_objective_is_the_formula(kind: str, epsilon: float) -> None:
    """C*w + sum_i sum_k (p(k|x_i) - [k = y_i]) * dF(w, x_i, k)/dw, with p the softmax of (L + F)/epsilon."""
    C = 0.3
    module = training_module(kind, epsilon, C)
    params = {
        name: np.array(value) for name, value in module.params.items() if not name.startswith("constant")
    }
    assert set(params) == ({"w", "b", "v", "c"} if kind == "net" else {"w", "b"})
    loss = module.backward(x=X, y=LABELS)
    F, jacobian = score_gradients(kind, params)
    L = MATRIX * softness(epsilon)
    p = probabilities(F, LABELS, L, epsilon)
    assert (p > 0.05).sum() > 1.5 * ROWS  # else this would be a test of the maximum
    residual = p - one_hot(LABELS)
    for name, value in params.items():
        want = C * value + np.tensordot(residual, jacobian[name], axes=2)
        # p is a function of F/epsilon: rounding errors of F come back multiplied by 1/epsilon.
        np.testing.assert_allclose(module.grads[name], want, rtol=1e-9, atol=1e-12 / epsilon, err_msg=name)
    squares = sum(float((v**2).sum()) for v in params.values())
    want_loss = C / 2 * squares + objective(F, LABELS, L, epsilon).sum()
    assert float(loss) == pytest.approx(want_loss, rel=1e-12)


def test_weights_of_leaves_biases_and_fixed_parameters_out() -> None:
    x = gc.input("x", ("N", 3))
    fixed = gc.parameter("fixed", (3, 3), trainable=False)
    w, b = gc.parameter("w", (3, 2)), gc.parameter("b", (2,))
    F = gc.matmul(gc.matmul(x, fixed), w) + b
    assert weights_of(F) == [w]
    assert set(weights_of(F, biases=True)) == {w, b}


def test_the_example_trains_every_model() -> None:
    """Ten epochs, and accuracies that chance does not reach: 50 % for two labels, 10 % for ten."""
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "linear_models.py"))
    example["main"].__globals__["EPOCHS"] = 10
    found = example["main"]()
    assert len(found) == 6
    for name, share in found.items():
        assert share > (0.85 if name.startswith("odd") else 0.9), name


# ---- Against scikit-learn: each model fitted to its optimum by both.

SAMPLES = 90


def blobs(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping clouds, so that no class is separable and every optimum is finite and unique."""
    rng = np.random.default_rng(classes)
    y = np.arange(SAMPLES) % classes
    centres = rng.standard_normal((classes, 3)) * 1.5
    return centres[y] + rng.standard_normal((SAMPLES, 3)), y.astype(np.int32)


def linear_model(classes: int, task_loss: Any, epsilon: float, C: float, bias: bool) -> Any:
    """Return the compiled objective of a linear model; two classes share one score."""
    x = gc.input("x", ("N", 3))
    y = gc.input("y", ("N",), dtype="int32")
    columns = 1 if classes == 2 else classes
    w = gc.parameter("w", (3, columns))
    f = gc.matmul(x, w)
    if bias:
        f = f + gc.parameter("b", (columns,))
    F = binary_scores(f) if classes == 2 else f
    loss = soft_margin(F, y, task_loss=task_loss, epsilon=epsilon) + l2(w, C)
    return gc.compile({"f": f}, loss=loss, batch=SAMPLES, dtype="float64")


def value_at(module: Any, flat: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the compiled objective and its gradient at parameters given as one vector."""
    start = 0
    for name, view in module.params.items():
        module.params[name] = flat[start : start + view.size].reshape(view.shape)
        start += view.size
    loss = float(module.backward(x=x, y=y))
    return loss, np.concatenate([module.grads[name].ravel() for name in module.params])


def minimise(
    module: Any, x: np.ndarray, y: np.ndarray, start: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Return the smallest objective and where it is, by L-BFGS on the compiled gradient."""
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    size = sum(v.size for v in module.params.values())
    result = optimize.minimize(
        lambda flat: value_at(module, flat, x, y), np.zeros(size) if start is None else start, jac=True,
        method="L-BFGS-B", options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-10},
    )  # fmt: skip
    return float(result.fun), np.asarray(result.x)


@pytest.mark.parametrize("classes", [2, 3], ids=["binary", "multiclass"])
def test_logistic_regression(classes: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x, y = blobs(classes)
    C = 0.5  # scikit-learn's C multiplies the losses instead of the regulariser
    theirs = linear.LogisticRegression(C=1 / C, tol=1e-10, max_iter=10000).fit(x, y)
    module = linear_model(classes, None, 1.0, C, bias=True)
    ours, _ = minimise(module, x, y)
    np.testing.assert_allclose(module.params["w"].T, theirs.coef_, atol=1e-5)
    intercept = module.params["b"] - module.params["b"].mean() if classes > 2 else module.params["b"]
    wanted = theirs.intercept_ - (theirs.intercept_.mean() if classes > 2 else 0)
    np.testing.assert_allclose(intercept, wanted, atol=1e-5)  # a constant in all intercepts changes nothing
    their_objective = C / 2 * (theirs.coef_**2).sum() - theirs.predict_log_proba(x)[range(len(y)), y].sum()
    assert ours == pytest.approx(their_objective, rel=1e-8)


@pytest.mark.parametrize("classes", [2, 3], ids=["binary", "multiclass"])
def test_support_vector_machine(classes: int) -> None:
    """The smooth objective bounds the SVM's from above by at most n*eps*ln K, so the optimum lies between."""
    svm = pytest.importorskip("sklearn.svm", reason="scikit-learn is not installed")
    x, y = blobs(classes)
    C = 2.0
    form = {"loss": "hinge"} if classes == 2 else {"multi_class": "crammer_singer"}
    theirs = svm.LinearSVC(C=1 / C, fit_intercept=False, tol=1e-10, max_iter=10**6, **form).fit(x, y)
    exact = linear_model(classes, "zero_one", 0.0, C, bias=False)
    their_objective, _ = value_at(exact, theirs.coef_.T.ravel(), x, y)
    if classes == 2:
        closed = np.maximum(0, 1 - (2 * y - 1) * (x @ theirs.coef_[0])).sum()
    else:
        scores = x @ theirs.coef_.T
        closed = (scores + 1 - np.eye(3)[y]).max(1).sum() - scores[range(len(y)), y].sum()
    assert their_objective == pytest.approx(C / 2 * (theirs.coef_**2).sum() + closed, rel=1e-12)
    found, where = minimise(linear_model(classes, "zero_one", 0.1, C, bias=False), x, y)
    for epsilon in (1e-2, 1e-3):
        found, where = minimise(linear_model(classes, "zero_one", epsilon, C, bias=False), x, y, where)
    assert found - SAMPLES * epsilon * np.log(classes) <= their_objective <= found * (1 + 1e-9)
    ours, _ = value_at(exact, where, x, y)
    assert their_objective * (1 - 1e-9) <= ours <= their_objective * (1 + 1e-3)
    np.testing.assert_allclose(exact.params["w"].T, theirs.coef_, atol=0.02)
