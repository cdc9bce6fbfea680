"""Which forward kernels run once more in the backward pass, so that what they give need not be kept until then.

A kernel that runs again is the same function on the same bytes, so that every bit of every result stays.

Two rules stand here. *Cheap kernels* run again by default: elementwise work on tensors that are kept in any case.
Of a convolution, its batch norm and its ReLU, only the batch norm's input is kept. *Segments* run again where a
budget of memory asks for it: the forward pass is cut where few bytes are alive, and of the pieces between two cuts
some are kept and some are computed again, as costs the fewest operations.

Source: the second is the checkpointing of Chen et al. 2016, "Training deep nets with sublinear memory cost", with
the choice of Feng and Huang 2021, "Optimal gradient checkpoint search for arbitrary computation graphs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphc.lower.arena import buffer_bytes
from graphc.lower.replay import replay
from graphc.program.ir import Buffer, Call, Space
from graphc.types import at

_CHEAP = 16  # operations an element
_WORTH = 4096  # bytes: smaller tensors are kept


def middle_of(calls: Sequence[Call]) -> int | None:
    """Return the step that writes the loss of a training step: what is before is forward, what is after backward."""
    for step, call in enumerate(calls):
        if any(b.space is Space.OUTPUT and b.name == "loss" for b in call.buffers):
            return step
    return None


@dataclass
class _Use:
    """The steps that write and read a buffer."""

    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)


def _uses(calls: Sequence[Call]) -> dict[Buffer, _Use]:
    found: dict[Buffer, _Use] = {}
    for step, call in enumerate(calls):
        for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True):
            use = found.setdefault(buffer, _Use())
            (use.writes if operand.written else use.reads).append(step)
    return found


def _written(call: Call) -> list[Buffer]:
    return [b for o, b in zip(call.kernel.operands, call.buffers, strict=True) if o.written]


def _read(call: Call) -> list[Buffer]:
    return [b for o, b in zip(call.kernel.operands, call.buffers, strict=True) if not o.written]


def rerun_cheap(calls: Sequence[Call], batch: int) -> list[Call]:
    """Return the calls of a training step with cheap kernels run again where the backward pass wants their results.

    before: relu stored in the forward pass, read by the next convolution and by the gradient of its weights
    after:  read by the next convolution; computed again from the batch norm's input for the gradient
    """
    middle = middle_of(calls)
    if middle is None:
        return list(calls)
    uses = _uses(calls)
    dropped: set[Buffer] = set()
    again: dict[int, list[Call]] = {}
    for step, call in enumerate(calls[:middle]):
        late = {
            buffer: min(reads)
            for buffer in _written(call)
            if (reads := [r for r in uses[buffer].reads if r > middle])
            and buffer.space is Space.ARENA
            and uses[buffer].writes == [step]
            and buffer_bytes(buffer, batch) >= _WORTH
        }
        copy = replay(call, late)
        if not late or copy is None or not _is_cheap(copy):
            continue
        first = min(late.values())
        if all(_is_there(b, first, uses, dropped) for b in _read(copy)):
            dropped.update(late)
            again.setdefault(first, []).append(copy)
    return run_again(calls, again)


def _is_cheap(call: Call) -> bool:
    """Whether a kernel does few operations for each element that it writes."""
    elements = sum(at(b.size, 1) for b in _written(call))
    return at(call.kernel.flops, 1) <= _CHEAP * elements


def _is_there(buffer: Buffer, step: int, uses: Mapping[Buffer, _Use], dropped: set[Buffer]) -> bool:
    """Whether a buffer is in memory at a step without being kept for longer than it is."""
    if buffer.space is not Space.ARENA:
        return True
    return buffer not in dropped and max(uses[buffer].reads) >= step


def run_again(calls: Sequence[Call], again: Mapping[int, Sequence[Call]]) -> list[Call]:
    """Return the calls with others in front of some steps, whose results are read from there on.

    ``again`` maps a step to the calls in front of it, in order. They write what was written before, to new buffers.
    """
    names = {b.name for call in calls for b in call.buffers}
    renamed: dict[Buffer, Buffer] = {}
    result: list[Call] = []
    for step, call in enumerate(calls):
        for copy in again.get(step, ()):
            for buffer in dict.fromkeys(_written(copy)):
                renamed[buffer] = replace(buffer, name=_fresh(f"{buffer.name}_again", names))
            result.append(_renamed(copy, renamed))
        result.append(_renamed(call, renamed))
    return result


def _renamed(call: Call, renamed: Mapping[Buffer, Buffer]) -> Call:
    return replace(call, buffers=tuple(renamed.get(b, b) for b in call.buffers))


def _fresh(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found
