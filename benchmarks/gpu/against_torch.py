"""Compare nets on a GPU with PyTorch on the same one: outputs, gradients, and losses of training steps.

Both start from the same weights, PyTorch in float32 without TF32. Prints a line of JSON for every net. The exit
status is 1 if one differs by more than its tolerance. ``--device cpu`` compares small nets on the emulated device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu.ceilings import set_precision
from nets import torch_nets

import graphc as gc

BATCH, RATE, MOMENTUM = 64, 0.01, 0.9
# Relative to the largest value. Sums of thousands of terms in another order differ by some 1e-6; a gradient has
# passed as many of them as there are layers; and a step magnifies what the weights before it differed by.
TOLERANCE = {"outputs": 1e-4, "gradients": 1e-3, "losses": 1e-2}

Net = tuple[tuple[int, int, int], Callable[[Any], Any], Callable[[Any], Any]]


def nets(small: bool) -> dict[str, Net]:
    """Return the shape of an image, and both sides' nets; ``small`` ones for the emulator."""
    hidden, width, side = ((32,), 4, 8) if small else ((512, 512), 16, 32)
    pixels = side * side if small else 28 * 28
    flat = (1, side, side) if small else (1, 28, 28)
    return {
        "mlp": (flat, lambda x: gc.models.mlp(x, hidden=hidden), lambda peers: peers.mlp(pixels, hidden)),
        "lenet": ((1, 32, 32), gc.models.lenet, lambda peers: peers.lenet()),
        "resnet_cifar": (
            (3, side, side),
            lambda x: gc.models.resnet_cifar(x, depth=8, width=width),
            lambda peers: peers.resnet_cifar(8, width=width),
        ),
    }


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; infinite for NaN."""
    worst = float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-30))
    return worst if np.isfinite(worst) else float("inf")


def compare(net: Net, target: str, device: str, batch: int, steps: int) -> dict[str, float]:
    """Return by how much outputs, gradients and losses differ at most."""
    shape, graph, build = net
    peers = torch_nets()
    x, y = gc.input("x", ("N", *shape)), gc.input("y", ("N",), dtype="int32")
    logits = graph(x)
    loss, optimizer = gc.losses.cross_entropy(logits, y), gc.SGD(lr=RATE, momentum=MOMENTUM)
    module = gc.compile({"logits": logits}, loss, optimizer, batch=batch, target=target)
    rng, peer = np.random.default_rng(0), build(peers)
    images, labels = rng.standard_normal((batch, *shape), dtype=np.float32), rng.integers(0, 10, batch)
    peers.randomise(peer, torch.from_numpy(images), seed=0)
    peers.copy_to_module(peer, module)
    peer, given = peer.to(device), {"x": images, "y": labels.astype(np.int32)}
    inputs, wanted = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)

    with torch.no_grad():
        outputs = peer.eval()(inputs).cpu().numpy()
    found = {"outputs": apart(module.predict(x=images)["logits"], outputs)}
    peer.train()
    sgd = torch.optim.SGD(peer.parameters(), lr=RATE, momentum=MOMENTUM)
    losses: list[tuple[float, float]] = []
    for step in range(steps):
        sgd.zero_grad()
        value = peers.peer_loss(peer(inputs), wanted)
        value.backward()
        if step == 0:
            module.backward(**given)
            gradients = {name: parameter.grad.cpu().numpy() for name, parameter in peer.named_parameters()}
            found["gradients"] = max(apart(np.array(module.grads[n]), g) for n, g in gradients.items())
        losses.append((float(module.train_step(**given)), float(value.item())))
        sgd.step()
    ours, theirs = np.array(losses).T
    found["losses"] = apart(ours, theirs)
    return found | {"first_loss": theirs[0], "last_loss": theirs[-1]}


def main() -> int:
    """Compare, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--nets", nargs="+", metavar="NET", help="by default all")
    options = parser.parse_args()
    small = options.device == "cpu"
    target, batch = ("cuda-emulated", 4) if small else ("cuda", BATCH)
    set_precision("fp32")
    status = 0
    for name, net in nets(small).items():
        if options.nets and name not in options.nets:
            continue
        row: dict[str, Any] = {"net": name, "steps": options.steps}
        try:
            row |= compare(net, target, options.device, batch, options.steps)
            row["wrong"] = [what for what, most in TOLERANCE.items() if not row[what] <= most]
        except Exception as error:  # the other nets are compared all the same
            row["wrong"] = [f"{type(error).__name__}: {error}"[:300]]
        status |= bool(row["wrong"])
        print(json.dumps(row), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
