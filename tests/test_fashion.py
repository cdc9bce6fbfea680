"""Fashion-MNIST, where its files are: the folder of Debian's package, or the one in $GRAPHC_FASHION_MNIST."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from graphc.cli import tasks
from graphc.cli.nets import compile_net
from graphc_runtime import Trainer, evaluate
from graphc_runtime.data import read_idx
from graphc_runtime.schedules import Cosine, Warmup

FOLDER = Path(os.environ.get("GRAPHC_FASHION_MNIST") or "/usr/share/datasets/fashion-mnist")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER.is_dir(),
        reason="no Fashion-MNIST: neither Debian's dataset-fashion-mnist nor $GRAPHC_FASHION_MNIST",
    ),
]


def test_lenet_reaches_89_percent_in_five_epochs() -> None:
    """A fixed seed gives the same bits, so the accuracy is one number per machine: about 0.90."""
    task = tasks.image_folder(FOLDER)
    assert (len(task.train), len(task.test), task.classes) == (60_000, 10_000, 10)
    module = compile_net("lenet", classes=task.classes, threads=2)
    trainer = Trainer(module, task.train, epochs=5, lr=Warmup(Cosine(0.05, 4), 1), progress=False)
    history = trainer.fit()
    assert module.step == 5 * 938  # 60,000 images are 937 batches of 64 and one of 32
    _, metrics = evaluate(module, task.test)
    assert metrics["accuracy"] >= 0.89
    assert history[-1].metrics["accuracy"] > history[0].metrics["accuracy"]

    # What evaluate says is what predict gives, image by image.
    labels = read_idx(next(FOLDER.glob("t10k-labels*")))
    predicted = np.concatenate(
        [module.predict(x=batch["x"])["logits"].argmax(axis=1) for batch in task.test.batches(64)]
    )
    assert float((predicted == labels).mean()) == pytest.approx(metrics["accuracy"], abs=1e-6)
