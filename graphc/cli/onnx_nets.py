"""ONNX files as nets of the commands, and the options that are for them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphc as gc
from graphc.errors import GraphcError, RangeError, UnknownNameError
from graphc.onnx.names import unique_names
from graphc.types import N

LOSSES = (
    "cross_entropy",
    "nll",
    "mse",
    "l1",
    "smooth_l1",
    "huber",
    "bce",
    "bce_with_logits",
    "kl_div",
    "hinge",
)
_OF_LABELS = ("cross_entropy", "nll")
_LR, _MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX file is read, and what is added so that it can be trained."""

    dims: tuple[tuple[str, int], ...] = ()
    loss: str | None = None
    output: str | None = None
    freeze: tuple[str, ...] = ()
    lr: float | None = None
    momentum: float | None = None

    def given(self) -> list[str]:
        """Return the options that are not as they are by default."""
        values = {"--dim": self.dims, "--loss": self.loss, "--output": self.output, "--freeze": self.freeze,
                  "--lr": self.lr, "--momentum": self.momentum}  # fmt: skip
        return [name for name, value in values.items() if value not in (None, ())]


def is_onnx(place: str) -> bool:
    """Whether a place is an ONNX file."""
    return place.lower().endswith(".onnx")


def add_dims(parser: argparse.ArgumentParser) -> None:
    """Declare how an ONNX file is read."""
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=VALUE",
        help="of FILE.onnx: the extent of a symbolic dimension; may be repeated")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare all options for ONNX files."""
    add_dims(parser)
    add = parser.add_argument
    add("--loss", choices=LOSSES, help="of FILE.onnx: a loss of gc.losses, with an input for the target")
    add("--output", metavar="NAME", help="of FILE.onnx: the output that the loss takes, if there are several")
    add("--freeze", action="append", default=[], metavar="PATTERN",
        help="of FILE.onnx: parameters that are not learned, as in a shell; may be repeated")  # fmt: skip
    add("--lr", type=float, help=f"of FILE.onnx: SGD's learning rate (default: {_LR})")
    add("--momentum", type=float, help=f"of FILE.onnx: SGD's momentum (default: {_MOMENTUM})")


def options_of(options: argparse.Namespace) -> OnnxOptions:
    """Return what was chosen.

    Raises:
        GraphcError: a dimension is no name and number, or options lack the loss that they are for.
    """
    dims: dict[str, int] = {}
    for text in options.dim:
        name, equals, value = text.rpartition("=")
        if not (name and equals and value.isascii() and value.isdigit() and int(value) > 0):
            raise RangeError(f"--dim {text}: expected NAME=VALUE with a positive integer, such as height=224")
        dims[name] = int(value)
    given = vars(options)
    found = OnnxOptions(
        tuple(dims.items()), given.get("loss"), given.get("output"), tuple(given.get("freeze", ())), given.get("lr"),
        given.get("momentum"),
    )  # fmt: skip
    alone = [name for name in found.given() if name not in ("--dim", "--loss")]
    if found.loss is None and alone:
        raise GraphcError(
            f"{', '.join(alone)}: for training alone, which needs --loss {{{','.join(LOSSES)}}}"
        )
    return found


def describe(place: str, batch: int, options: OnnxOptions) -> dict[str, Any]:
    """Return what ``compile`` is told about an ONNX file.

    Raises:
        GraphcError: it cannot be imported, or the loss does not fit it.
    """
    try:
        model = gc.onnx.load(place, dims=dict(options.dims), freeze=options.freeze)
    except GraphcError as error:
        if "has no value; give it one with dims=" not in str(error):
            raise
        raise type(error)(str(error).replace("dims=", "--dim NAME=VALUE, or in Python dims=")) from None
    name = "_".join(unique_names([Path(place).stem]).values())
    described = {"outputs": dict(model.outputs), "batch": batch, "name": name}
    if options.loss is None:
        return described
    prediction = _prediction(place, model, options.output)
    loss = getattr(gc.losses, options.loss)(prediction, _target(model, prediction, options.loss))
    optimizer = gc.SGD(
        lr=_LR if options.lr is None else options.lr,
        momentum=_MOMENTUM if options.momentum is None else options.momentum,
    )
    return {**described, "loss": loss, "optimizer": optimizer}


def _prediction(place: str, model: gc.onnx.Imported, name: str | None) -> gc.Tensor:
    """Return the output that the loss takes."""
    known = ", ".join(model.outputs)
    if name is None and len(model.outputs) > 1:
        raise GraphcError(
            f"{place} has {len(model.outputs)} outputs: choose the loss's with --output: {known}"
        )
    if name is not None and name not in model.outputs:
        raise UnknownNameError(f"--output: {place} has no output {name!r}; there are {known}")
    return model.outputs[name] if name is not None else next(iter(model.outputs.values()))


def _target(model: gc.onnx.Imported, prediction: gc.Tensor, loss: str) -> gc.Tensor:
    """Return the input that the loss compares with: labels without the axis of the classes, or the same shape."""
    name = next(n for n in ("target", "target_of_loss", "target_2") if n not in model.inputs)
    shape = ["N" if size == N else size for size in prediction.shape]
    if loss in _OF_LABELS:
        return gc.input(name, (*shape[:1], *shape[2:]), dtype="int32")
    return gc.input(name, shape, dtype=prediction.dtype)
