"""What crosses between host and device beside the arrays of a call: batches that are staged, results of a step."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphc.emit.c import Emitter
from graphc.emit.text import C_TYPE, signature
from graphc.lower.names import words
from graphc.program.ir import Argument, Entry, Program
from graphc.types import ITEMSIZE, at

ALIGN = 256  # of an array among others in one block of memory
# What staging.cu.j2 and entries.cu.j2 call something in functions that have arguments.
NAMES = words(
    "check_staged device_result kind launches replay results room_to_stage run slot staged staged_batch staged_for "
    "status stream waited"
)


def rounded(size: int) -> int:
    """Return bytes as the place behind them begins."""
    return -(-size // ALIGN) * ALIGN


def staged_bytes(program: Program) -> int:
    """Return the bytes of the largest batch of inputs; 0 where no entry point has any."""
    return max(
        sum(rounded(_most_bytes(a, program)) for a in entry.inputs) for entry in program.entries
    )  # fmt: skip


def staging_context(emitter: Emitter, entry: Entry) -> dict[str, object] | None:
    """Return how the inputs of an entry point are staged; None where it has none."""
    if not entry.inputs:
        return None
    program, inputs, offset = emitter.program, [], 0
    parameters = [f"{program.name}_context *context", "int64_t batch"]
    for a in entry.inputs:
        variable = emitter.arguments[a.name]
        inputs.append({
            "variable": variable, "ctype": C_TYPE[a.dtype], "offset": offset, "size": emitter.size_text(a),
        })  # fmt: skip
        parameters += [f"const {C_TYPE[a.dtype]} *{variable}", f"size_t {variable}_bytes"]
        offset += rounded(_most_bytes(a, program))
    checks = emitter.argument_checks(entry, entry.inputs)
    names = [a["variable"] for a in inputs]
    return {
        "number": 1 + program.entries.index(entry),
        "signature": signature(f"int {program.name}_stage_{entry.name}", parameters),
        "inputs": inputs,
        "checks": checks,
        "uses_n": any(re.search(r"\bN\b", check) for check in checks),
        "absent": " && ".join(f"{n} == NULL && {n}_bytes == 0" for n in names),
    }


def results_context(emitter: Emitter, outputs: Sequence[Argument]) -> list[dict[str, object]]:
    """Return where a training step leaves its results for the host."""
    found: list[dict[str, object]] = []
    offset = 0
    for a in outputs:
        size = _most_bytes(a, emitter.program)
        found.append({"variable": emitter.arguments[a.name], "offset": offset, "bytes": size})
        offset += rounded(size)
    return found


def result_bytes(program: Program) -> int:
    """Return the bytes of a training step's results; 0 where there is none."""
    steps = [entry for entry in program.entries if entry.name == "train_step"]
    return sum(rounded(_most_bytes(a, program)) for entry in steps for a in entry.outputs)


def _most_bytes(argument: Argument, program: Program) -> int:
    return at(argument.buffer.size, program.batch) * ITEMSIZE[argument.dtype]
