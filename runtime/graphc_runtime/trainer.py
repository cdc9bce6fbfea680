"""Epochs over a data set: shuffling, schedules, metrics, validation, checkpoints and exact resumption.

A run is a pure function of the module's state, the data, the options and the seed. All that it carries
from step to step is in its ``_Cursor``, which a checkpoint stores beside the module's tensors; so a run that
was stopped anywhere and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from graphc_runtime.ahead import staged_ahead
from graphc_runtime.checkpoint import load_state, save_state
from graphc_runtime.data.dataset import Array, Dataset, shuffled_order
from graphc_runtime.errors import CheckpointError, RangeError, ShapeError
from graphc_runtime.progress import Display, EpochRecord, History, RunningMeans, StepResult, make_display
from graphc_runtime.schedules import Schedule, as_schedule

__all__ = ["EpochRecord", "History", "StepResult", "TrainableModule", "Trainer", "evaluate"]

_METADATA_KEY = "graphc.trainer"
_FORMAT = 1


class TrainableModule(Protocol):
    """What the trainer asks of a compiled module."""

    @property
    def batch(self) -> int:
        """The largest batch that the module was compiled for."""
        ...

    @property
    def step(self) -> int:
        """How many training steps its state has seen."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the graph, equal for equal nets."""
        ...

    @property
    def threads(self) -> int:
        """How many threads it computes with; its results do not depend on it."""
        ...

    def train_step(self, *, lr: float | None = None, **inputs: Array) -> StepResult:
        """Update the weights with one mini-batch and return its mean loss and metrics."""
        ...

    def evaluate(self, **inputs: Array) -> StepResult:
        """Return mean loss and metrics of one mini-batch in inference mode, changing nothing."""
        ...

    def state_dict(self) -> Mapping[str, Array]:
        """Return every tensor that the next step depends on: weights, velocities, statistics, counters."""
        ...

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Set all of it; a CheckpointError that lists each missing, unexpected or misshapen tensor else."""
        ...


class Trainer:
    """Trains ``module`` for a number of epochs; ``fit`` does the work.

    ``lr`` is a number or a schedule. ``batch`` defaults to the largest that the module takes; the last
    mini-batch of an epoch is smaller where the data does not divide, unless ``drop_last``. Epoch e is visited
    in an order that depends on ``seed`` and e only.

    With a ``checkpoint`` path, the state is saved after each epoch, or every so many steps, at the end, and
    when Ctrl-C stops the run; ``fit`` resumes from the file if it exists (``resume=False`` starts anew and
    replaces it). The file is also an ordinary file of the module's tensors.

    For a module on a device, the next mini-batch is read and copied there while one is computed
    (``Module.stage``), which changes no result.

    ``on_epoch`` is called with the record of each epoch after its checkpoint; returning True ends the run.

    Raises: ShapeError or RangeError for a batch or option that cannot work, CheckpointError where the
    checkpoint's folder does not exist.
    """

    def __init__(
        self,
        module: TrainableModule,
        train: Dataset,
        validation: Dataset | None = None,
        *,
        epochs: int,
        lr: float | Schedule,
        batch: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: Literal["epoch"] | int = "epoch",
        resume: bool = True,
        progress: bool = True,
        on_epoch: Callable[[EpochRecord], bool | None] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.module = module
        self.train = train
        self.validation = validation
        self.epochs = epochs
        self.schedule = as_schedule(lr)
        self.batch = module.batch if batch is None else batch
        self.shuffle = shuffle
        self.seed = seed
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.resume = resume
        self.progress = progress
        self.on_epoch = on_epoch
        self.drop_last = drop_last
        self._check_options()
        self._steps = train.steps(self.batch, drop_last=drop_last)
        if self._steps == 0:
            raise RangeError(
                f"Trainer: drop_last leaves no mini-batch of {self.batch} from {len(train)} examples"
            )

    def fit(self) -> History:
        """Train until all epochs are done, from the checkpoint on if there is one, and return their history.

        A NaN loss does not stop the run. Ctrl-C stops it between two steps: the checkpoint is saved, then
        KeyboardInterrupt goes on to the caller. A second Ctrl-C stops at once.

        Raises: CheckpointError where the checkpoint belongs to another net, data set, batch size or seed.
        """
        display = make_display(self.progress, self.epochs, self._steps)
        # Nothing has happened yet at (0, 0): an early Ctrl-C leaves a file that this run will replace alone.
        cursor = self._resumed() or _Cursor(module_step=self.module.step, saved_at=(0, 0))
        with _deferred_interrupt() as raise_if_interrupted, display:
            try:
                stop = False
                while cursor.epoch < self.epochs and not stop:
                    record = self._run_epoch(cursor, display, raise_if_interrupted)
                    if self.checkpoint_every == "epoch":
                        self._save(cursor)
                    display.end(record)
                    stop = self.on_epoch is not None and self.on_epoch(record) is True
                    raise_if_interrupted()
                self._save(cursor)
            except KeyboardInterrupt as interrupt:
                self._save_interrupted(cursor, interrupt)
                raise
        return History(tuple(cursor.history))

    def _run_epoch(
        self, cursor: _Cursor, display: Display, raise_if_interrupted: Callable[[], None]
    ) -> EpochRecord:
        """Do the rest of the cursor's epoch, validation included, and move the cursor to the next."""
        order = shuffled_order(len(self.train), self.seed, cursor.epoch) if self.shuffle else None
        display.begin(cursor.epoch + 1, cursor.position)
        began = time.perf_counter()
        batches = self.train.batches(self.batch, order, start=cursor.position, drop_last=self.drop_last)
        with closing(staged_ahead(self.module, "train_step", batches)) as ahead:
            for inputs, count in ahead:
                lr = self.schedule(cursor.epoch + cursor.position / self._steps)
                result = self.module.train_step(lr=lr, **inputs)
                cursor.means.add(result, count)
                cursor.position += 1
                cursor.module_step = self.module.step
                cursor.train_seconds += time.perf_counter() - began
                display.step(cursor.means, lr, cursor.train_seconds / cursor.position)
                done = cursor.epoch * self._steps + cursor.position
                if self.checkpoint_every != "epoch" and done % self.checkpoint_every == 0:
                    self._save(cursor)
                raise_if_interrupted()
                began = time.perf_counter()
        validated = None
        began = time.perf_counter()
        if self.validation is not None:
            display.validate()
            validated = _means(self.module, self.validation, self.batch, raise_if_interrupted)
        record = EpochRecord(
            epoch=cursor.epoch + 1,
            loss=cursor.means.loss,
            metrics=cursor.means.metrics,
            validation_loss=None if validated is None else validated.loss,
            validation_metrics={} if validated is None else validated.metrics,
            lr=self.schedule(float(cursor.epoch)),
            seconds=cursor.train_seconds + (time.perf_counter() - began),
            milliseconds_per_step=cursor.train_seconds / self._steps * 1e3,
        )
        cursor.finish_epoch(record)
        return record

    def _save(self, cursor: _Cursor) -> None:
        """Write the checkpoint unless it holds this very state already."""
        place = (cursor.epoch, cursor.position)
        if self.checkpoint is None or cursor.saved_at == place:
            return
        stored = {"format": _FORMAT, "run": self._identity(), "cursor": cursor.as_json()}
        save_state(self.checkpoint, self.module.state_dict(), {_METADATA_KEY: json.dumps(stored)})
        cursor.saved_at = place

    def _save_interrupted(self, cursor: _Cursor, interrupt: KeyboardInterrupt) -> None:
        """Save what Ctrl-C found, provided that module and cursor agree on how far the run is."""
        if self.checkpoint is None:
            return
        if self.module.step == cursor.module_step:
            self._save(cursor)
        else:
            # Only where the interrupt could not be deferred: the weights are a step ahead of the sums.
            interrupt.add_note(f"stopped within a step: {self.checkpoint} was left as it was")

    def _resumed(self) -> _Cursor | None:
        """Return the stored cursor, the module's state being restored, or None where nothing is stored."""
        if self.checkpoint is None or not self.resume or not self.checkpoint.exists():
            return None
        tensors, metadata = load_state(self.checkpoint)
        if _METADATA_KEY not in metadata:
            raise CheckpointError(
                f"{self.checkpoint} holds tensors but no state of a training run; "
                "load it into the module, or pass resume=False to replace it"
            )
        try:
            stored = json.loads(metadata[_METADATA_KEY])
            found, version = dict(stored["run"]), stored["format"]
            cursor = _Cursor.from_json(stored["cursor"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.checkpoint}: its training state is malformed: {error!r}") from error
        if version != _FORMAT:
            raise CheckpointError(f"{self.checkpoint}: expected format {_FORMAT}, found {version}")
        differing = [
            f"{name} is {expected!r} here and was {found.get(name)!r}"
            for name, expected in self._identity().items()
            if found.get(name) != expected
        ]
        if differing:
            raise CheckpointError(
                f"{self.checkpoint} belongs to another run: {'; '.join(differing)}. "
                "Pass resume=False to replace it"
            )
        self.module.load_state_dict(tensors)
        if self.module.step != cursor.module_step:
            raise CheckpointError(
                f"{self.checkpoint}: its tensors are from step {self.module.step}, "
                f"its training state from step {cursor.module_step}"
            )
        cursor.saved_at = (cursor.epoch, cursor.position)
        return cursor

    def _identity(self) -> dict[str, object]:
        """Return what must not change between the parts of a run; its length and learning rate may."""
        return {
            "net": self.module.fingerprint,
            "examples": len(self.train),
            "batch": self.batch,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _check_options(self) -> None:
        if not 1 <= self.batch <= self.module.batch:
            raise ShapeError(
                f"Trainer: expected a batch from 1 to {self.module.batch}, the largest that the module "
                f"was compiled for, got {self.batch}"
            )
        if self.epochs < 1:
            raise RangeError(f"Trainer: expected at least 1 epoch, got {self.epochs}")
        if not 0 <= self.seed < 2**64:
            raise RangeError(f"Trainer: expected a seed from 0 to 2^64 - 1, got {self.seed}")
        every = self.checkpoint_every
        if every != "epoch" and not (isinstance(every, int) and every >= 1):
            raise RangeError(
                f"Trainer: expected checkpoint_every='epoch' or a number of steps, got {every!r}"
            )
        if self.checkpoint is not None and not self.checkpoint.absolute().parent.is_dir():
            raise CheckpointError(f"Trainer: the folder of the checkpoint {self.checkpoint} does not exist")


def evaluate(
    module: TrainableModule, data: Dataset, batch: int | None = None
) -> tuple[float, dict[str, float]]:
    """Return mean loss and mean metrics over ``data`` in inference mode, the last partial batch included."""
    means = _means(module, data, module.batch if batch is None else batch, lambda: None)
    return means.loss, means.metrics


def _means(
    module: TrainableModule, data: Dataset, batch: int, raise_if_interrupted: Callable[[], None]
) -> RunningMeans:
    means = RunningMeans()
    with closing(staged_ahead(module, "evaluate", data.batches(batch))) as ahead:
        for inputs, count in ahead:
            means.add(module.evaluate(**inputs), count)
            raise_if_interrupted()
    return means


@dataclasses.dataclass
class _Cursor:
    """Where a run is: ``position`` mini-batches into ``epoch`` (from 0), with all sums up to there."""

    epoch: int = 0
    position: int = 0
    module_step: int = 0
    train_seconds: float = 0.0
    means: RunningMeans = dataclasses.field(default_factory=RunningMeans)
    history: list[EpochRecord] = dataclasses.field(default_factory=list)
    # Not part of the state: the place that the checkpoint file is known to hold.
    saved_at: tuple[int, int] | None = None

    def finish_epoch(self, record: EpochRecord) -> None:
        """Stand at the beginning of the next epoch."""
        self.history.append(record)
        self.epoch, self.position, self.train_seconds, self.means = self.epoch + 1, 0, 0.0, RunningMeans()

    def as_json(self) -> dict[str, Any]:
        """Return the state in JSON's types. JSON writes a float64 so that it reads back to the same bits."""
        fields = dataclasses.asdict(self)
        del fields["saved_at"]
        return fields

    @staticmethod
    def from_json(fields: dict[str, Any]) -> _Cursor:
        """Return the cursor that ``as_json`` described; ValueError, TypeError or KeyError if none."""
        history = [EpochRecord(**record) for record in fields["history"]]
        return _Cursor(**{**fields, "means": RunningMeans(**fields["means"]), "history": history})


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Within the block, the first Ctrl-C waits until the yielded function is called, which then raises it.

    Without it a KeyboardInterrupt might come between the module's update and the trainer's bookkeeping. A
    program's own handler is left in place, and so is everything outside the main thread, which is the only
    one that signals reach.
    """
    pending = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal pending
        if pending:
            raise KeyboardInterrupt
        pending = True

    def raise_if_interrupted() -> None:
        if pending:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield raise_if_interrupted
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    raise_if_interrupted()  # it came after the last question
