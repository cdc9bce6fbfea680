"""Where in the user's program a node was written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The nets of the command line are written like a user's, and their lines are as worth reading. A ready-made net that
# the command line makes by its name has no line there that would tell its layers apart: those of its own text do.
_COMMAND_LINE = _PACKAGE + "cli" + os.sep
_MODELS = _PACKAGE + "models.py"


@dataclass(frozen=True, slots=True)
class Source:
    """A line of the user's program; printed with the file's base name, so that output is portable."""

    file: str
    line: int

    def __str__(self) -> str:
        """Return e.g. ``train.py:14``."""
        return f"{os.path.basename(self.file)}:{self.line}"


_attributed: ContextVar[Source | None] = ContextVar("attributed", default=None)


@contextmanager
def attribute_to(source: Source) -> Iterator[None]:
    """Let every node made inside the block carry this line: a derivative belongs to its op's line."""
    token = _attributed.set(source)
    try:
        yield
    finally:
        _attributed.reset(token)


def user_source() -> Source:
    """Return the innermost line on the call stack that lies outside the compiler.

    Where that is the command line's, or there is none, it is the innermost line of a ready-made net, if there is one.
    """
    attributed = _attributed.get()
    if attributed is not None:
        return attributed
    frame, model = sys._getframe(1), None
    while (file := frame.f_code.co_filename).startswith(_PACKAGE):
        if model is None and file == _MODELS:
            model = frame
        if frame.f_back is None or file.startswith(_COMMAND_LINE):
            frame = model or frame
            break
        frame = frame.f_back
    return Source(frame.f_code.co_filename, frame.f_lineno)
