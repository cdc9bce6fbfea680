"""Instruction sets, as far as the choice of register tiles depends on them.

A tile is made of vectors of sums that live in registers: how long a vector is, and how many fit beside each
other, differs. The emitted C is correct with every compiler and instruction set; it is fast on its own.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from graphc.errors import RangeError
from graphc.types import ITEMSIZE, DType

_SUMS = 8  # vectors beside each other at the most: two units with a latency of four cycles are busy then


@dataclass(frozen=True)
class Isa:
    """A vector instruction set: bytes in a register, and how many registers there are.

    ``packed_bytes`` is the length of the vectors that weights are packed to, one register or several.
    ``repeats`` says whether a multiply-add reads and repeats a factor from memory, without a register for it.
    ``packs`` says whether weights are packed into vectors at all. ``small`` are processors with some dozens of KiB of
    memory: no copies of weights, and short arrays on the stack.
    """

    name: str
    register_bytes: int
    registers: int
    packed_bytes: int
    repeats: bool = False
    small: bool = False
    packs: bool = True

    def lanes(self, channels: int, dtype: DType) -> int:
        """Return how many channels a packed vector holds: half of one for few, so that fewer lanes idle."""
        full = max(self.packed_bytes // ITEMSIZE[dtype], 2)
        return full // 2 if channels <= full // 2 and full > 2 else full

    def register_lanes(self, channels: int, dtype: DType) -> int:
        """Return how many channels one register holds, half of it for few channels."""
        full = max(self.register_bytes // ITEMSIZE[dtype], 2)
        return full // 2 if channels <= full // 2 and full > 4 else full

    def room(self, lanes: int, dtype: DType) -> int:
        """Return how many packed vectors of sums fit into registers, beside one of weights and a factor."""
        parts = max(1, lanes * ITEMSIZE[dtype] // self.register_bytes)
        return max(1, (self.registers - (0 if self.repeats else 1)) // parts - 1)

    def sums(self, lanes: int, dtype: DType) -> int:
        """Return how many of them are worth having: the units are busy with a few."""
        return min(_SUMS, self.room(lanes, dtype))


# Threads in blocks: every thread computes elements of its own, and tiles of operands are shared by blocks.
SIMT = Isa("simt", 4, 64, 4, packs=False)
AVX512 = Isa("avx512", 64, 32, 64, repeats=True)
ISAS = {
    isa.name: isa
    for isa in (
        AVX512,
        Isa("avx2", 32, 16, 64),
        Isa("neon", 16, 32, 32),
        Isa("sse2", 16, 16, 32),
    )
}
SMALL = Isa("m4", 8, 16, 8, small=True)  # a Cortex-M4: pairs of its 32 scalar registers
# Macros by which compilers tell what they compile for, in the order of preference.
_MACROS = (("__AVX512VL__", "avx512"), ("__FMA__", "avx2"), ("__ARM_NEON", "neon"), ("__SSE2__", "sse2"))


def isa_named(name: str) -> Isa:
    """Return the instruction set of that name.

    Raises:
        RangeError: there is none.
    """
    known = {**ISAS, SMALL.name: SMALL, SIMT.name: SIMT}
    if name not in known:
        raise RangeError(f"isa {name!r} is unknown; there are {', '.join(known)}")
    return known[name]


def isa_of(macros: str) -> str:
    """Return the name of the instruction set that a compiler's predefined macros tell of."""
    defined = {
        line.split()[1]
        for line in macros.splitlines()
        if line.startswith("#define ") and len(line.split()) > 1
    }
    return next((name for macro, name in _MACROS if macro in defined), usual_isa())


def usual_isa() -> str:
    """Return what a processor of this kind has at the least."""
    return "neon" if platform.machine().lower() in ("arm64", "aarch64") else "sse2"
