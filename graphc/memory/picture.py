"""A plan can be looked at: addresses over time, and below it the bytes alive.

This module imports matplotlib, which is an extra; only :meth:`ArenaPlan.plot` imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.patches import Rectangle as Box
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from graphc.errors import RangeError

SUFFIXES = (".svg", ".png")

# Hues that stay apart in grey and for colour-blind readers.
_PASSING = "#a6cbe8"
_KEPT = "#f3b562"
_EDGE = "#33414e"
_BOUND = "#b5282b"

_INCHES_WIDE = 11.0
_INCHES_HIGH = 7.2
_LARGEST_FONT = 8.0  # points
_COMFORTABLE_FONT = 6.5  # below this, a name that gets larger standing up stands up
_SMALLEST_FONT = 4.0
_POINTS_PER_INCH = 72
_MANY = 150  # from here on thinner lines, so that the edges do not hide the colours


class Rectangle(NamedTuple):
    """One buffer in the picture: a span of steps by a span of bytes."""

    name: str
    lower: int
    upper: int
    offset: int
    size: int
    kept: bool


def draw_plan(rectangles: Sequence[Rectangle], *, live: Sequence[int], lower_bound: int, path: Path) -> None:
    """Write the picture to ``path``, as SVG or PNG by its suffix; the same plan gives the same file.

    Raises: RangeError for another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RangeError(f"arena plot: expected a file name ending in .svg or .png, got {str(path)!r}")
    arena = max((r.offset + r.size for r in rectangles), default=0)
    unit, unit_name = _unit(arena)

    # A figure of its own rather than pyplot's: no window, no global state, nothing left open.
    figure = Figure(figsize=(_INCHES_WIDE, _INCHES_HIGH), layout="constrained")
    FigureCanvasAgg(figure)
    addresses, curve = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    addresses.set_title(_title(arena, lower_bound, unit, unit_name), fontsize=10, loc="left")
    addresses.set_ylabel(f"address ({unit_name})")
    curve.set_ylabel(f"alive ({unit_name})")
    curve.set_xlabel("kernel step")
    first = min((r.lower for r in rectangles), default=0)
    last = max((r.upper for r in rectangles), default=1)
    curve.set_xlim(first, last)
    curve.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (addresses, curve):
        axes.set_ylim(0, 1.04 * arena / unit if arena else 1)
        axes.spines[["top", "right"]].set_visible(False)
    _draw_addresses(addresses, rectangles, lower_bound, unit)
    _draw_live(curve, live, lower_bound, unit)

    # Names are measured against the finished layout, so the layout comes first and stays.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _name_rectangles(addresses, rectangles, unit)
    # Without a date and with fixed element ids the same plan gives the same SVG.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
    with rc_context({"svg.hashsalt": "graphc"}):
        figure.savefig(path, dpi=150, metadata=metadata)


def _unit(arena: int) -> tuple[int, str]:
    """Return the unit that keeps the numbers on the axes short."""
    for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if arena >= 2 * size:
            return size, name
    return 1, "bytes"


def _title(arena: int, lower_bound: int, unit: int, unit_name: str) -> str:
    if not arena:
        return "arena without buffers"
    verdict = "meets the" if arena == lower_bound else f"{arena / lower_bound:.4f} times the"
    return f"arena {arena / unit:,.4g} {unit_name}, {verdict} lower bound"


def _draw_addresses(axes: Axes, rectangles: Sequence[Rectangle], lower_bound: int, unit: int) -> None:
    for r in rectangles:
        corner = (r.lower, r.offset / unit)
        color = _KEPT if r.kept else _PASSING
        linewidth = 0.25 if len(rectangles) > _MANY else 0.7
        box = Box(corner, r.upper - r.lower, r.size / unit, fc=color, ec=_EDGE, lw=linewidth)
        axes.add_patch(box)
    bound = axes.axhline(lower_bound / unit, color=_BOUND, linestyle="--", linewidth=1.2)
    handles: list[tuple[Artist, str]] = [(bound, "lower bound")]
    for kept, color, text in ((False, _PASSING, "passing"), (True, _KEPT, "kept for the backward pass")):
        if any(r.kept is kept for r in rectangles):
            handles.append((Patch(fc=color, ec=_EDGE, lw=0.7), text))
    artists, texts = zip(*handles, strict=True)
    # Above the axes, right of the title: inside it would hide buffers.
    axes.legend(artists, texts, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8)


def _draw_live(axes: Axes, live: Sequence[int], lower_bound: int, unit: int) -> None:
    if live:
        heights = [alive / unit for alive in live]
        axes.stairs(heights, fill=True, color="#d4dce3")
        axes.stairs(heights, color=_EDGE, linewidth=0.9)
    axes.axhline(lower_bound / unit, color=_BOUND, linestyle="--", linewidth=1.2)


def _name_rectangles(axes: Axes, rectangles: Sequence[Rectangle], unit: int) -> None:
    """Write each name into its rectangle, upright where that is easier to read, or not at all."""
    for r in rectangles:
        if not r.name.strip():
            continue
        corners = [(r.lower, r.offset / unit), (r.upper, (r.offset + r.size) / unit)]
        low, high = axes.transData.transform(corners)
        across, up = (high - low) * _POINTS_PER_INCH / axes.figure.dpi
        length, tall = _extent(r.name)
        lying, standing = min(across / length, up / tall), min(up / length, across / tall)
        upright = lying < min(standing, _COMFORTABLE_FONT)
        size = min(_LARGEST_FONT, standing if upright else lying)
        if size < _SMALLEST_FONT:
            continue
        axes.text(
            (r.lower + r.upper) / 2,
            (r.offset + r.size / 2) / unit,
            r.name,
            fontsize=size,
            rotation=90 if upright else 0,
            ha="center",
            va="center",
            parse_math=False,  # a dollar sign in a name is no formula
        )


def _extent(text: str) -> tuple[float, float]:
    """Return the length and height of ``text`` in multiples of its font size, with a little air."""
    em = 10.0
    length, tall, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=em), ismath=False)
    return length / em + 0.8, tall / em + 0.2
