"""The trainer: orders, partial batches, and runs that end with the same bits however often they stop.

Run as a program, this file is the training that the SIGKILL test kills.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphc_runtime.checkpoint import load_state, save_state
from graphc_runtime.data import Dataset, shuffled_order
from graphc_runtime.errors import CheckpointError, RangeError, ShapeError
from graphc_runtime.schedules import Cosine, Warmup
from graphc_runtime.trainer import History, TrainableModule, Trainer, evaluate

FEATURES, CLASSES = 6, 3
# A child process finds what this one has on its path, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class FakeResult(float):
    """The mean loss of a mini-batch, with its metrics."""

    metrics: dict[str, float]

    def __new__(cls, loss: float, metrics: dict[str, float]) -> FakeResult:
        self = super().__new__(cls, loss)
        self.metrics = metrics
        return self


class FakeModule:
    """Softmax regression with momentum and a counter-based dropout, in the shape of a compiled module."""

    def __init__(self, batch: int = 8, fingerprint: str = "net-1", seed: int = 5) -> None:
        self.batch = batch
        self.fingerprint = fingerprint
        self.threads = 1
        self.seen: list[npt.NDArray[Any]] = []
        self.rates: list[float | None] = []
        self.before_step: Callable[[int], None] = lambda step: None
        self.after_step: Callable[[int], None] = lambda step: None
        self.on_evaluate: Callable[[], None] = lambda: None
        generator = np.random.default_rng(seed)
        self._state: dict[str, npt.NDArray[Any]] = {
            "fc.weight": generator.normal(size=(CLASSES, FEATURES)).astype(np.float32),
            "fc.velocity": np.zeros((CLASSES, FEATURES), np.float32),
            "step": np.array(0, np.int64),
            "seed": np.array(seed, np.uint64),
        }

    @property
    def step(self) -> int:
        return int(self._state["step"])

    def _forward(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], FakeResult]:
        logits = x @ self._state["fc.weight"].T
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss = -log_probabilities[np.arange(len(y)), y].mean()
        accuracy = float((logits.argmax(axis=1) == y).mean())
        return np.exp(log_probabilities), FakeResult(float(loss), {"accuracy": accuracy})

    def train_step(self, *, lr: float | None = None, **inputs: npt.NDArray[Any]) -> FakeResult:
        self.before_step(self.step)
        x, y = inputs["x"], inputs["y"]
        assert 1 <= len(x) == len(y) <= self.batch
        self.seen.append(y.copy() if y.ndim == 1 else y)
        self.rates.append(lr)
        mask = np.random.Philox(key=np.array([self._state["seed"], self.step], np.uint64)).random_raw(x.size)
        x = x * (mask.reshape(x.shape) % 4 != 0).astype(np.float32)
        probabilities, result = self._forward(x, y)
        probabilities[np.arange(len(y)), y] -= 1
        gradient = (probabilities.T @ x / np.float32(len(y))).astype(np.float32)
        velocity = np.float32(0.9) * self._state["fc.velocity"] + gradient
        self._state["fc.velocity"] = velocity
        self._state["fc.weight"] = self._state["fc.weight"] - np.float32(lr or 0.0) * velocity
        self._state["step"] = self._state["step"] + 1
        self.after_step(self.step)
        return result

    def evaluate(self, **inputs: npt.NDArray[Any]) -> FakeResult:
        self.on_evaluate()
        return self._forward(inputs["x"], inputs["y"])[1]

    def predict(self, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        return {"logits": inputs["x"] @ self._state["fc.weight"].T}

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, npt.NDArray[Any]]) -> None:
        if state.keys() != self._state.keys():
            raise CheckpointError(f"tensors differ: {state.keys() ^ self._state.keys()}")
        self._state = dict(state)


def arrays(count: int = 45, seed: int = 1) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, count).astype(np.int32)
    x = generator.normal(size=(count, FEATURES)).astype(np.float32)
    x[np.arange(count), y] += 2
    return x, y


def data(count: int = 45, seed: int = 1) -> Dataset:
    x, y = arrays(count, seed)
    return Dataset(x=x, y=y)


def trainer(module: TrainableModule, train: Dataset | None = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "epochs": 4,
        "lr": Warmup(Cosine(0.1, 3), 1),
        "seed": 3,
        "progress": False,
        "validation": data(20, seed=2),
    }
    return Trainer(module, data() if train is None else train, **(defaults | options))


def timeless(history: History) -> list[str]:
    """Return what must be equal between equal runs, NaN included: all but the times, which vary."""
    return [repr(dataclasses.replace(e, seconds=0.0, milliseconds_per_step=0.0)) for e in history]


def bits(module: FakeModule) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in module.state_dict().items()}


class Stop(Exception):  # noqa: N818 (it is no error)
    """A crash at a chosen step."""


def stop_at(step: int, error: type[BaseException] = Stop) -> Callable[[int], None]:
    def check(now: int) -> None:
        if now == step:
            raise error

    return check


def test_a_run_learns_and_tells_its_history() -> None:
    module = FakeModule()
    seen: list[int] = []
    history = trainer(module, epochs=6, on_epoch=lambda record: seen.append(record.epoch)).fit()
    assert (len(history), seen, module.step) == (6, [1, 2, 3, 4, 5, 6], 36)
    assert history[-1].validation_metrics["accuracy"] > 0.7
    assert history[-1].loss < history[0].loss
    assert [e.lr for e in history] == [Warmup(Cosine(0.1, 3), 1)(e) for e in range(6)]
    assert all(e.seconds >= e.milliseconds_per_step * 6 / 1e3 > 0 for e in history)
    assert evaluate(module, data(20, seed=2)) == (
        history[-1].validation_loss,
        history[-1].validation_metrics,
    )


def test_every_step_gets_the_rate_of_its_moment() -> None:
    module = FakeModule()
    schedule = Warmup(Cosine(0.1, 3), 1)
    trainer(module).fit()
    assert module.rates == [schedule(epoch + step / 6) for epoch in range(4) for step in range(6)]


def test_an_epoch_visits_every_example_once_in_the_order_of_its_number() -> None:
    module = FakeModule()
    x, _ = arrays()
    y = np.arange(45, dtype=np.int32)
    module._forward = (  # type: ignore[method-assign]  # the labels here are row numbers, no classes
        lambda x, y: (np.zeros((len(y), 45), np.float32), FakeResult(0.0, {}))
    )
    module._state["fc.weight"] = module._state["fc.velocity"] = np.zeros((45, FEATURES), np.float32)
    trainer(module, Dataset(x=x, y=y), epochs=2, validation=None).fit()
    assert [len(part) for part in module.seen] == [8, 8, 8, 8, 8, 5] * 2
    for epoch in (0, 1):
        visited = np.concatenate(module.seen[6 * epoch : 6 * epoch + 6])
        np.testing.assert_array_equal(visited, shuffled_order(45, 3, epoch))


def test_batch_size_partial_batch_and_order_can_be_chosen() -> None:
    _, y = arrays()
    module = FakeModule()
    trainer(module, epochs=1, batch=7, shuffle=False, drop_last=True).fit()
    assert [len(part) for part in module.seen] == [7] * 6
    np.testing.assert_array_equal(np.concatenate(module.seen), y[:42])
    module = FakeModule(batch=64)
    trainer(module, epochs=1).fit()
    assert [len(part) for part in module.seen] == [45]


def test_means_weigh_the_partial_batch_by_its_size() -> None:
    module = FakeModule()
    results: list[tuple[float, int]] = []
    step = module.train_step

    def spy(*, lr: float | None = None, **inputs: npt.NDArray[Any]) -> FakeResult:
        result = step(lr=lr, **inputs)
        results.append((float(result), len(inputs["y"])))
        return result

    module.train_step = spy  # type: ignore[method-assign]  # to see each mini-batch's loss
    history = trainer(module, epochs=1).fit()
    assert history[0].loss == pytest.approx(sum(loss * n for loss, n in results) / 45, rel=1e-14)
    x, y = arrays(20, seed=2)
    whole = module.evaluate(x=x, y=y)
    assert history[0].validation_loss == pytest.approx(float(whole), rel=1e-6)
    assert history[0].validation_metrics["accuracy"] == pytest.approx(whole.metrics["accuracy"])


def uninterrupted(**options: Any) -> tuple[dict[str, bytes], list[str]]:
    module = FakeModule()
    history = trainer(module, **options).fit()
    return bits(module), timeless(history)


@pytest.mark.parametrize("every", ["epoch", 1, 4, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_crashed_at_random_steps_ends_with_the_same_bits(
    tmp_path: Path, every: Any, shuffle: bool
) -> None:
    expected = uninterrupted(shuffle=shuffle)
    generator = np.random.default_rng(11)
    for attempt in range(6):
        path = tmp_path / f"{attempt}.safetensors"
        options = {"checkpoint": path, "checkpoint_every": every, "shuffle": shuffle}
        for step in sorted(generator.choice(24, size=3, replace=False)):
            module = FakeModule(seed=100 + attempt)  # fresh weights, which the checkpoint must replace
            if not path.exists():
                module = FakeModule()
            hook = stop_at(int(step))
            if generator.random() < 0.5:
                module.before_step = hook
            else:
                module.after_step = hook
            with pytest.raises(Stop):
                trainer(module, **options).fit()
            if not path.exists():
                assert step <= (6 if every == "epoch" else every)
        module = FakeModule()
        history = trainer(module, **options).fit()
        assert (bits(module), timeless(history)) == expected


def test_a_finished_run_resumes_to_its_history_and_can_be_prolonged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = FakeModule()
    history = trainer(first, checkpoint=path, epochs=2).fit()
    again = FakeModule(seed=9)
    assert trainer(again, checkpoint=path, epochs=2).fit() == history
    assert (bits(again), again.seen) == (bits(first), [])
    longer = FakeModule(seed=9)
    prolonged = trainer(longer, checkpoint=path, epochs=4).fit()
    assert (bits(longer), timeless(prolonged)) == uninterrupted()


def test_a_checkpoint_is_also_a_file_of_the_tensors(tmp_path: Path) -> None:
    module = FakeModule()
    trainer(module, checkpoint=tmp_path / "run").fit()
    other = FakeModule(seed=9)
    other.load_state_dict(load_state(tmp_path / "run")[0])
    assert bits(other) == bits(module)


def test_without_resume_the_run_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer(FakeModule(), checkpoint=path, seed=8).fit()
    module = FakeModule()
    history = trainer(module, checkpoint=path, resume=False).fit()
    assert (bits(module), timeless(history)) == uninterrupted()


@pytest.mark.parametrize("step", [1, 5, 6, 7, 23, 24])
@pytest.mark.parametrize("every", ["epoch", 6, 1000])
def test_ctrl_c_in_a_step_saves_after_it_and_the_run_ends_with_the_same_bits(
    tmp_path: Path, step: int, every: Any
) -> None:
    path = tmp_path / "run"
    module = FakeModule()
    # The signal comes when the module is updated and the trainer's sums are not.
    module.after_step = lambda now: os.kill(os.getpid(), signal.SIGINT) if now == step else None
    with pytest.raises(KeyboardInterrupt):
        trainer(module, checkpoint=path, checkpoint_every=every).fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert module.step == step
    resumed = FakeModule(seed=9)
    history = trainer(resumed, checkpoint=path, checkpoint_every=every).fit()
    assert (bits(resumed), timeless(history)) == uninterrupted()
    assert len(resumed.seen) == 24 - step


def test_ctrl_c_in_the_validation_repeats_it_and_no_step(tmp_path: Path) -> None:
    path = tmp_path / "run"
    module = FakeModule()
    module.on_evaluate = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(module, checkpoint=path).fit()
    assert module.step == 6
    resumed = FakeModule(seed=9)
    history = trainer(resumed, checkpoint=path).fit()
    assert (bits(resumed), timeless(history)) == uninterrupted()
    assert len(resumed.seen) == 18


def test_ctrl_c_while_the_last_checkpoint_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"

    def save(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save_state(*arguments)

    monkeypatch.setattr("graphc_runtime.trainer.save_state", save)
    with pytest.raises(KeyboardInterrupt):
        trainer(FakeModule(), epochs=1, checkpoint=path, checkpoint_every=1000).fit()
    monkeypatch.undo()
    assert len(trainer(FakeModule(), epochs=1, checkpoint=path, checkpoint_every=1000).fit()) == 1


def test_ctrl_c_before_the_first_step_spares_an_older_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(b"precious")
    module = FakeModule()
    module.before_step = stop_at(0, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer(module, checkpoint=path, resume=False).fit()
    assert path.read_bytes() == b"precious"


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    module = FakeModule()

    def twice(now: int) -> None:
        if now == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal did not stop the run")

    module.after_step = twice
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer(module, checkpoint=tmp_path / "run").fit()
    # The weights are a step ahead of the sums: nothing was saved, and the message says so.
    assert not (tmp_path / "run").exists()
    assert "within a step" in caught.value.__notes__[0]


@pytest.mark.parametrize("where", ["before", "callback"])
def test_a_keyboard_interrupt_from_elsewhere_saves_too(tmp_path: Path, where: str) -> None:
    path = tmp_path / "run"
    module = FakeModule()
    options: dict[str, Any] = {"checkpoint": path, "checkpoint_every": 1000}
    if where == "before":
        module.before_step = stop_at(9, KeyboardInterrupt)
    else:

        def interrupt(record: object) -> None:
            raise KeyboardInterrupt

        options["on_epoch"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer(module, **options).fit()
    resumed = FakeModule(seed=9)
    history = trainer(resumed, checkpoint=path).fit()
    assert (bits(resumed), timeless(history)) == uninterrupted()
    assert len(resumed.seen) == (15 if where == "before" else 18)


def test_a_program_with_its_own_handler_keeps_it() -> None:
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda signum, frame: caught.append(signum))
    try:
        module = FakeModule()
        module.after_step = lambda now: os.kill(os.getpid(), signal.SIGINT) if now == 3 else None
        assert len(trainer(module).fit()) == 4
        assert caught == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_run_in_another_thread_is_the_same_run() -> None:
    module = FakeModule()
    histories: list[History] = []
    thread = threading.Thread(target=lambda: histories.append(trainer(module).fit()))
    thread.start()
    thread.join()
    assert (bits(module), timeless(histories[0])) == uninterrupted()


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    path, done = tmp_path / "run", tmp_path / "done"
    command = [sys.executable, __file__, str(path), str(done)]
    generator = np.random.default_rng(4)
    kills = 0
    for _ in range(200):
        process = subprocess.Popen(command, env=ENVIRONMENT)
        while not path.exists() and process.poll() is None:
            time.sleep(0.002)
        if kills < 8:
            began = path.read_bytes()
            while path.read_bytes() == began and process.poll() is None:  # until it has gone on from there
                time.sleep(0.001)
            time.sleep(generator.random() * 0.02)
            process.kill()
        kills += process.wait() == -signal.SIGKILL
        if done.exists():
            break
    assert kills >= 2
    expected = FakeModule()
    history = trainer(expected, epochs=12).fit()
    tensors, metadata = load_state(done)
    assert {name: array.tobytes() for name, array in tensors.items()} == bits(expected)
    assert metadata["history"] == "\n".join(timeless(history))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"module": FakeModule(fingerprint="net-2")}, "net is 'net-2' here and was 'net-1'"),
        ({"train": data(44)}, "examples is 44 here and was 45"),
        ({"batch": 5}, "batch is 5 here and was 8"),
        ({"seed": 4}, "seed is 4 here and was 3"),
        ({"shuffle": False}, "shuffle is False here and was True"),
        ({"drop_last": True}, "drop_last is True here and was False"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "run"
    trainer(FakeModule(), checkpoint=path, epochs=1).fit()
    module = change.pop("module", FakeModule(seed=9))
    before = bits(module)
    with pytest.raises(CheckpointError, match=f"belongs to another run: {named}"):
        trainer(module, checkpoint=path, **change).fit()
    assert bits(module) == before


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    module = FakeModule()
    save_state(path, module.state_dict())
    with pytest.raises(CheckpointError, match="no state of a training run"):
        trainer(module, checkpoint=path).fit()
    for text in ("{", "[]", "{}", '{"format": 1, "run": {}, "cursor": {"history": 3}}'):
        save_state(path, module.state_dict(), {"graphc.trainer": text})
        with pytest.raises(CheckpointError, match="malformed"):
            trainer(module, checkpoint=path).fit()
    path.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="truncated"):
        trainer(module, checkpoint=path).fit()


def test_tensors_and_training_state_of_different_steps_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer(FakeModule(), checkpoint=path, epochs=1).fit()
    tensors, metadata = load_state(path)
    save_state(path, tensors | {"step": np.array(2, np.int64)}, metadata)
    with pytest.raises(CheckpointError, match="from step 2, its training state from step 6"):
        trainer(FakeModule(), checkpoint=path).fit()
    del tensors["step"]
    save_state(path, tensors, metadata)
    with pytest.raises(CheckpointError, match="step"):
        trainer(FakeModule(), checkpoint=path).fit()


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer(FakeModule(), checkpoint=path, epochs=1).fit()
    tensors, metadata = load_state(path)
    metadata["graphc.trainer"] = metadata["graphc.trainer"].replace('"format": 1', '"format": 2')
    save_state(path, tensors, metadata)
    with pytest.raises(CheckpointError, match="expected format 1, found 2"):
        trainer(FakeModule(), checkpoint=path).fit()


def test_a_nan_loss_is_shown_and_survives_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = arrays()
    x[10, 2] = np.nan
    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "checkpoint_every": 1, "progress": True}
    module = FakeModule()
    module.before_step = stop_at(15)
    with pytest.raises(Stop):
        trainer(module, Dataset(x=x, y=y), **options).fit()
    history = trainer(FakeModule(), Dataset(x=x, y=y), **options).fit()
    assert all(math.isnan(e.loss) for e in history)
    assert "loss nan" in capsys.readouterr().out
    whole = trainer(FakeModule(), Dataset(x=x, y=y)).fit()
    assert timeless(history) == timeless(whole)


def test_memory_mapped_data_trains_to_the_same_bits(tmp_path: Path) -> None:
    x, y = arrays()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    module = FakeModule()
    history = trainer(module, Dataset(x=mapped, y=y)).fit()
    assert (bits(module), timeless(history)) == uninterrupted()


def test_a_callback_can_end_the_run_and_the_checkpoint_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    module = FakeModule()
    history = trainer(module, checkpoint=path, on_epoch=lambda record: record.epoch == 2).fit()
    assert (len(history), module.step) == (2, 12)
    resumed = FakeModule(seed=9)
    assert timeless(trainer(resumed, checkpoint=path).fit()) == uninterrupted()[1]


def test_options_that_cannot_work_are_refused_at_once(tmp_path: Path) -> None:
    module = FakeModule()
    for batch in (0, 9):
        with pytest.raises(ShapeError, match="from 1 to 8"):
            trainer(module, batch=batch)
    cases: list[dict[str, Any]] = [
        {"epochs": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"checkpoint_every": 0},
        {"checkpoint_every": "step"},
        {"lr": -0.1},
        {"lr": math.nan},
        {"train": data(7), "drop_last": True},
    ]
    for options in cases:
        with pytest.raises(RangeError):
            trainer(module, **options)
    with pytest.raises(CheckpointError, match="does not exist"):
        trainer(module, checkpoint=tmp_path / "no" / "run")


def test_importing_the_runtime_needs_numpy_only() -> None:
    code = (
        "import sys\n"
        "import graphc_runtime.trainer, graphc_runtime.curves, graphc_runtime.data\n"
        "unwanted = {'safetensors', 'tqdm', 'matplotlib', 'sympy', 'graphc', 'torch'} & sys.modules.keys()\n"
        "sys.exit(str(unwanted) if unwanted else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)


def main(path: str, done: str) -> None:
    """Train with frequent checkpoints, slowly enough to be killed, and write the result to ``done``."""
    module = FakeModule()
    module.after_step = lambda step: time.sleep(0.005)
    history = trainer(module, epochs=12, checkpoint=path, checkpoint_every=2).fit()
    save_state(done, module.state_dict(), {"history": "\n".join(timeless(history))})


if __name__ == "__main__":
    main(*sys.argv[1:])
