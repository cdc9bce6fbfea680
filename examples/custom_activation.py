"""Activations of one's own: a formula is enough, and its derivative, its C and its fusion follow.

    python examples/custom_activation.py

Mish is written as text, LeCun's tanh as a sympy expression. For each, the derivative that graphc found and
the lines of C are printed, the derivative is checked against central differences in float64, and a small net
is trained with it on the 8 x 8 digits, beside the same net with ReLU.
"""

from __future__ import annotations

import argparse
import re

import numpy as np
import sympy as sp

import graphc as gc
from graphc_runtime import Trainer
from graphc_runtime.data import split_digits
from graphc_runtime.schedules import Cosine

u = sp.Symbol("u", real=True)
LECUN = sp.Float("1.7159") * sp.tanh(2 * u / 3)


def mish(x: gc.Tensor) -> gc.Tensor:
    """Misra 2019. The plain formula overflows for large x; graphc sees softplus in it, which does not."""
    return gc.elementwise("mish", "x*tanh(log(1 + exp(x)))", x)


def lecun(x: gc.Tensor) -> gc.Tensor:
    """LeCun, Bottou, Bengio and Haffner 1998, appendix A: f(1) = 1, f(-1) = -1."""
    return gc.elementwise("lecun", LECUN, x)


ACTIVATIONS = {"mish": mish, "lecun": lecun}


def show(name: str) -> float:
    """Print derivative and C of an activation; return the largest error of its derivative, in float64."""
    x = gc.input("x", ("N",))
    value = ACTIVATIONS[name](x)
    (slope,) = gc.grad(gc.sum(value), [x])
    module = gc.compile({"value": value, "slope": slope}, batch=1000, dtype="float64", name=name)
    source = module.source[f"{name}.c"]
    # The comment above each kernel gives its formula; LeCun's is written in the output, so both share one.
    (formula,) = re.findall(rf" \* out1? = (.+)\n \* from [^\n]*{name}_backward", source)
    print(f"{name}'s derivative: {formula}")
    for line in re.findall(rf"const double {name}(?:_backward)? = .+;", source):
        print(f"    {line}")

    # The error of a central difference is about h^2/6 |f'''| by truncation and 1e-16/h by rounding: with this
    # h both are about 1e-11.
    h, points = 1e-5, np.linspace(-6, 6, 1000)
    above, below = (module.predict(x=points + step)["value"] for step in (h, -h))
    error = np.abs(module.predict(x=points)["slope"] - (above - below) / (2 * h)).max()
    print(f"    differs from central differences by at most {error:.1e}\n")
    return float(error)


def train(name: str, epochs: int, seed: int) -> float:
    """Train a net of two convolutions with the activation; return the accuracy on held-out digits."""
    f = ACTIVATIONS.get(name, gc.relu)
    x = gc.input("x", ("N", 1, 8, 8))
    y = gc.input("y", ("N",), dtype="int32")
    h = f(gc.nn.conv2d(x, 16, kernel=3, padding=1, name="conv1"))
    h = gc.nn.max_pool2d(f(gc.nn.conv2d(h, 32, kernel=3, padding=1, name="conv2")), 2)
    logits = gc.nn.linear(f(gc.nn.linear(gc.flatten(h), 64, name="fc1")), 10, name="fc2")
    module = gc.compile(
        {"logits": logits},
        loss=gc.losses.cross_entropy(logits, y),
        optimizer=gc.SGD(lr=0.05, momentum=0.9),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)},
        batch=64, seed=seed, name=f"net_{name}",
    )  # fmt: skip
    train, test = split_digits(seed=seed).datasets(size=8)
    history = Trainer(
        module, train, test, epochs=epochs, lr=Cosine(0.05, epochs), seed=seed, progress=False
    ).fit()
    last = history[-1]
    print(f"{name:6} loss {last.loss:.4f}  test accuracy {last.validation_metrics['accuracy']:.2%}")
    return last.validation_metrics["accuracy"]


def main(arguments: list[str] | None = None) -> tuple[dict[str, float], dict[str, float]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    errors = {name: show(name) for name in ACTIVATIONS}
    return errors, {name: train(name, options.epochs, options.seed) for name in (*ACTIVATIONS, "relu")}


if __name__ == "__main__":
    main()
