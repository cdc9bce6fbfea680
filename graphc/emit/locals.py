"""Names of emitted code that no two things of a scope share, and the variables of an entry point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from graphc.emit.text import C_TYPE
from graphc.lower.names import c_name
from graphc.program.ir import Buffer, Entry, Program, Space

SPACES = {
    Space.PARAMS: "params",
    Space.GRADS: "grads",
    Space.SLOTS: "slots",
    Space.STATE: "state",
    Space.FOLDED: "folded",
    Space.FROZEN: "frozen",
}
"""What the blocks of memory are called."""


class Identifiers:
    """Hands out identifiers of one scope; an inner scope starts with those of the outer."""

    def __init__(self, taken: set[str]):
        """Start with what is taken."""
        self.taken = set(taken)

    def fresh(self, text: str, with_size: bool = False) -> str:
        """Return text as an identifier, numbered if taken; ``with_size`` also takes ``name_bytes``."""
        base, number = c_name(text), 1
        name = base
        while name in self.taken or (with_size and f"{name}_bytes" in self.taken):
            number += 1
            name = f"{base}_{number}"
        self.taken |= {name, f"{name}_bytes"} if with_size else {name}
        return name


class Locals:
    """The variables of an entry point that point at buffers."""

    def __init__(self, program: Program, entry: Entry, arguments: Mapping[str, str], taken: set[str]):
        """Begin with the arguments' variables; ``taken`` are names of the scopes around."""
        self.dtype = program.dtype
        self.offsets = program.offsets[entry.name]
        self.names_taken = Identifiers(taken)
        self.names: dict[Buffer, str] = {}
        self.lines: dict[Buffer, str] = {}
        self.written = {
            b
            for call in entry.calls
            for o, b in zip(call.kernel.operands, call.buffers, strict=True)
            if o.written
        }
        users = Counter(b for call in entry.calls for b in set(call.buffers) if b.space is Space.ARENA)
        self.workspaces = {b for b, calls in users.items() if calls == 1}
        for a in (*entry.inputs, *entry.outputs):
            self.names[a.buffer] = arguments[a.name]

    def name(self, buffer: Buffer) -> str:
        """Return the variable of a buffer, declaring it at its first use."""
        if buffer not in self.names:
            name = self.names_taken.fresh(buffer.name)
            ctype = C_TYPE[buffer.dtype]
            pointer = f"{'' if buffer in self.written else 'const '}{ctype} *"
            if buffer.space is Space.ARENA:
                place = f"({ctype} *)(arena + {self.offsets[buffer.name]})"
            else:
                place = f"memory->{SPACES[buffer.space]}" + (f" + {buffer.offset}" if buffer.offset else "")
                if buffer.dtype != self.dtype:  # a constant of another type among the weights
                    place = f"({pointer})({place})"
            self.names[buffer] = name
            self.lines[buffer] = f"{pointer}const {name} = {place}; /* {buffer.size} */"
        return self.names[buffer]
