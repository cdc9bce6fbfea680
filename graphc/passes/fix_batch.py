"""Write the batch as a number: a module for one sample at a time needs no loop over samples, nor code for several.

before: input x (N, 1, 32, 32)
after:  input x (1, 1, 32, 32)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from graphc.graph.node import Node, apply, rebuild
from graphc.ops.leaves import BatchExtent, full
from graphc.types import Extent


def fix_batch(outputs: Mapping[str, Node], batch: int) -> dict[str, Node]:
    """Return the graph with every extent that depends on the run-time batch taken at this one."""

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
        op: Any = node.op  # every op is a dataclass, which the abstract base does not say
        values = {f.name: getattr(op, f.name) for f in fields(op)}
        fixed = {name: _at(value, batch) for name, value in values.items()}
        if fixed == values:
            return None
        if isinstance(op, BatchExtent):
            return full((), float(fixed["size"]), op.dtype)
        return apply(replace(op, **fixed), inputs, node.name, node.source)

    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))


def _at(value: Any, batch: int) -> Any:
    if isinstance(value, Extent):
        return value.at(batch)
    if type(value) is tuple:
        return tuple(_at(item, batch) for item in value)
    return value
