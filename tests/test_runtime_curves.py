"""Histories, their pictures and the progress display."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from graphc_runtime.curves import plot_history
from graphc_runtime.errors import GraphcError, RangeError, UnknownNameError
from graphc_runtime.progress import Bar, Display, EpochRecord, History, Lines, RunningMeans, make_display


def record(epoch: int, loss: float, *, validation: float | None = None) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=loss,
        metrics={"accuracy": 1 - loss / 3},
        validation_loss=validation,
        validation_metrics={} if validation is None else {"accuracy": 1 - validation / 3},
        lr=0.05,
        seconds=1.25,
        milliseconds_per_step=0.5,
    )


def history(epochs: int = 12) -> History:
    return History(
        tuple(
            record(e, 2.3 * math.exp(-e / 2), validation=2.3 * math.exp(-e / 3) + 0.05)
            for e in range(1, epochs + 1)
        )
    )


def test_a_history_gives_its_series() -> None:
    run = history(3)
    assert (len(run), run[-1].epoch, [e.epoch for e in run]) == (3, 3, [1, 2, 3])
    assert run.metric_names() == ["accuracy"]
    assert run.series("loss") == [e.loss for e in run]
    assert run.series("accuracy", validation=True) == [e.validation_metrics["accuracy"] for e in run]
    plain = History((record(1, 0.5),))
    assert math.isnan(plain.series("loss", validation=True)[0])
    assert math.isnan(plain.series("accuracy", validation=True)[0])
    with pytest.raises(UnknownNameError, match="'acuracy'"):
        run.series("acuracy")


@pytest.mark.parametrize(
    "run",
    [
        history(),
        history(1),
        history(200),
        History((record(1, 0.5), record(2, math.nan), record(3, math.inf))),
        History((record(1, math.nan),)),
    ],
    ids=["usual", "one", "long", "some-nan", "all-nan"],
)
def test_a_picture_is_written_whatever_the_values(tmp_path: Path, run: History) -> None:
    plot_history(run, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    plot_history(run, tmp_path / "curves")
    assert (tmp_path / "curves").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plotting_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RangeError, match="empty"):
        plot_history(History(), tmp_path / "curves.png")
    for name in ("no/folder.png", "curves.xyz"):
        with pytest.raises(GraphcError, match="cannot write"):
            plot_history(history(), tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(GraphcError, match=r"pip install graphc\[train\]"):
        plot_history(history(), tmp_path / "curves.png")


class _Result(float):
    metrics: dict[str, float]


def result(loss: float, **metrics: float) -> _Result:
    value = _Result(loss)
    value.metrics = metrics
    return value


def test_means_weigh_mini_batches_by_their_size() -> None:
    means = RunningMeans()
    assert math.isnan(means.loss)
    means.add(result(1.0, accuracy=0.5), 30)
    means.add(result(4.0, accuracy=1.0), 10)
    assert (means.loss, means.metrics) == (1.75, {"accuracy": 0.625})
    means.add(result(math.nan, accuracy=1.0), 1)
    assert math.isnan(means.loss)


def test_lines_are_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(True, 20, 5)
    assert type(display) is Lines
    display.end(record(3, math.nan, validation=0.25))
    line = capsys.readouterr().out
    assert line.startswith(
        "epoch  3/20  loss nan  accuracy nan  validation loss 0.2500  validation accuracy 0.9167"
    )
    assert line.endswith("lr 0.05  1.2 s  0.5 ms/step\n")


def test_a_bar_is_drawn_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with make_display(True, 2, 5) as display:
        assert type(display) is Bar
        display.begin(1, 2)
        means = RunningMeans()
        for _ in range(3):
            means.add(result(0.5, accuracy=0.75), 8)
            display.step(means, 0.05, 0.00125)
        display.validate()
        display.end(record(1, 0.5))
        display.begin(2, 0)
    shown = capsys.readouterr()
    assert "epoch 1/2" in shown.err
    assert "5/5" in shown.err
    assert "loss 0.5000, accuracy 0.7500, lr 0.05, 1.25 ms/step" in shown.err
    assert "validating" in shown.err
    assert shown.out.startswith("epoch 1/2  loss 0.5000")


def test_without_tqdm_only_the_bar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert type(make_display(False, 2, 5)) is Display
    assert type(make_display(True, 2, 5)) is Lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert type(make_display(False, 2, 5)) is Display
    with pytest.raises(GraphcError, match=r"pip install graphc\[train\]"):
        make_display(True, 2, 5)
