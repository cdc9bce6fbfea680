"""Colours are put on text: without their escape codes it is what a pipe gets."""

from __future__ import annotations

import gc
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graphc.cli import colour
from graphc.cli.main import main
from graphc_runtime.profile import KernelTime, Profile

pytest.importorskip("rich", reason="rich is not installed")

CODE = re.compile(r"\x1b\[[0-9;]*m")
RED, GREEN, BOLD, DIM, CYAN = ("\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[2m", "\x1b[36m")
COMMANDS = [
    *(["inspect", "--show", view, "--mode", mode]
      for view in ("written", "graph", "kernels", "calls", "plan", "source") for mode in ("inference", "train")),
    ["inspect", "--show", "layers"],
    ["inspect", "model:lenet", "--explain", "conv1"],
    *(["inspect", "--show", view, "--json"] for view in ("layers", "calls", "plan", "all")),
    ["diff", "model:lenet", "model:lenet_1998"],
    ["diff", "model:lenet", "model:lenet_1998", "--json"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_characters_are_those_of_a_pipe(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In every view, each of which has something to colour; no colour goes on over the end of a line."""
    gc.collect()  # equal nodes are one node: one of another test's net would give its line while it lives
    status = main(command)
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert main([*command, "--color", "always"]) == status
    shown = capsys.readouterr().out
    assert CODE.sub("", shown) == plain
    assert len(CODE.findall(shown)) > 20
    for line in shown.splitlines():
        codes = CODE.findall(line)
        assert not codes or codes[-1] == "\x1b[0m"


def test_the_table_of_a_profile() -> None:
    kernels = (
        KernelTime(0, "copy", ("a",), ("net.py:1",), 2e-3, 1_000_000, 10_000_000),
        KernelTime(1, "product", ("b", "c"), ("net.py:2",), 1e-3, 50_000_000, 1_000),
    )
    machine = {"fma_gflops": 100.0, "bandwidth_gb_s": 10.0}
    table = Profile("net", "predict", 4, 2, 5, kernels, machine).table()
    shown = colour.coloured(table, "profile")
    assert CODE.sub("", shown) == table
    assert f"{GREEN}product\x1b[0m: b, c, {DIM}net.py:2\x1b[0m\n" in shown


def test_what_is_coloured_how() -> None:
    """Types, ops and lines of a graph; what went and what came; keywords and comments of C."""
    graph = colour.coloured("conv: float32(N, 6) = conv2d(x, w)  # net.py:3\n", "graph")
    assert (
        graph
        == f"{BOLD}conv\x1b[0m: {CYAN}float32(N, 6)\x1b[0m = {GREEN}conv2d\x1b[0m(x, w){DIM}  # net.py:3\x1b[0m\n"
    )
    text = "graph: - add float32(3,)\ngraph: + sub float32(3,)\nmemory: relu 64 -> none\n"
    text += "source a.c: 3 lines less, 4 more\n"
    shown = colour.coloured(text, "differences")
    for part in (f"{RED}- add float32(3,)", f"{GREEN}+ sub float32(3,)", f"{RED}64", f"{GREEN}none"):
        assert f"{part}\x1b[0m" in shown
    assert f"{RED}3 lines less\x1b[0m, {GREEN}4 more\x1b[0m" in shown
    code = colour.coloured("/* one\n * two */\nint x = 1;\n", "c")
    assert code.count("\x1b[") >= 8 and f"{DIM}/* one\x1b[0m\n{DIM} * two */\x1b[0m\n" in code


@pytest.mark.parametrize(
    "kind", ["plain", "graph", "story", "layers", "calls", "plan", "profile", "differences", "c", "json"]
)
@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "no end of line", "[bold]no markup[/bold]\n", "x" * 500 + "  \n", "\ta\tb\n", "a\rb\n",
        "\x1b[31mred\n", "  \n\n  end  ", ": - \n", "Bᵀ → é 漢字\n",
    ],
)  # fmt: skip
def test_odd_text_keeps_its_characters(text: str, kind: str) -> None:
    """Also where it cannot be coloured; what holds escape codes itself is left as it is."""
    shown = colour.coloured(text, kind)
    assert shown == text if "\x1b" in text else CODE.sub("", shown) == text


def test_every_style_is_known() -> None:
    """A group in a pattern that has no style would fail only where it matches."""
    groups = {g for ps in colour._PATTERNS.values() for p in ps for g in re.compile(p).groupindex}
    assert {g.rstrip("0123456789") for g in groups} == set(colour._STYLES)


@pytest.mark.parametrize(
    ("when", "terminal", "environment", "installed", "expected"),
    [
        ("auto", True, {}, True, True),
        ("auto", False, {}, True, False),
        ("auto", True, {"NO_COLOR": "1"}, True, False),
        ("auto", True, {"NO_COLOR": ""}, True, True),
        ("auto", True, {"TERM": "dumb"}, True, False),
        ("auto", True, {}, False, False),
        ("always", False, {"NO_COLOR": "1"}, True, True),
        ("never", True, {}, True, False),
        ("never", True, {}, False, False),
    ],
)
def test_when_there_are_colours(
    when: str, terminal: bool, environment: dict[str, str], installed: bool, expected: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not installed:
        monkeypatch.setattr(colour, "find_spec", lambda name: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["inspect", "--show", "layers", "--color", when]) == 0
    assert ("\x1b[" in capsys.readouterr().out) == expected


def test_always_names_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(colour, "find_spec", lambda name: None)
    for command in (["inspect"], ["diff", "model:lenet", "model:lenet"]):
        assert main([*command, "--color", "always"]) == 2
        message = capsys.readouterr().err
        assert message == "graphc: --color always needs rich: pip install 'graphc[terminal]'\n"


def test_in_a_terminal(tmp_path: Path) -> None:
    """A real one of 40 columns: no line is broken, and nothing is paged."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "40"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "graphc", "inspect", "--show", "layers"]
    with subprocess.Popen(command, stdout=theirs, cwd=tmp_path, env=environment):
        os.close(theirs)
        received = b""
        try:
            while part := os.read(ours, 4096):
                received += part
        except OSError:  # what Linux says at the end
            pass
    os.close(ours)
    plain = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    shown = received.decode().replace("\r\n", "\n")
    assert CODE.sub("", shown) == plain.stdout
    assert CODE.search(shown) and not CODE.search(plain.stdout)
