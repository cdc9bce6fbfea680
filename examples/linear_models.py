"""Logistic regression, support vector machines and a deep net from one objective, on handwritten digits.

Every model minimises, over the parameters w of its scores F,

    C/2*|w|^2 + mean_i [ eps*ln sum_k exp((L(y_i, k) + F(w, x_i, k))/eps) - F(w, x_i, y_i) ]

and differs from the others in three choices: the scores F, the task loss L and the temperature eps.

    model                          F(w, x, k)                     L           eps
    logistic regression            k*f(x)/2 for k in {-1, +1}     0           1
    support vector machine         k*f(x)/2 for k in {-1, +1}     [k != y]    0
    multinomial logistic           w_k . x + b_k                  0           1
    multiclass SVM                 w_k . x + b_k                  [k != y]    0
    deep net, cross-entropy        the net's outputs              0           1
    deep net, margin               the net's outputs              [k != y]    0.1

Run it with ``python examples/linear_models.py``; it takes a few seconds.
"""

from __future__ import annotations

import numpy as np

import graphc as gc
from graphc_runtime.data import load_digits

BATCH, EPOCHS, C = 64, 40, 1e-3


def objective(F: gc.Tensor, y: gc.Tensor, task_loss: str | None, epsilon: float) -> gc.Module:
    """Compile the objective for scores F and labels y."""
    risk = gc.losses.soft_margin(F, y, task_loss=task_loss, epsilon=epsilon, reduction="mean")
    loss = risk + gc.losses.l2(gc.losses.weights_of(F), C)
    return gc.compile({"F": F}, loss=loss, optimizer=gc.Adam(lr=0.01), batch=BATCH)


def fit(module: gc.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Train with shuffled mini-batches and a falling learning rate; return the last epoch's mean loss."""
    rng = np.random.default_rng(0)
    losses: list[float] = []
    for epoch in range(EPOCHS):
        order = rng.permutation(len(images))
        batches = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
        lr = 0.01 * (1 - epoch / EPOCHS)
        losses = [module.train_step(lr=lr, x=images[b], y=labels[b]) for b in batches]
    return float(np.mean(losses))


def accuracy(module: gc.Module, images: np.ndarray, columns: np.ndarray) -> float:
    """Return the share of images whose largest score is in the right column."""
    parts = range(0, len(images), BATCH)
    scores = np.concatenate([module.predict(x=images[k : k + BATCH])["F"] for k in parts])
    return float(np.mean(scores.argmax(1) == columns))


def main() -> dict[str, float]:
    """Train the six models; print and return their accuracies on images that they have not seen."""
    images, digits = load_digits()
    x_all = images.reshape(len(images), 64).astype(np.float32) / 16
    order = np.random.default_rng(1).permutation(len(images))
    test, rest = order[: len(order) // 5], order[len(order) // 5 :]
    odd = np.where(digits % 2 == 1, 1, -1).astype(np.int32)

    x = gc.input("x", ("N", 64))
    y = gc.input("y", ("N",), dtype="int32")
    hidden = gc.relu(gc.nn.linear(x, 64, name="hidden"))
    two = gc.losses.binary_scores(gc.nn.linear(x, 1, name="f"))
    ten = gc.nn.linear(x, 10, name="scores")
    deep = gc.nn.linear(hidden, 10, name="outputs")
    sign = gc.losses.binary_labels(y)
    models = {
        "odd or even, logistic regression": (two, sign, None, 1.0),
        "odd or even, support vector machine": (two, sign, "zero_one", 0.0),
        "ten digits, multinomial logistic": (ten, y, None, 1.0),
        "ten digits, multiclass SVM": (ten, y, "zero_one", 0.0),
        "ten digits, deep net, cross-entropy": (deep, y, None, 1.0),
        "ten digits, deep net, margin": (deep, y, "zero_one", 0.1),
    }
    found = {}
    for name, (F, label, task_loss, epsilon) in models.items():
        module = objective(F, label, task_loss, epsilon)
        labels, columns = (odd, (odd + 1) // 2) if F is two else (digits, digits)
        loss = fit(module, x_all[rest], labels[rest])
        found[name] = accuracy(module, x_all[test], columns[test])
        print(f"{name:36}  loss {loss:.4f}  test accuracy {found[name]:6.2%}")
    return found


if __name__ == "__main__":
    main()
