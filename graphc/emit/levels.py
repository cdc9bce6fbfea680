"""One library for several levels of a processor: every function looks which level is there and calls that one's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FUNCTION = re.compile(r"^((?:const )?\w+ \**)(\w+)\(([^;]*)\);", re.MULTILINE)


@dataclass(frozen=True)
class Level:
    """A level: the prefix of its functions, and what the processor must have, by the compiler's names."""

    name: str
    features: tuple[str, ...]


def levels_context(name: str, declarations: str, levels: Sequence[Level]) -> dict[str, object]:
    """Return what the template of the functions that choose is given.

    Args:
        name: the module's name, which the declarations have.
        declarations: of all its functions.
        levels: from the one that needs most to the one that runs everywhere.
    """
    functions = []
    for returned, function, parameters in _FUNCTION.findall(declarations):
        declared = [" ".join(p.split()) for p in parameters.split(",") if p != "void"]
        functions.append(
            {
                "returned": returned,
                "name": function.removeprefix(f"{name}_"),
                "parameters": ", ".join(declared) or "void",
                "arguments": ", ".join(_argument(name, p) for p in declared),
            }
        )
    return {"name": name, "levels": [vars(level) for level in levels], "functions": functions}


def _argument(name: str, parameter: str) -> str:
    """Return a parameter as it is handed on: the context is one of the level's own type."""
    variable = re.split(r"[ *]", parameter)[-1]
    if f"{name}_context" not in parameter:
        return variable
    return f"({'const ' if parameter.startswith('const ') else ''}void *){variable}"
