"""The curves of a training run as a picture: loss and every metric, for training and validation."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from graphc_runtime.errors import GraphcError, RangeError
from graphc_runtime.progress import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAINING, _VALIDATION = "#4477aa", "#cc6677"  # Paul Tol's blue and rose, safe for the colour-blind
_LOG_RATIO = 30.0  # a loss that falls further than this shows its end on a logarithmic scale only


def plot_history(history: History, path: str | os.PathLike[str]) -> None:
    """``path`` shows loss and metrics over the epochs: a PNG, or what its suffix names (.svg, .pdf).

    A NaN or Inf is a gap in its curve.

    Raises: RangeError where the history is empty, GraphcError where matplotlib is missing or cannot write.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GraphcError(
            "plotting needs matplotlib, which is not installed: pip install graphc[train]"
        ) from error
    if len(history) == 0:
        raise RangeError("plot_history: expected a history of at least one epoch, got an empty one")
    names = ["loss", *history.metric_names()]
    # A figure of our own: pyplot would pick a window system and keep every figure alive.
    figure = Figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw(axes, history, name)
    suffix = os.path.splitext(path)[1].lstrip(".").lower()
    try:
        figure.savefig(path, format=suffix or "png", dpi=150)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        raise GraphcError(f"cannot write {os.fspath(path)}: {error}") from error


def _draw(axes: Axes, history: History, name: str) -> None:
    """Draw the two curves of ``name`` with their last values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    epochs = [record.epoch for record in history]
    drawn: list[float] = []
    for label, colour, validation in (("training", _TRAINING, False), ("validation", _VALIDATION, True)):
        values = [v if math.isfinite(v) else math.nan for v in history.series(name, validation=validation)]
        finite = [value for value in values if not math.isnan(value)]
        if not finite:
            continue
        drawn += finite
        last = f"{label}  {values[-1]:.4g}"
        # Markers while they stay apart: a run of one epoch would otherwise show nothing.
        marker = "o" if len(epochs) <= 30 else None
        axes.plot(epochs, values, color=colour, label=last, marker=marker, markersize=3.5, linewidth=1.6)
    if name == "loss" and drawn and min(drawn) > 0 and max(drawn) / min(drawn) > _LOG_RATIO:
        axes.set_yscale("log")
        # Plain numbers at 1, 2 and 5 of each decade, where the default writes 2 x 10^-1.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(name, loc="left")
    axes.set_xlabel("epoch")
    # All epochs, those without a number to draw included.
    margin = max(0.5, 0.03 * len(epochs))
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center")
