"""How much stack a call may take: what the arrays of kernels and helper functions say, and room for registers.

The bound is told in the header, so it must not depend on the compiler that built it: tests compare it with what
compilers report (-fstack-usage) for every instruction set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from graphc.emit.text import C_TYPE
from graphc.isa import Isa
from graphc.types import ITEMSIZE

_FRAMES = 1024  # bytes for what the functions that call each other save, and for scalars
_SPILLED = 48  # registers that a compiler may put on the stack, in all of these functions
_SIZES = {C_TYPE[dtype]: size for dtype, size in ITEMSIZE.items()}
_DECLARATION = re.compile(rf"^ *({'|'.join(_SIZES)}) (\w+\[[^;()]*);", re.MULTILINE)
_ARRAY = re.compile(r"\w+((?:\[[\w *]+\])+)")
_NAMED = {"GC_LANES": 16}


def stack_bound(kernels: Sequence[str], helpers: Sequence[str], isa: Isa) -> int:
    """Return bytes that no call of an entry point exceeds, in any of its threads; a multiple of 64."""
    largest = max((_arrays(text) for text in kernels), default=0) + sum(map(_arrays, helpers))
    return -(-(largest + _FRAMES + _SPILLED * isa.register_bytes) // 64) * 64


def _arrays(text: str) -> int:
    """Return the bytes of all arrays that a text of C declares."""
    return sum(
        _SIZES[ctype] * math.prod(map(_extent, re.findall(r"\[([^\]]*)\]", extents)))
        for ctype, declared in _DECLARATION.findall(text)
        for extents in _ARRAY.findall(declared)
    )


def _extent(text: str) -> int:
    return math.prod(_NAMED[factor] if factor in _NAMED else int(factor) for factor in text.split(" * "))
