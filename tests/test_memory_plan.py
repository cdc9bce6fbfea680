"""An arena plan states its certificate, refuses to be wrong, and can be written, read and drawn."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from graphc.errors import DataError, GraphcError, RangeError, UnknownNameError
from graphc.memory import ArenaPlan, Interval, plan_arena

SMALL = (
    Interval("x", 0, 4, 100, kept=True, label="input"),
    Interval("h", 1, 3, 200, kept=True),
    Interval("y", 2, 4, 60),
    Interval("z", 3, 5, 250),
)


@pytest.fixture
def plan() -> ArenaPlan:
    """Return a plan with all numbers known: sizes 128, 256, 64 and 256 after rounding up."""
    return ArenaPlan(SMALL, (0, 192, 128, 192), alignment=64)


def test_the_certificate(plan: ArenaPlan) -> None:
    """Everything is counted in bytes rounded up to the alignment."""
    assert plan.arena_bytes == 448
    assert plan.lower_bound_bytes == 448
    assert plan.ratio == 1.0
    assert plan.peak_step == 2
    assert plan.alive_at_peak == ("x", "y", "h")
    assert plan.live_bytes == [128, 384, 448, 448, 256]
    assert plan.total_bytes == 704
    assert plan.kept_bytes == 384


def test_offset_of(plan: ArenaPlan) -> None:
    """Offsets are found by id, and unknown ids are named."""
    assert plan.offset_of("y") == 128
    with pytest.raises(UnknownNameError, match="no buffer 'nope'"):
        plan.offset_of("nope")


def test_a_collision_is_refused() -> None:
    """The message says who collides with whom, where and when."""
    with pytest.raises(
        GraphcError, match=r"at step 2 buffer 'y' at bytes \[64, 128\) collides with buffer 'x'"
    ):
        ArenaPlan(SMALL, (0, 192, 64, 192), alignment=64)


@pytest.mark.parametrize("offset", [32, -64])
def test_a_bad_offset_is_refused(offset: int) -> None:
    """Offsets are multiples of the alignment, from 0 on."""
    with pytest.raises(GraphcError, match=f"'x' at offset {offset}: expected a multiple of 64"):
        ArenaPlan(SMALL[:1], (offset,), alignment=64)


def test_a_missing_offset_is_refused() -> None:
    """Every interval has an offset."""
    with pytest.raises(GraphcError, match="4 buffers but 1 offset"):
        ArenaPlan(SMALL, (0,))


def test_csv_is_what_minimalloc_writes(plan: ArenaPlan, tmp_path: Path) -> None:
    """The header and columns are minimalloc's, the sizes rounded up."""
    plan.to_csv(tmp_path / "plan.csv")
    with (tmp_path / "plan.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "lower", "upper", "size", "offset"]
    assert rows[1] == ["x", "0", "4", "128", "0"]
    assert len(rows) == 5


def test_table(plan: ArenaPlan) -> None:
    """The certificate comes first, then the longest lifetimes."""
    lines = plan.table().splitlines()
    assert lines[0] == "arena        448 bytes"
    assert lines[1] == "lower bound  448 bytes: alive at step 2, in 3 buffers"
    assert lines[2] == "ratio        1.0000  optimal: the arena meets the bound"
    assert lines[5] == "peak         x, y, h"
    assert [line.split()[0] for line in lines[8:]] == ["x", "h", "z", "y"]
    assert lines[8].split() == ["x", "[0,", "4)", "4", "128", "0", "kept", "input"]


@pytest.mark.parametrize(("by", "ids"), [("size", "hzxy"), ("offset", "xyhz")])
def test_table_in_other_orders(plan: ArenaPlan, by: Any, ids: str) -> None:
    """The largest, or the lowest addresses, can come first instead."""
    assert "".join(line[0] for line in plan.table(by=by).splitlines()[8:]) == ids


def test_table_in_an_unknown_order(plan: ArenaPlan) -> None:
    """The message lists what there is."""
    wrong: Any = "name"
    with pytest.raises(RangeError, match="one of lifetime, size, offset, got 'name'"):
        plan.table(by=wrong)


def test_table_of_an_imperfect_plan() -> None:
    """How far the arena is from its bound is said plainly."""
    plan = ArenaPlan((Interval("a", 0, 1, 64), Interval("b", 1, 2, 64)), (0, 64))
    assert "ratio        2.0000  64 bytes above the bound" in plan.table()


def test_plain_data_comes_back(plan: ArenaPlan) -> None:
    """Through JSON and back nothing changes."""
    assert ArenaPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def _without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != key}


def _with_buffer(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return data | {"buffers": [data["buffers"][0] | changes, *data["buffers"][1:]]}


def test_broken_data_is_refused(plan: ArenaPlan) -> None:
    """Whatever is wrong with a file, the error is a DataError that says what."""
    data = plan.to_dict()
    for broken, message in (
        (_without(data, "buffers"), "'buffers' is missing"),
        (_without(data, "alignment"), "'alignment' is missing"),
        (data | {"buffers": 3}, "'buffers' should be list, got 3"),
        (data | {"buffers": [3]}, "'id' is missing"),
        (data | {"alignment": True}, "'alignment' should be int, got True"),
        (_with_buffer(data, size="100"), "'size' should be int, got '100'"),
        (_with_buffer(data, upper=0), r"the lifetime \[0, 0\) is empty"),
        (_with_buffer(data, offset=192), "collides"),
        (_with_buffer(data, id="h"), "used twice"),
    ):
        with pytest.raises(DataError, match=message):
            ArenaPlan.from_dict(broken)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot(plan: ArenaPlan, tmp_path: Path, suffix: str) -> None:
    """The file is a picture, the same one every time, and names with dollar signs do no harm."""
    pytest.importorskip("matplotlib")
    odd = ArenaPlan(
        (*plan.intervals, Interval("$\\frac{$", 5, 9, 512), Interval("", 5, 6, 64)), (*plan.offsets, 0, 512)
    )
    for name in ("first", "second"):
        odd.plot(tmp_path / (name + suffix))
    first = (tmp_path / f"first{suffix}").read_bytes()
    assert first.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    assert first == (tmp_path / f"second{suffix}").read_bytes()


def test_plot_of_nothing(tmp_path: Path) -> None:
    """An empty plan gives an empty picture."""
    pytest.importorskip("matplotlib")
    plan_arena([]).plot(str(tmp_path / "empty.svg"))
    assert (tmp_path / "empty.svg").stat().st_size > 0


def test_plot_into_an_unknown_format(plan: ArenaPlan, tmp_path: Path) -> None:
    """The message says which suffixes there are."""
    pytest.importorskip("matplotlib")
    with pytest.raises(RangeError, match=r"ending in \.svg or \.png"):
        plan.plot(tmp_path / "plan.docx")


def test_plot_without_matplotlib(plan: ArenaPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to install what is missing."""
    monkeypatch.delitem(sys.modules, "graphc.memory.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GraphcError, match=r"pip install graphc\[plot\]"):
        plan.plot(tmp_path / "plan.svg")
