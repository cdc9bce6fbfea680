"""The nets that the commands train, and the module that each is compiled to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import graphc as gc
from graphc.api import translate
from graphc.cli import onnx_nets, places
from graphc.cli.onnx_nets import OnnxOptions
from graphc.errors import GraphcError, RangeError
from graphc.inspection import Inspected
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
    described = _classifier(name, channels, classes, batch)
    if optimizer is not None:
        described["optimizer"] = optimizer
    threads = usable_processors() if threads is None else threads
    return gc.compile(**described, seed=seed, threads=threads, tune=tune)


def _classifier(name: str, channels: int = 1, classes: int = 10, batch: int = 64) -> dict[str, Any]:
    """Return what ``compile`` is told about a net of ``NETS``."""
    x = gc.input("x", ("N", channels, SIDE, SIDE))
    y = gc.input("y", ("N",), dtype="int32")
    logits = NETS[name](x, classes)
    return {
        "outputs": {"logits": logits}, "loss": gc.losses.cross_entropy(logits, y),
        "metrics": {"accuracy": gc.metrics.accuracy(logits, y)},
        "optimizer": gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4), "batch": batch, "name": name,
    }  # fmt: skip


def usable_processors() -> int:
    """Return how many processors this process may use; results do not depend on it."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 64)
    return os.cpu_count() or 1


_PLAIN = OnnxOptions()


def module_of(
    place: str | None, batch: int | None = None, profile: bool = False, options: OnnxOptions = _PLAIN
) -> gc.Module:
    """Return the net at a place, compiled; without a place the LeNet of the demo. ``batch`` is by default 1.

    Raises:
        GraphcError: there is no such net, or it is compiled already and the batch is another.
    """
    found = _description(place, batch, options)
    if isinstance(found, gc.Module):
        return found
    threads = usable_processors() if place is None or profile else 1
    return gc.compile(**found, threads=threads, profile=profile)


def translation_of(place: str | None, batch: int | None = None, options: OnnxOptions = _PLAIN) -> Inspected:
    """Return the net at a place, to be read: its C is not built, unless the file that has it built it.

    Raises:
        GraphcError: as ``module_of``.
    """
    found = _description(place, batch, options)
    return found if isinstance(found, gc.Module) else translate(**found)


def _description(place: str | None, batch: int | None, options: OnnxOptions) -> gc.Module | dict[str, Any]:
    """Return the module at a place, or what ``compile`` is to be told about the net there."""
    if place is not None and onnx_nets.is_onnx(place):
        return onnx_nets.describe(place, 1 if batch is None else batch, options)
    if options.given():
        raise GraphcError(f"{', '.join(options.given())}: for FILE.onnx alone, got {place or 'no NET'}")
    if place is None:
        return _classifier("lenet") if batch is None else _classifier("lenet", batch=batch)
    found = places.find(place)
    if isinstance(found, gc.Module):
        if batch is not None:
            raise RangeError(f"--batch {batch}: {place} is compiled already, for a batch of {found.batch}")
        return found
    batch = 1 if batch is None else batch
    if not places.is_model(place):
        return {"outputs": found, "batch": batch}
    y = gc.input("y", ("N",), dtype="int32")
    main, *auxiliary = (gc.losses.cross_entropy(logits, y) for logits in found.values())
    loss = main
    for other in auxiliary:  # those of GoogLeNet, with the weight of its paper
        loss = loss + 0.3 * other
    optimizer = gc.SGD(lr=0.05, momentum=0.9)
    return {
        "outputs": found, "loss": loss, "optimizer": optimizer, "batch": batch, "name": places.model_name(place)
    }  # fmt: skip
