"""Kernels of the forward pass that run once more in the backward pass, so that what they give is not kept until then.

A kernel that runs again is the same function on the same bytes, so that every bit of every result stays. By default
that is done where it costs next to nothing: elementwise work on tensors that are kept in any case. So of a
convolution, its batch norm and its ReLU only the batch norm's input is kept, and its statistics. What else runs
again, and when, is decided in :mod:`graphc.lower.budget`.

Source: keeping one tensor of batch norm and activation is the idea of Rota Bulo, Porzi and Kontschieder 2018,
"In-place activated BatchNorm for memory-optimized training of DNNs"; here it is the input that is kept, since a ReLU
cannot be inverted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphc.lower.arena import buffer_bytes
from graphc.lower.replay import replay
from graphc.program.ir import Buffer, Call, Space
from graphc.types import at

CHEAP = 16
"""Operations for each element written, up to which a kernel is cheap."""

WORTH = 4096
"""Bytes from which on a tensor is worth computing again."""

Block = tuple[int, int]
"""Steps of the forward pass, or of a part of it that runs again: first, and last + 1."""


@dataclass
class Use:
    """The steps that write and read a buffer."""

    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)


def uses_of(calls: Sequence[Call]) -> dict[Buffer, Use]:
    """Return which steps write and read each buffer."""
    found: dict[Buffer, Use] = {}
    for step, call in enumerate(calls):
        for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True):
            use = found.setdefault(buffer, Use())
            (use.writes if operand.written else use.reads).append(step)
    return found


def written(call: Call) -> list[Buffer]:
    """Return the buffers that a call writes."""
    return [b for o, b in zip(call.kernel.operands, call.buffers, strict=True) if o.written]


def read(call: Call) -> list[Buffer]:
    """Return the buffers that a call reads."""
    return [b for o, b in zip(call.kernel.operands, call.buffers, strict=True) if not o.written]


def rerun_cheap(calls: Sequence[Call], blocks: Iterable[Block], batch: int) -> list[Call]:
    """Return the calls of a training step with cheap kernels run again where the backward pass wants their results.

    before: relu stored in the forward pass, read by the next convolution and by the gradient of its weights
    after:  read by the next convolution; computed again from the batch norm's input for the gradient

    The kernels are those in ``blocks``; the backward pass of a block is what follows it.
    """
    uses = uses_of(calls)
    dropped: set[Buffer] = set()
    again: dict[int, list[Call]] = {}
    for buffer, end in _candidates(uses, blocks, batch):
        first = min((r for r in uses[buffer].reads if r >= end), default=None)
        copies = [replay(calls[step], {buffer}) for step in uses[buffer].writes]
        found = [copy for copy in copies if copy is not None and _is_cheap(copy)]
        if first is None or len(found) < len(copies):
            continue
        if all(_is_there(b, first, uses, dropped) for copy in found for b in read(copy)):
            dropped.add(buffer)
            again.setdefault(first, []).extend(found)
    return run_again(calls, again)[0]


def _candidates(
    uses: Mapping[Buffer, Use], blocks: Iterable[Block], batch: int
) -> Iterator[tuple[Buffer, int]]:
    """Yield the buffers that a block writes and nobody else, in order, with the end of the block."""
    for begin, end in blocks:
        for buffer, use in uses.items():
            inside = use.writes and all(begin <= step < end for step in use.writes)
            if inside and buffer.space is Space.ARENA and buffer_bytes(buffer, batch) >= WORTH:
                yield buffer, end


def _is_cheap(call: Call) -> bool:
    """Whether a kernel does few operations for each element that it writes."""
    elements = sum(at(b.size, 1) for b in written(call))
    return at(call.kernel.flops, 1) <= CHEAP * elements


def _is_there(buffer: Buffer, step: int, uses: Mapping[Buffer, Use], dropped: set[Buffer]) -> bool:
    """Whether a buffer is in memory at a step without being kept for longer than it is."""
    if buffer.space is not Space.ARENA:
        return is_as_before(buffer, step, uses)
    return buffer not in dropped and max(uses[buffer].reads, default=-1) >= step


def is_as_before(buffer: Buffer, step: int, uses: Mapping[Buffer, Use]) -> bool:
    """Whether no kernel ahead of a step has updated a parameter."""
    return buffer.space is not Space.PARAMS or all(write >= step for write in uses[buffer].writes)


def run_again(calls: Sequence[Call], again: Mapping[int, Sequence[Call]]) -> tuple[list[Call], list[Block]]:
    """Return the calls with others in front of some steps, whose results are read from there on; and where those are.

    ``again`` maps a step to the calls in front of it, in order. They write what was written before, to new buffers; a
    result outside the arena (a metric) is written once more where it is.
    """
    names = {b.name for call in calls for b in call.buffers}
    renamed: dict[Buffer, Buffer] = {}
    result: list[Call] = []
    blocks: list[Block] = []
    for step, call in enumerate(calls):
        begin = len(result)
        copies = again.get(step, ())
        # One new buffer for all that write parts of an old one.
        for buffer in dict.fromkeys(b for copy in copies for b in written(copy) if b.space is Space.ARENA):
            renamed[buffer] = replace(buffer, name=_fresh(f"{buffer.name}_again", names))
        for copy in copies:
            result.append(_renamed(replace(copy, again=True), renamed))
        if len(result) > begin:
            blocks.append((begin, len(result)))
        result.append(_renamed(call, renamed))
    return result, blocks


def _renamed(call: Call, renamed: Mapping[Buffer, Buffer]) -> Call:
    return replace(call, buffers=tuple(renamed.get(b, b) for b in call.buffers))


def _fresh(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found
