"""Names of an ONNX graph, which may be any text, as identifiers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KEYWORDS = {"lr", "out"}  # of module.train_step and module.predict


def identifier(name: str, dots: bool = False) -> str:
    """Return a name with '_' for what no identifier may have."""
    text = re.sub(r"[^A-Za-z0-9_.]" if dots else r"\W", "_", name, flags=re.ASCII).strip("." if dots else "")
    return (text if re.match(r"[A-Za-z_]", text) else f"t{text}")[:150]


def numbered(name: str) -> Iterable[str]:
    """Yield the name, and then the name with a number behind it, 2 and so on."""
    yield name
    k = 1
    while True:
        k += 1
        yield f"{name}_{k}"


def unique_names(names: Iterable[str]) -> dict[str, str]:
    """Return an identifier for each name, all different, and none that the runtime's calls have themselves."""
    found: dict[str, str] = {}
    for name in names:
        taken = {*found.values(), *_KEYWORDS}
        found[name] = next(n for n in numbered(identifier(name)) if n not in taken)
    return found
