"""What is known about a training run (means, epochs, history) and how it is shown while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from graphc_runtime.errors import GraphcError, UnknownNameError

_REFRESH_SECONDS = 0.1  # how often the bar's numbers are formatted; a small net makes 10,000 steps a second


class StepResult(Protocol):
    """The mean loss of one mini-batch, a float, with the metrics that were asked for beside it."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The mean of each metric over the mini-batch."""
        ...

    def __float__(self) -> float:
        """Return the mean loss."""
        ...


@dataclass
class RunningMeans:
    """Loss and metrics summed over the examples seen so far; a mini-batch counts by its size.

    Numerics: float64 sums in the order of the mini-batches. A NaN stays one.
    """

    examples: int = 0
    loss_sum: float = 0.0
    metric_sums: dict[str, float] = field(default_factory=dict)

    def add(self, result: StepResult, examples: int) -> None:
        """Count ``result``, which is a mean over ``examples``."""
        self.examples += examples
        self.loss_sum += float(result) * examples
        for name, value in result.metrics.items():
            self.metric_sums[name] = self.metric_sums.get(name, 0.0) + float(value) * examples

    @property
    def loss(self) -> float:
        """The mean loss, NaN before the first example."""
        return self.loss_sum / self.examples if self.examples else float("nan")

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: value / self.examples for name, value in self.metric_sums.items()}


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Units: ``epoch`` counts from 1; ``lr`` is the learning rate of its first step; ``seconds`` include the
    validation, ``milliseconds_per_step`` (mini-batch, loading included) does not. A run that was resumed in
    the middle of the epoch counts the time of all its parts. Validation fields are None and empty without
    a validation set.
    """

    epoch: int
    loss: float
    metrics: dict[str, float]
    validation_loss: float | None
    validation_metrics: dict[str, float]
    lr: float
    seconds: float
    milliseconds_per_step: float

    def __str__(self) -> str:
        """Return the epoch's numbers on one line."""
        parts = [f"loss {self.loss:.4f}", *_formatted(self.metrics)]
        if self.validation_loss is not None:
            parts += [f"validation loss {self.validation_loss:.4f}"]
            parts += _formatted(self.validation_metrics, "validation ")
        parts += [f"lr {self.lr:.4g}", f"{self.seconds:.1f} s", f"{self.milliseconds_per_step:.3g} ms/step"]
        return "  ".join(parts)


@dataclass(frozen=True)
class History:
    """The finished epochs of a run, oldest first, those before a resume included."""

    epochs: tuple[EpochRecord, ...] = ()

    def __len__(self) -> int:
        """Return the number of finished epochs."""
        return len(self.epochs)

    def __iter__(self) -> Iterator[EpochRecord]:
        """Iterate over the finished epochs."""
        return iter(self.epochs)

    def __getitem__(self, index: int) -> EpochRecord:
        """Return one epoch's record, the last one for -1."""
        return self.epochs[index]

    def metric_names(self) -> list[str]:
        """Return every metric that some epoch has, for training or validation, in order of appearance."""
        return list(dict.fromkeys(name for e in self for name in (*e.metrics, *e.validation_metrics)))

    def series(self, name: str, *, validation: bool = False) -> list[float]:
        """Return one number per epoch: ``name`` is "loss" or a metric. NaN where the epoch has none."""
        if name != "loss" and name not in self.metric_names():
            raise UnknownNameError(f"no metric '{name}' in this history; it has {self.metric_names()}")
        values: list[float] = []
        for epoch in self:
            if name == "loss":
                value = epoch.validation_loss if validation else epoch.loss
            else:
                value = (epoch.validation_metrics if validation else epoch.metrics).get(name)
            values.append(float("nan") if value is None else value)
        return values


class Display:
    """Shows nothing; the others show more. A ``with`` block around the run tidies the terminal up."""

    def __enter__(self) -> Display:
        """Start with an untouched terminal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal in order."""

    def begin(self, epoch: int, done: int) -> None:
        """Show that epoch number ``epoch`` begins, ``done`` of its steps being there already."""

    def step(self, means: RunningMeans, lr: float, seconds_per_step: float) -> None:
        """Show that one more mini-batch is done."""

    def validate(self) -> None:
        """Show that the mini-batches are done and the validation begins."""

    def end(self, record: EpochRecord) -> None:
        """Show that an epoch is finished."""


class Lines(Display):
    """One line per epoch on the standard output, for logs and notebooks."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def end(self, record: EpochRecord) -> None:
        """Print the epoch's line."""
        width = len(str(self._epochs))
        print(f"epoch {record.epoch:{width}}/{self._epochs}  {record}", flush=True)


class Bar(Lines):
    """A tqdm bar on the terminal while an epoch runs, then the epoch's line as ``Lines`` prints it."""

    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__(epochs)
        self._steps = steps
        try:
            # By name, for it carries no types: with an import statement, checking would depend on stubs.
            self._tqdm: Any = import_module("tqdm").tqdm
        except ImportError as error:
            raise GraphcError(
                "the progress bar needs tqdm, which is not installed: pip install graphc[train], "
                "or train with progress=False"
            ) from error
        self._bar: Any = None
        self._next_refresh = 0.0

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def begin(self, epoch: int, done: int) -> None:
        """Draw a new bar."""
        self.__exit__()
        self._bar = self._tqdm(
            total=self._steps,
            initial=done,
            desc=f"epoch {epoch}/{self._epochs}",
            unit="step",
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}{postfix}]",
        )
        self._next_refresh = 0.0

    def step(self, means: RunningMeans, lr: float, seconds_per_step: float) -> None:
        """Advance the bar, with new numbers every now and then."""
        self._bar.update()
        now = time.perf_counter()
        if now >= self._next_refresh or self._bar.n >= self._steps:
            self._next_refresh = now + _REFRESH_SECONDS
            numbers = [f"loss {means.loss:.4f}", *_formatted(means.metrics), f"lr {lr:.4g}"]
            numbers.append(f"{seconds_per_step * 1e3:.3g} ms/step")
            self._bar.set_postfix_str(", ".join(numbers))

    def validate(self) -> None:
        """Say what the time is spent on."""
        self._bar.set_postfix_str("validating")

    def end(self, record: EpochRecord) -> None:
        """Replace the bar by the epoch's line."""
        self.__exit__()
        super().end(record)


def make_display(progress: bool, epochs: int, steps: int) -> Display:
    """Return the display that suits: a bar where a person looks at a terminal, otherwise plain lines.

    Raises: GraphcError where a bar is due and tqdm is not installed.
    """
    if not progress:
        return Display()
    return Bar(epochs, steps) if sys.stderr.isatty() else Lines(epochs)


def _formatted(metrics: Mapping[str, float], prefix: str = "") -> list[str]:
    return [f"{prefix}{name} {value:.4f}" for name, value in metrics.items()]
