"""What ptxas says of each kernel: registers, shared memory, and memory for what found no register."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '(?P<symbol>[^']+)' for '(?P<architecture>[^']+)'")
_STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_LOCAL = re.compile(r"(\d+) bytes lmem")


@dataclass(frozen=True)
class Assembled:
    """One kernel for one architecture. ``memory`` is what it keeps in local memory: stack, spills; in bytes."""

    name: str
    architecture: str
    registers: int
    shared: int
    memory: int

    def __str__(self) -> str:
        """Return ``conv1_conv2d (sm_90)``."""
        return f"{self.name} ({self.architecture})"


def plain_name(symbol: str) -> str:
    """Return a function's own name from its mangled one: ``_Z8update_1PfPKf`` is ``update_1``."""
    found = re.match(r"_ZL?(\d+)", symbol)
    return symbol[found.end() :][: int(found[1])] if found else symbol


def read(text: str) -> list[Assembled]:
    """Return the kernels of what ``nvcc -Xptxas -v`` printed.

    Raises:
        ValueError: a kernel lacks a line, as with another ptxas whose words are not known here.
    """
    parts = list(_ENTRY.finditer(text))
    kernels = []
    for part, after in zip(parts, [*(p.start() for p in parts[1:]), len(text)], strict=True):
        said = text[part.end() : after]
        stack, used = _STACK.search(said), _USED.search(said)
        if stack is None or used is None:
            raise ValueError(f"ptxas says nothing of the registers or the stack of {part['symbol']}")
        shared, local = _SHARED.search(said), _LOCAL.search(said)
        memory = max(*map(int, stack.groups()), int(local[1]) if local else 0)
        kernels.append(
            Assembled(
                plain_name(part["symbol"]),
                part["architecture"],
                int(used["registers"]),
                int(shared[1]) if shared else 0,
                memory,
            )
        )
    return kernels
