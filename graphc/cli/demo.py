"""``graphc demo``: trains a LeNet on handwritten digits and shows what was made."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import graphc as gc
from graphc.cli import report, tasks
from graphc.cli.nets import compile_net
from graphc_runtime import History, Trainer, evaluate
from graphc_runtime.schedules import Cosine, Warmup

NAME = "demo"
SUMMARY = "train a LeNet on handwritten digits, in seconds"
DESCRIPTION = """\
Compiles a LeNet to C, trains it on the 8 x 8 digits that come with graphc, and shows the result: the test
accuracy, the time per step, some predictions, the curves, and the generated C."""
EXAMPLES = "example:\n  graphc demo --out my-demo"

EPOCHS = 6
_SHOWN = 4  # test images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, default=Path("graphc-demo"), metavar="FOLDER",
        help="where curves, weights and generated C are written (default: graphc-demo)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0, help="of weights, split and order (default: 0)")
    parser.add_argument("--threads", type=int, help="default: one for each usable processor")


def train(
    epochs: int = EPOCHS, seed: int = 0, threads: int | None = None, progress: bool = True
) -> tuple[gc.Module, tasks.Task, History]:
    """Return the demo's trained module, its data and its history."""
    task = tasks.digits(seed)
    module = compile_net("lenet", classes=task.classes, seed=seed, threads=threads)
    # One epoch of warm-up, then half a cosine over the others.
    schedule = Warmup(Cosine(0.05, max(epochs - 1, 1)), 1)
    trainer = Trainer(module, task.train, task.test, epochs=epochs, lr=schedule, seed=seed, progress=progress)
    return module, task, trainer.fit()


def run(options: argparse.Namespace) -> None:
    """Train, then print and write everything."""
    report.require_extras("graphc demo")
    report.make_folder(options.out)
    began = time.perf_counter()
    print("Compiling a LeNet to C and training it on handwritten digits ...", flush=True)
    module, task, history = train(options.epochs, options.seed, options.threads)
    seconds = time.perf_counter() - began
    _, metrics = evaluate(module, task.test)
    paths = report.write_results(module, history, options.out)
    source = next(path for path in paths if path.suffix == ".c")

    print(f"\nThe first kernel of {source}:\n")
    print(report.first_kernel(module.source[source.name], 24))
    print(f"    ... ({len(module.source[source.name].splitlines())} lines in all)\n")
    print(report.show_predictions(module, task, range(_SHOWN)))
    print(f"\ntest accuracy  {metrics['accuracy']:.2%} of {len(task.test)} digits that it had not seen")
    step = sum(record.milliseconds_per_step for record in history) / len(history)
    print(f"time per step  {step:.2f} ms for {module.batch} images, {module.threads} threads")
    print(f"time in all    {seconds:.1f} s, the C compiler included")
    print("written        " + "\n               ".join(map(str, paths)))
