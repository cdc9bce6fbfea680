"""Trainer and compiled modules together: accuracy, and runs that end with the same bits however they stop.

Run as a program, this file is the training that the SIGKILL test kills.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.cli import demo
from graphc_runtime import Trainer, evaluate
from graphc_runtime.checkpoint import load_state, save_state
from graphc_runtime.data import Dataset, Images, split_digits
from graphc_runtime.errors import CheckpointError
from graphc_runtime.schedules import Cosine, Warmup

ROOT = Path(__file__).resolve().parent.parent
BATCH, EXAMPLES, EPOCHS = 32, 150, 3  # the last of 5 mini-batches has 22 examples
STEPS = -(-EXAMPLES // BATCH) * EPOCHS
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def make_module(seed: int = 5, width: int = 24, threads: int = 1) -> gc.Module:
    """Return a net with everything that a resumed run must find again: momentum, statistics, dropout."""
    x = gc.input("x", ("N", 1, 8, 8))
    y = gc.input("y", ("N",), dtype="int32")
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 6, kernel=3, name="conv"), name="norm"))
    h = gc.nn.dropout(gc.flatten(gc.nn.max_pool2d(h, 2)), 0.3)
    logits = gc.nn.linear(gc.relu(gc.nn.linear(h, width, name="fc1")), 10, name="fc2")
    module = gc.compile(
        {"logits": logits},
        loss=gc.losses.cross_entropy(logits, y),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)},
        optimizer=gc.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3),
        batch=BATCH,
        seed=seed,
        name="resumed",
    )
    module.threads = threads
    return module


@pytest.fixture(scope="module")
def module() -> gc.Module:
    return make_module()


@pytest.fixture(scope="module")
def start(module: gc.Module) -> dict[str, np.ndarray]:
    """The state before the first step, to begin again from without compiling again."""
    return module.state_dict()


def data(count: int = EXAMPLES) -> Dataset:
    parts = split_digits()
    images = Images(8, parts.maximum)
    return Dataset(x=parts.train_images[:count], y=parts.train_labels[:count], transform={"x": images})


def trainer(module: gc.Module, train: Dataset | None = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "epochs": EPOCHS, "lr": Warmup(Cosine(0.05, EPOCHS - 1), 1), "seed": 11, "progress": False,
        "validation": data(50),
    }  # fmt: skip
    return Trainer(module, train or data(), **(defaults | options))


Outcome = tuple[dict[str, bytes], list[str]]  # the state's bits, and the history but for the times


def bits(tensors: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in tensors.items()}


def timeless(history: Any) -> list[str]:
    return [repr(dataclasses.replace(e, seconds=0.0, milliseconds_per_step=0.0)) for e in history]


@pytest.fixture(scope="module")
def uninterrupted(module: gc.Module, start: dict[str, np.ndarray]) -> Outcome:
    module.load_state_dict(start)
    history = trainer(module).fit()
    assert module.step == STEPS
    return bits(module.state_dict()), timeless(history)


class Crash(Exception):  # noqa: N818 (an accident, no error of graphc's)
    """What stops a run between two steps."""


def crash_after(module: gc.Module, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the module's next run stop once it has done ``step`` steps."""
    original = type(module).train_step

    def train_step(**inputs: Any) -> Any:
        if module.step >= step:
            raise Crash
        return original(module, **inputs)

    monkeypatch.setattr(module, "train_step", train_step)


def test_the_demo_reaches_98_percent_on_the_digits_held_out() -> None:
    """The very run of ``graphc demo``; with a fixed seed it has the same bits each time."""
    module, task, history = demo.train(threads=1, progress=False)
    assert len(task.test) == 359
    loss, metrics = evaluate(module, task.test)
    assert metrics["accuracy"] >= 0.98
    assert (loss, metrics) == (history[-1].validation_loss, history[-1].validation_metrics)
    # The images that are held out are no copies, moved or not, of those to train with.
    train, test = (d.arrays["x"] for d in (task.train, task.test))
    known = {image.tobytes() for image in train}
    assert sum(image.tobytes() in known for image in test) == 0


def test_the_state_holds_all_that_a_run_needs(start: dict[str, np.ndarray]) -> None:
    weights = {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc1.weight", "fc1.bias"}
    weights |= {"fc2.weight", "fc2.bias"}
    velocities = {f"optimizer.velocity.{name}" for name in weights}
    others = {"norm.running_mean", "norm.running_var", "graphc.step", "graphc.seed"}
    assert start.keys() == weights | velocities | others


@pytest.mark.parametrize(
    "stop", np.random.default_rng(8).choice(np.arange(1, STEPS), 4, replace=False).tolist()
)
def test_a_run_stopped_at_a_random_step_ends_with_the_same_bits(
    stop: int,
    module: gc.Module,
    start: dict[str, np.ndarray],
    uninterrupted: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run.safetensors"
    module.load_state_dict(start)
    with monkeypatch.context() as patch:
        crash_after(module, patch, stop)
        with pytest.raises(Crash):
            trainer(module, checkpoint=path, checkpoint_every=1).fit()
    # Nothing of the stopped run may be left in the module that goes on.
    module.load_state_dict(start)
    module.train_step(lr=1.0, **next(data().batches(BATCH)))
    history = trainer(module, checkpoint=path).fit()
    assert (bits(module.state_dict()), timeless(history)) == uninterrupted
    tensors, _ = load_state(path)
    assert bits(tensors) == uninterrupted[0]


def test_a_run_killed_again_and_again_ends_with_the_same_bits(uninterrupted: Outcome, tmp_path: Path) -> None:
    """SIGKILL at random moments, that of writing the checkpoint included; each part is a process of its own.

    The processes hash strings differently, so equal bits also say that no order of a set gets into the code.
    """
    path, done = tmp_path / "run.safetensors", tmp_path / "done.safetensors"
    generator = np.random.default_rng(3)
    kills = 0
    for attempt in range(40):
        environment = {**ENVIRONMENT, "PYTHONHASHSEED": str(attempt)}
        process = subprocess.Popen([sys.executable, __file__, str(path), str(done)], env=environment)
        if kills < 4:
            before = path.read_bytes() if path.exists() else None
            while process.poll() is None and (path.read_bytes() if path.exists() else None) == before:
                time.sleep(0.002)
            time.sleep(generator.random() * 0.05)
            process.kill()
        kills += process.wait() == -signal.SIGKILL
        if done.exists():
            break
    assert kills >= 2
    tensors, metadata = load_state(done)
    assert (bits(tensors), metadata["history"].split("\n")) == uninterrupted


def test_ctrl_c_saves_the_state_that_the_run_goes_on_from(
    module: gc.Module,
    start: dict[str, np.ndarray],
    uninterrupted: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run.safetensors"
    module.load_state_dict(start)
    original = type(module).train_step

    def interrupted(**inputs: Any) -> Any:
        if module.step == 7:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of a step, as far as the trainer can tell
        return original(module, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer(module, checkpoint=path).fit()
    assert load_state(path)[0]["graphc.step"].item() == 8
    module.load_state_dict(start)
    history = trainer(module, checkpoint=path).fit()
    assert (bits(module.state_dict()), timeless(history)) == uninterrupted


def test_threads_do_not_change_a_bit(
    module: gc.Module, start: dict[str, np.ndarray], uninterrupted: Outcome
) -> None:
    for threads in (2, 4):
        module.load_state_dict(start)
        module.threads = threads
        history = trainer(module).fit()
        module.threads = 1
        assert (bits(module.state_dict()), timeless(history)) == uninterrupted


def test_memory_mapped_data_gives_the_same_bits(
    module: gc.Module,
    start: dict[str, np.ndarray],
    uninterrupted: Outcome,
    tmp_path: Path,
) -> None:
    for name, array in data().arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))
    assert isinstance(x, np.memmap)
    module.load_state_dict(start)
    history = trainer(module, Dataset(x=x, y=y, transform={"x": Images(8, 16.0)})).fit()
    assert (bits(module.state_dict()), timeless(history)) == uninterrupted


def test_the_last_batch_counts_by_its_size(module: gc.Module, start: dict[str, np.ndarray]) -> None:
    """With a rate of 0 the mean over mini-batches of 32 and 22 is the mean over examples, for any order."""
    module.load_state_dict(start)
    x, y = Images(8, 16.0)(data().arrays["x"], None), data().arrays["y"]
    whole = Dataset(x=x, y=y)
    one_by_one = [float(module.evaluate(x=x[k : k + 1], y=y[k : k + 1])) for k in range(EXAMPLES)]
    history = trainer(module, whole, validation=whole, lr=0.0, epochs=1).fit()
    assert module.step == 5
    # float32 losses of single examples against float32 means over a batch.
    module.load_state_dict(start)
    assert evaluate(module, whole)[0] == pytest.approx(np.mean(one_by_one), rel=2e-6)
    assert history[0].validation_loss is not None


def test_a_checkpoint_of_another_net_is_refused(
    module: gc.Module, start: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    other = make_module(width=25)
    trainer(other, checkpoint=path, epochs=1).fit()
    module.load_state_dict(start)
    before = bits(module.state_dict())
    with pytest.raises(CheckpointError, match="belongs to another run: net is"):
        trainer(module, checkpoint=path).fit()
    with pytest.raises(CheckpointError, match=r"fc1.weight: expected shape \(24, 54\), got \(25, 54\)"):
        module.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        trainer(module, checkpoint=path).fit()
    with pytest.raises(CheckpointError, match="truncated"):
        module.load(path)
    assert bits(module.state_dict()) == before


def test_a_net_that_moves_within_its_file_is_the_same_net(module: gc.Module, tmp_path: Path) -> None:
    """Otherwise a comment added to a script would make its checkpoints useless."""
    text = Path(__file__).read_text(encoding="utf-8")
    moved = tmp_path / "another_name.py"
    moved.write_text(text.replace("\ndef make_module", "\n\n\ndef make_module"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("moved_net", moved)
    assert spec is not None
    assert spec.loader is not None
    namespace = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(namespace)
    other = namespace.make_module()
    assert other.source != module.source  # its comments name the new lines
    assert other.fingerprint == module.fingerprint
    assert make_module(width=25).fingerprint != module.fingerprint


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example_lenet", ROOT / "examples" / "lenet.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(["--epochs", "6"]) > 0.85  # six epochs of 23 steps; ten and more reach 0.96
    assert "Generated by graphc" in capsys.readouterr().out


def main(path: str, done: str) -> None:
    """Train with frequent checkpoints, slowly enough to be killed, and write the result to ``done``."""
    module = make_module()
    original = module.train_step

    def slowly(**inputs: Any) -> Any:
        time.sleep(0.02)
        return original(**inputs)

    module.train_step = slowly  # type: ignore[method-assign]
    history = trainer(module, checkpoint=path, checkpoint_every=2).fit()
    save_state(done, module.state_dict(), {"history": "\n".join(timeless(history))})


if __name__ == "__main__":
    main(*sys.argv[1:])
