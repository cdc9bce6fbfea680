"""``graphc train``: trains a net on a folder of images, or on the digits that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import graphc as gc
from graphc.cli import report, tasks
from graphc.cli.nets import NETS, compile_net
from graphc.errors import CheckpointError, RangeError
from graphc_runtime import Trainer, evaluate
from graphc_runtime.schedules import Constant, Cosine, Schedule, Warmup

NAME = "train"
SUMMARY = "train a net on a folder of images, such as MNIST's or CIFAR-10's"
DESCRIPTION = """\
Trains a net on a folder of images, plain or as .gz. In MNIST's IDX format it holds train-images-idx3-ubyte,
train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte; in CIFAR-10's binary format
data_batch_1.bin to data_batch_5.bin and test_batch.bin. Without --data it takes the 8 x 8 digits that come
with graphc. With --checkpoint the run can be stopped (Ctrl-C) and goes on with --resume, to the
same bits as if it had never stopped."""
EXAMPLES = """\
examples:
  graphc train --epochs 5
  graphc train --data ~/mnist --checkpoint mnist.safetensors --out mnist-run
  graphc train --data ~/mnist --checkpoint mnist.safetensors --out mnist-run --resume
  graphc train --data ~/cifar-10-batches-bin --model resnet20"""

_SCHEDULE_HELP = "cosine rises for one epoch, then falls (default); constant stays at --lr"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="IDX or CIFAR-10 files (default: the embedded digits)")
    add("--model", choices=sorted(NETS), default="lenet", help="default: lenet")
    add("--epochs", type=int, default=6, help="default: 6")
    add("--batch", type=int, default=64, help="images in a step (default: 64)")
    add("--lr", type=float, default=0.05, help="largest learning rate (default: 0.05)")
    add("--schedule", choices=("cosine", "constant"), default="cosine", help=_SCHEDULE_HELP)
    add("--momentum", type=float, default=0.9, help="default: 0.9")
    add("--weight-decay", type=float, default=5e-4, help="default: 0.0005")
    add("--threads", type=int, help="default: one for each usable processor")
    add("--tune", action="store_true", help="first measure variants of the kernels, once on each machine")
    add("--seed", type=int, default=0, help="of weights and order (default: 0)")
    add("--checkpoint", type=Path, metavar="FILE", help="save the state there after each epoch and on Ctrl-C")
    add("--checkpoint-every", type=int, metavar="STEPS", help="save after so many steps instead")
    add("--resume", action="store_true", help="go on from --checkpoint, if the file exists")
    add("--out", type=Path, metavar="FOLDER", help="write curves, weights and generated C there")
    add("--quiet", action="store_true", help="print the result only")


def run(options: argparse.Namespace) -> None:
    """Train, then print the test accuracy and write what was asked for."""
    report.require_extras("graphc train")
    _check(options)
    task = tasks.image_folder(options.data) if options.data is not None else tasks.digits(options.seed)
    if options.out is not None:
        report.make_folder(options.out)
    optimizer = gc.SGD(lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    module = compile_net(
        options.model, channels=task.channels, classes=task.classes, batch=options.batch, optimizer=optimizer,
        seed=options.seed, threads=options.threads, tune=options.tune,
    )  # fmt: skip
    trainer = Trainer(
        module, task.train, task.test,
        epochs=options.epochs, lr=_schedule(options), seed=options.seed, checkpoint=options.checkpoint,
        checkpoint_every=options.checkpoint_every or "epoch", progress=not options.quiet,
    )  # fmt: skip
    if not options.quiet:
        print(f"{module!r}, {len(task.train):,} training and {len(task.test):,} test images", flush=True)
    try:
        history = trainer.fit()
    except KeyboardInterrupt as interrupt:
        if options.checkpoint is not None and not getattr(interrupt, "__notes__", []):
            interrupt.add_note(f"{options.checkpoint} holds the state; --resume goes on from there")
        raise
    loss, metrics = evaluate(module, task.test)
    print(f"test loss {loss:.4f}, test accuracy {metrics['accuracy']:.2%} of {len(task.test):,} images")
    if options.out is not None:
        paths = report.write_results(module, history, options.out)
        print("written " + ", ".join(map(str, paths)))


def _schedule(options: argparse.Namespace) -> Schedule:
    if options.schedule == "constant" or options.epochs < 2:
        return Constant(options.lr)
    return Warmup(Cosine(options.lr, options.epochs - 1), 1)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises: CheckpointError, RangeError.
    """
    if options.checkpoint is None:
        if options.resume or options.checkpoint_every is not None:
            raise CheckpointError("--resume and --checkpoint-every need --checkpoint FILE")
    elif options.checkpoint.exists() and not options.resume:
        raise CheckpointError(
            f"{options.checkpoint} exists: --resume goes on from there; delete it to start anew"
        )
    if options.checkpoint_every is not None and options.checkpoint_every < 1:
        raise RangeError(f"--checkpoint-every: expected at least 1 step, got {options.checkpoint_every}")
