"""Replay the calls of every entry point on tagged bytes: who wrote what a kernel is about to read?

Independent of the planner and of in-place reuse: it sees only calls, operands and offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.memory import ArenaPlan
from graphc.program.ir import Buffer, Call, Entry, Program, Space
from graphc.types import ITEMSIZE, at

_READ_ONLY = {Space.INPUT, Space.PARAMS}


class ReplayError(AssertionError):
    """A kernel would read bytes that do not hold what it expects, or write where it must not."""


class _Memory:
    """The arena as one tag per byte (0: never written), and the other spaces as sets of written buffers."""

    def __init__(self, program: Program, entry: Entry, batch: int):
        self.offsets = program.offsets[entry.name]
        self.batch = batch
        self.tags = np.zeros(max(1, self.offsets[""]), dtype=np.int64)
        self.numbers: dict[Buffer, int] = {}
        self.written: set[Buffer] = set()

    def bytes_of(self, buffer: Buffer) -> slice:
        begin = self.offsets[buffer.name]
        end = begin + at(buffer.size, self.batch) * ITEMSIZE[buffer.dtype]
        if end > len(self.tags):
            raise ReplayError(f"{buffer.name} ends at byte {end} of an arena of {len(self.tags)}")
        return slice(begin, end)

    def read(self, buffer: Buffer, where: str) -> None:
        if buffer.space is Space.ARENA:
            number = self.numbers.get(buffer)
            found = self.tags[self.bytes_of(buffer)]
            if number is None or not np.all(found == number):
                raise ReplayError(f"{where} reads {buffer.name}, whose bytes hold something else")
        elif buffer.space in (Space.OUTPUT, Space.GRADS) and buffer not in self.written:
            raise ReplayError(f"{where} reads the result {buffer.name} before it is computed")

    def write(self, buffer: Buffer) -> None:
        self.written.add(buffer)
        if buffer.space is Space.ARENA:
            number = self.numbers.setdefault(buffer, len(self.numbers) + 1)
            self.tags[self.bytes_of(buffer)] = number


def _overlap(memory: _Memory, buffers: Sequence[Buffer], outputs: Sequence[Buffer], where: str) -> None:
    """Refuse a call one of whose results shares bytes with another operand: pointers are ``restrict``."""
    for out in outputs:
        for other in buffers:
            if other is out or out.space is not Space.ARENA or other.space is not Space.ARENA:
                continue
            a, b = memory.bytes_of(out), memory.bytes_of(other)
            if a.start < b.stop and b.start < a.stop:
                raise ReplayError(f"{where} writes {out.name} over its operand {other.name}")


def replay(program: Program, batch: int | None = None) -> int:
    """Return the number of calls replayed.

    Raises:
        ReplayError: a call reads what was overwritten or never written, writes over an operand of its own,
            writes parameters or inputs, writes state before the commit, or leaves a result unwritten.
    """
    count = 0
    for entry in program.entries:
        memory = _Memory(program, entry, batch or program.batch)
        first_commit = entry.commit or len(entry.calls)
        for number, call in enumerate(entry.calls):
            where = f"{entry.name}, call {number} ({', '.join(call.nodes[:3])})"
            _step(memory, entry, call, where, committing=number >= first_commit)
            count += 1
        for argument in entry.outputs:
            if argument.buffer not in memory.written:
                raise ReplayError(f"{entry.name} never writes the output {argument.name}")
    return count


def _step(memory: _Memory, entry: Entry, call: Call, where: str, *, committing: bool) -> None:
    pairs = list(zip(call.kernel.operands, call.buffers, strict=True))
    if len(pairs) != len(call.buffers):
        raise ReplayError(f"{where}: operands and buffers do not match")
    for operand, buffer in pairs:
        if not operand.written or operand.name == "inout":
            memory.read(buffer, where)
    outputs = [b for o, b in pairs if o.written]
    _overlap(memory, call.buffers, outputs, where)
    for buffer in outputs:
        forbidden = buffer.space in _READ_ONLY or (buffer.space is Space.STATE and not committing)
        if forbidden or (buffer.space is Space.FOLDED and entry.name != "fold"):
            raise ReplayError(f"{where} writes {buffer.name} in {buffer.space.value}")
        memory.write(buffer)


def check_plan(plan: ArenaPlan) -> None:
    """Assert that no two buffers that live at once share bytes, and that nothing leaves the arena."""
    placed = list(zip(plan.intervals, plan.offsets, strict=True))
    for k, (a, start_a) in enumerate(placed):
        assert start_a >= 0
        assert start_a + a.size <= plan.arena_bytes
        for b, start_b in placed[:k]:
            apart_in_time = a.upper <= b.lower or b.upper <= a.lower
            apart_in_space = start_a + a.size <= start_b or start_b + b.size <= start_a
            assert apart_in_time or apart_in_space, (a, b)
