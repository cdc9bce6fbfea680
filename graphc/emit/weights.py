"""What an exported module's C knows of its weights file: its size, its blocks, and the graph that it belongs to."""

from __future__ import annotations

from graphc.program.ir import Program
from graphc.types import ITEMSIZE

HEADER_BYTES = 128
CONTEXT_BYTES = 512  # of any module's context, with room to spare
DEVICE_CONTEXT_BYTES = 1024  # of one for a device
_ALIGN = 64


def weights_context(program: Program, graph: str, context_bytes: int) -> dict[str, object]:
    """Return what the templates need. ``graph`` is the digest that the file must have, 64 hexadecimal digits."""
    item = ITEMSIZE[program.dtype]
    trains = any(entry.name == "train_step" for entry in program.entries)
    elements = {
        "params": program.params_size,
        "slots": program.slots_size,
        "state": program.states_size,
        "folded": 0,
    }
    if not trains:
        elements = {**dict.fromkeys(elements, 0), "folded": program.folded_size}
    sizes = [-(-count * item // _ALIGN) * _ALIGN for count in elements.values()]
    frozen = -(-program.frozen_size * item // _ALIGN) * _ALIGN
    weights = HEADER_BYTES + sum(sizes) + frozen
    upper = program.name.upper()
    blocks = (*elements.values(), program.grads_size, program.folded_size)
    mutable = sum(-(-count * item // _ALIGN) * _ALIGN for count in blocks) if trains else 0
    digest = ", ".join(f"0x{graph[k : k + 2]}" for k in range(0, len(graph), 2))
    areas = [
        ("weights", weights, "the weights file"),
        ("constant", frozen if trains else weights, "what no call writes: contexts may share it"),
        ("mutable", mutable, "parameters, gradients, the optimizer's state, statistics, folded values"),
        ("scratch", program.arena_bytes, "the arena, whose content matters to no later call"),
    ]
    return {
        "graph": graph,
        "digest": digest,
        "trains": trains,
        "sizes": sizes,
        "frozen_bytes": frozen,
        "blocks": [
            {"name": name, "macro": f"{upper}_{_MACROS[name]}"} for name, count in elements.items() if count
        ],
        "clears_grads": trains and program.grads_size > 0,
        "context_bytes": context_bytes,
        "areas": [{"name": name, "bytes": size, "doc": doc} for name, size, doc in areas],
        "functions": [*(name for name, _, _ in areas), *(f"arena_{e.name}" for e in program.entries)],
    }


_MACROS = {"params": "PARAMS", "slots": "SLOTS", "state": "STATE", "folded": "FOLDED"}
