"""Run small nets on a device, to be watched by compute-sanitizer, and compare what they compute with C.

Every kind of kernel is among them: products, convolutions and their gradients, pooling, normalisation, softmax,
updates. A batch smaller than the compiled one leaves blocks and warps half empty. The exit status is 1 if a value
differs from that of the same net as C.

Examples:
    python benchmarks/gpu/small.py
    compute-sanitizer --tool racecheck python benchmarks/gpu/small.py --nets lenet
    python benchmarks/gpu/small.py --target cuda-emulated
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gc

BATCHES = (5, 3, 1)
# Sums of at most a few thousand terms of size one, in another order; gradients of a net of at most nine layers.
TOLERANCE = 1e-3

Net = tuple[tuple[int, int, int], Callable[[Any], Any]]
NETS: dict[str, Net] = {
    "mlp": ((1, 8, 8), lambda x: gc.models.mlp(x, hidden=(40, 24))),
    "lenet": ((1, 32, 32), gc.models.lenet),
    "resnet_cifar": ((3, 16, 16), lambda x: gc.models.resnet_cifar(x, depth=8, width=4)),
}


def compiled(name: str, target: str) -> Any:
    """Return a net that trains."""
    shape, net = NETS[name]
    x, y = gc.input("x", ("N", *shape)), gc.input("y", ("N",), dtype="int32")
    logits = net(x)
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)}, batch=max(BATCHES), name=name, target=target,
    )  # fmt: skip


def run(name: str, module: Any) -> dict[str, np.ndarray]:
    """Return everything that a module computes at each batch: logits, losses, gradients, and the weights after it."""
    found, rng = {}, np.random.default_rng(0)
    for batch in BATCHES:
        x = rng.standard_normal((batch, *NETS[name][0]), dtype=np.float32)
        given = {"x": x, "y": rng.integers(0, 10, batch).astype(np.int32)}
        found[f"logits at batch {batch}"] = module.predict(x=x)["logits"]
        found[f"evaluated loss at batch {batch}"] = np.array(float(module.evaluate(**given)))
        found[f"loss at batch {batch}"] = np.array(float(module.backward(**given)))
        found |= {f"gradient of {n} at batch {batch}": np.array(g) for n, g in module.grads.items()}
        module.train_step(**given, lr=0.01)
    return found | {n: np.array(v) for n, v in (*module.params.items(), *module.state.items())}


def differing(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    """Return the names of what is not finite or differs, relative to the largest value of an array."""
    found = []
    for name, value in ours.items():
        scale = max(float(np.abs(theirs[name]).max(initial=0.0)), 1e-3)
        worst = float(np.abs(value - theirs[name]).max(initial=0.0)) / scale
        if not worst <= TOLERANCE:  # NaN as well
            found.append(f"{name} ({worst:.2g})")
    return found


def main() -> int:
    """Run the nets, and say what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), metavar="NET")
    parser.add_argument("--target", choices=("cuda", "cuda-emulated"), default="cuda")
    options = parser.parse_args()
    status = 0
    for name in options.nets:
        wrong = differing(run(name, compiled(name, options.target)), run(name, compiled(name, "c")))
        print(f"{name}: {'differs from C: ' + ', '.join(wrong[:5]) if wrong else 'as C'}", flush=True)
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
