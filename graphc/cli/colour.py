"""Text in colours for a terminal. They are put on the finished text: the characters are those of a pipe.

Needs rich, an extra; without it, or where nobody looks at a terminal, text stays as it is. The colours are the
terminal's own sixteen, so that they fit its background.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from graphc.errors import GraphcError

if TYPE_CHECKING:
    from rich.text import Text

_STYLES = {
    "head": "bold", "name": "bold", "number": "cyan", "type": "cyan", "op": "green", "label": "bold", "faint": "dim",
    "kept": "yellow", "less": "red", "more": "green",
}  # fmt: skip
"""What a group of a pattern below is printed in, by the group's name, up to digits at its end."""

_GRAPH = (
    r"^ *(?P<name>[^\n]+?): (?P<type>\w+\([^)\n]*\)) = (?P<op>\w+)\(",
    r"^(?P<label>kernel (?P<number>\d+)): (?P<op>[^;\n]+); gives (?P<name>.*)$",
    r"^(?P<label>return) (?P<name>\S+) = ",
    r"(?P<faint>  # [^\n]*)$",
)
_STORY = (
    r"^(?P<name>\S+): (?P<type>\w+\([^)\n]*\)) = (?P<op>\w+)\(",
    r"^  (?P<faint>written at) ",
    r"^ *(?P<label>read by|writes|(?:value|attributes|derivative|gradient)(?: for [^:\n]+)?(?=:))",
    r"^(?P<head>inference|training):$",
    r"^  (?P<label>kernel (?P<number>\d+)) of \d+, (?P<op>\w+)",
    r"(?P<number>[\d,]+) bytes at (?P<number2>[\d,]+)",
    r"^    (?P<kept>kept for the backward pass)",
)
_PATTERNS = {
    "plain": (),
    "graph": _GRAPH,
    "story": _STORY,
    "layers": (
        r"\A(?P<head>.*)$",
        r"^(?P<faint>-+)$",
        r"^(?P<head>total .*)$",
        r"^(?P<name>\S+) {2,}(?P<op>\S.*?) {2,}(?P<type>\([^)\n]*\))",
    ),
    "calls": (
        r"\A(?P<head>.*)$",
        r"^ *(?P<faint>\d+) +(?P<number>[\d,]+ +[\d,]+ +[\d.]+)  (?P<op>\w+)(?P<kept> \(again\))?:",
        r", (?P<faint>[^\s,]+:\d+)$",
    ),
    "plan": (
        r"^(?P<label>arena|lower bound|least bound|ratio|total|values|rewrites|kept|peak) {2,}",
        r"^(?P<head>buffer +steps .*)$",
        r"^(?P<name>\S+) +(?P<faint>\[\d+, \d+\)) +\d+ +(?P<number>[\d,]+ +[\d,]+)(?: +(?P<kept>kept))?",
    ),
    "profile": (
        r"\A(?P<name>.*)$",
        r"^(?P<head> +us +share .*)$",
        r"^ *(?P<number>[\d.]+) +(?P<kept>[\d.]+%) +[\d.]+ +[\d.]+ +(?P<number2>\d+%)  (?P<op>\w+)",
        r", (?P<faint>[^\s,]+:\d+)$",
    ),
    "differences": (
        r"^(?P<label>[^:\n]+): ",
        r"^[^:\n]+: (?P<less>- .*)$",
        r"^[^:\n]+: (?P<more>\+ .*)$",
        r"(?P<less>\S+) -> (?P<more>\S+)",
        r"(?P<less>[\d,]+ lines less), (?P<more>[\d,]+ more)",
        r"^[^:\n]+: (?P<less>there is none any more)$",
        r"^[^:\n]+: (?P<more>there is none before)$",
    ),
}  # fmt: skip
_LEXERS = {"c": "c", "json": "json"}


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --color."""
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="auto (default): in a terminal, unless NO_COLOR is set; always: in a pipe, too, as for less -R",
    )  # fmt: skip


def check(when: str) -> None:
    """Refuse at the start what cannot be printed at the end.

    Raises: GraphcError where colours are asked for and rich is not installed.
    """
    if when == "always" and not _installed():
        raise GraphcError("--color always needs rich: pip install 'graphc[terminal]'")


def show(text: str, kind: str, when: str) -> None:
    """Print a text of a kind ("c", "json", or a key of the patterns), in colours as ``--color`` says."""
    print(coloured(text, kind) if _wanted(when) else text, end="")


def coloured(text: str, kind: str) -> str:
    """Return a text with the escape codes of its kind's colours; without these it is the same text."""
    from rich.color import ColorSystem
    from rich.console import Console

    marked = _with_syntax(text, _LEXERS[kind]) if kind in _LEXERS else _with_patterns(text, kind)
    if marked.plain != text or "\x1b" in text:
        return text  # it has a control character, which rich takes out, or which a colour would cut in two
    parts = []
    # Not printed by rich, which would break lines at the terminal's width.
    for segment in marked.render(Console(force_terminal=True, color_system="standard")):
        style, lines = segment.style, segment.text.split("\n")  # less -R ends colours with the line
        styled = [style.render(line, color_system=ColorSystem.STANDARD) for line in lines] if style else lines
        parts.append("\n".join(styled))
    return "".join(parts)


def _with_syntax(text: str, lexer: str) -> Text:
    from rich.syntax import Syntax

    return Syntax(text, lexer, theme="ansi_dark").highlight(text)


def _with_patterns(text: str, kind: str) -> Text:
    from rich.text import Text

    marked = Text(text, end="")
    for pattern in _PATTERNS[kind]:
        for match in re.finditer(pattern, text, re.MULTILINE):
            for group in match.groupdict():
                marked.stylize(_STYLES[group.rstrip("0123456789")], *match.span(group))
    return marked


def _wanted(when: str) -> bool:
    if when != "auto":
        return when == "always"
    dull = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not dull and _installed()


def _installed() -> bool:
    return find_spec("rich") is not None
