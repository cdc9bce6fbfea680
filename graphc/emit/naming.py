"""What a kernel is called: after the user's layer, else after what it writes or which parameter it reads."""

from __future__ import annotations

import re

from graphc.lower.names import words
from graphc.program.ir import Call, Kernel, Space

# Names of these say little about a fused kernel in which something else happens.
_MINOR = words(
    "add sub mul div neg where equal not_equal less less_equal greater greater_equal cast square expand "
    "reshape identity reciprocal stop_gradient"
)
_LONGEST = 40


def kernel_name(kernel: Kernel, call: Call) -> str:
    """Return a name for a kernel's function, not always unique: ``conv1_conv2d``, ``fc1_bias_grad``."""
    kind = (
        _kind(call)
        if kernel.template == "loops"
        else re.sub("^(chunked|packed|winograd)_", "", kernel.template)
    )
    updated = [
        b.name
        for o, b in zip(kernel.operands, call.buffers, strict=True)
        if o.written and b.space is Space.PARAMS
    ]
    if updated:
        return f"{updated[0]}_update"
    gradients = [b.name.removeprefix("grad.") for b in call.buffers if b.space is Space.GRADS]
    written = [
        b.name
        for o, b in zip(kernel.operands, call.buffers, strict=True)
        if o.written and b.space is Space.OUTPUT
    ]
    read = [b.name for b in call.buffers if b.space is Space.PARAMS]
    if len(gradients) == 1:
        return f"{gradients[0]}_grad"
    if gradients:
        layers = {g.rpartition(".")[0] for g in gradients}
        return (
            f"{layers.pop()}_grads"
            if len(layers) == 1 and "" not in layers
            else f"{gradients[0]}_and_other_grads"
        )
    if call.layer:
        return f"{call.layer}_{kind}"
    if written:
        return f"{written[0]}_{kind}"
    return f"{kind}_{read[0]}" if read else f"{kind}_kernel"


def _kind(call: Call) -> str:
    """Return the operations of a loop kernel that characterise it."""
    titles = [node.rpartition("(")[2].rstrip(")") for node in call.nodes]
    whole = [t for t in titles if t.removesuffix("_backward") not in _MINOR]
    chosen = list(dict.fromkeys(whole or titles[-2:]))
    kind = ""
    for title in chosen[:4]:
        if kind and (
            len(kind) + len(title) >= _LONGEST
            or title.removesuffix("_backward") in chosen[:4][: kind.count("_")]
        ):
            break
        kind = f"{kind}_{title}" if kind else title
    return kind
