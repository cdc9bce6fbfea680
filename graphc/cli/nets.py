"""The nets that the commands train, and the module that each is compiled to."""

from __future__ import annotations

import os
from collections.abc import Callable

import graphc as gc
from graphc.cli import places
from graphc.errors import RangeError
from graphc.optim import Optimizer

SIDE = 32  # every image fills a canvas of this many pixels a side


NETS: dict[str, Callable[[gc.Tensor, int], gc.Tensor]] = {
    "lenet": gc.models.lenet,
    "lenet_1998": gc.models.lenet_1998,
    "mlp": gc.models.mlp,
    "resnet20": gc.models.resnet_cifar,
}


def compile_net(
    name: str, *, channels: int = 1, classes: int = 10, batch: int = 64, optimizer: Optimizer | None = None,
    seed: int = 0, threads: int | None = None, tune: bool = False,
) -> gc.Module:  # fmt: skip
    """Return a net of ``NETS`` as a classifier: inputs x and y, output logits, cross-entropy, accuracy."""
    x = gc.input("x", ("N", channels, SIDE, SIDE))
    y = gc.input("y", ("N",), dtype="int32")
    logits = NETS[name](x, classes)
    return gc.compile(
        {"logits": logits},
        loss=gc.losses.cross_entropy(logits, y),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)},
        optimizer=optimizer or gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
        batch=batch,
        seed=seed,
        name=name,
        threads=usable_processors() if threads is None else threads,
        tune=tune,
    )


def usable_processors() -> int:
    """Return how many processors this process may use; results do not depend on it."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 64)
    return os.cpu_count() or 1


def module_of(place: str | None, batch: int | None = None) -> gc.Module:
    """Return the net at a place, compiled; without a place the LeNet of the demo. ``batch`` is by default 1.

    Raises:
        GraphcError: there is no such net, or it is compiled already and the batch is another.
    """
    if place is None:
        return compile_net("lenet") if batch is None else compile_net("lenet", batch=batch)
    found = places.find(place)
    if isinstance(found, gc.Module):
        if batch is not None:
            raise RangeError(f"--batch {batch}: {place} is compiled already, for a batch of {found.batch}")
        return found
    batch = 1 if batch is None else batch
    if not places.is_model(place):
        return gc.compile(found, batch=batch)
    y = gc.input("y", ("N",), dtype="int32")
    main, *auxiliary = (gc.losses.cross_entropy(logits, y) for logits in found.values())
    loss = main
    for other in auxiliary:  # those of GoogLeNet, with the weight of its paper
        loss = loss + 0.3 * other
    return gc.compile(
        found, loss=loss, optimizer=gc.SGD(lr=0.05, momentum=0.9), batch=batch, name=places.model_name(place)
    )
