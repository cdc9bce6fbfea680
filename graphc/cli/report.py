"""What the commands write and print about a trained module: curves, sources, predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import graphc as gc
from graphc.cli.tasks import Task
from graphc.errors import GraphcError
from graphc_runtime import History, plot_history
from graphc_runtime.data import Array

_INK = " .:-=+*#%@"
_CELL = 2  # characters are twice as high as wide
_LARGEST = 14  # rows of a picture: a 28 x 28 image is shown at half its size


def require_extras(command: str) -> None:
    """Refuse at the start what would fail at the end: the packages that training needs must be there.

    Raises: GraphcError naming what is missing.
    """
    missing = [name for name in ("matplotlib", "safetensors", "tqdm") if find_spec(name) is None]
    if missing:
        raise GraphcError(f"{command} needs {', '.join(missing)}: pip install 'graphc[train]'")


def make_folder(folder: Path) -> None:
    """Make the output folder.

    Raises: GraphcError where that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GraphcError(f"the output folder {folder} cannot be made: {error.strerror}") from error


def write_results(module: gc.Module, history: History, folder: Path) -> list[Path]:
    """Write curves, weights and generated sources into the folder and return their paths."""
    curves, weights = folder / "curves.png", folder / f"{module.name}.safetensors"
    plot_history(history, curves)
    module.save(weights)
    sources = [folder / name for name in module.source]
    for path in sources:
        path.write_text(module.source[path.name], encoding="utf-8")
    return [curves, weights, *sources]


def first_kernel(source: str, lines: int) -> str:
    """Return the beginning of the first kernel in a C source: its comment and ``lines`` lines at most."""
    text = source.splitlines()
    # A kernel's comment begins with a line that holds the name of its function and nothing else.
    begin = next((k for k, line in enumerate(text) if re.match(r"/\* \w+$", line)), 0)
    return "\n".join(text[begin:][:lines])


def show_predictions(module: gc.Module, task: Task, which: Sequence[int]) -> str:
    """Return test images side by side as characters, each above its predicted and its true label."""
    chosen = np.asarray(which)
    batch = next(task.test.batches(len(chosen), chosen))
    predicted = module.predict(x=batch["x"])["logits"].argmax(axis=1)
    pictures = [_picture(task.images[k], task.maximum) for k in which]
    width = max(len(pictures[0][0]), len("predicted 0, true 0"))
    captions = [
        f"predicted {p}, true {task.labels[k]}" + ("" if p == task.labels[k] else "  <-")
        for p, k in zip(predicted, which, strict=True)
    ]
    rows = [*zip(*pictures, strict=True), captions]
    return "\n".join("  ".join(cell.ljust(width) for cell in row).rstrip() for row in rows)


def _picture(image: Array, maximum: float) -> list[str]:
    """Return an image (h, w) as lines of characters, darker for more ink."""
    step = -(-max(image.shape) // _LARGEST)
    height, width = (extent // step * step for extent in image.shape)
    blocks = image[:height, :width].astype(np.float64).reshape(height // step, step, width // step, step)
    level = np.clip(blocks.mean(axis=(1, 3)) / maximum * len(_INK), 0, len(_INK) - 1).astype(int)
    return ["".join(_INK[value] * _CELL for value in row) for row in level]
