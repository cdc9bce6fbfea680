"""Comparisons, the functions of truth values, and the choice between two tensors."""

from __future__ import annotations

from collections.abc import Callable

from graphc.graph.node import Node
from graphc.onnx.site import RULES, Site
from graphc.ops import elementwise as ew

_PLAIN: dict[str, Callable[..., Node]] = {
    "Where": ew.where, "Equal": ew.equal, "Less": ew.less, "LessOrEqual": ew.less_equal, "Greater": ew.greater,
    "GreaterOrEqual": ew.greater_equal, "And": ew.mul, "Or": ew.maximum, "Xor": ew.not_equal,
    "Not": lambda x: ew.equal(x, 0),
}  # fmt: skip
"""Operators that are one function of graphc, whose operands are the node's inputs."""


def _plain(function: Callable[..., Node]) -> Callable[[Site], Node]:
    return lambda site: function(*site.tensors())


for _operator, _function in _PLAIN.items():
    RULES.setdefault(("", _operator), _plain(_function))
