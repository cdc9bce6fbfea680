"""Refuses nodes of ONNX's operator sets below 7 that mean something else there than in those that rules follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.onnx.package import onnx_package
from graphc.onnx.site import UnsupportedError
from graphc.types import Shape

_SAYS_WHAT_IS_SO = {"consumed_inputs", "broadcast", "is_test"}


def check_old(node: Any, version: int, shapes: Sequence[Shape | None]) -> None:
    """Refuse what an old operator set gives another meaning: below 6, every operator that has changed since.

    Its ``broadcast`` puts the second input's axes beside the last ones of the first, as NumPy does, or from ``axis``
    on: those are the same where the axes end together.

    Raises:
        UnsupportedError: there is such a thing.
    """
    onnx, given = onnx_package(), {a.name: a for a in node.attribute}
    try:
        now, then = (onnx.defs.get_schema(node.op_type, v, "") for v in (7, version))
    except onnx.defs.SchemaError:
        return  # an operator that one of them does not have: there is no rule that could be wrong about it
    if version < 6 and now.since_version != then.since_version:
        raise UnsupportedError(f"operator set {version} gives it another meaning than those from 7 on")
    known = now.attributes
    for name in given:
        if name in known or (name in _SAYS_WHAT_IS_SO and (name == "consumed_inputs" or given[name].i == 1)):
            continue
        ends = [len(s) for s in shapes if s is not None]
        if name == "axis" and "broadcast" in given and len(ends) == 2 and ends[0] == given[name].i + ends[1]:
            continue
        raise UnsupportedError(f"its attribute {name!r} is one of operator sets before 7")
    if node.op_type in ("BatchNormalization", "Dropout") and "is_test" not in given:
        raise UnsupportedError("without is_test=1 its meaning before operator set 7 is that of training")
