"""Writing rows into a copy of a table by index, or combining them with what stands there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.graph.node import Node
from graphc.ops.anchor import Anchor
from graphc.ops.elementwise import cast, equal, where
from graphc.ops.gather import Take
from graphc.ops.leaves import full
from graphc.ops.movement import expand, reshape
from graphc.ops.reduce import iota
from graphc.ops.registry import Sample, float_type, op
from graphc.types import N, Shape, Size, TensorType, product

Combination = Literal["set", "mul", "max", "min"]
_UFUNCS: dict[str, np.ufunc] = {"mul": np.multiply, "max": np.maximum, "min": np.minimum}


@dataclass(frozen=True)
class ScatterSpec:
    """``count`` rows of ``width`` elements into a table of ``rows``."""

    rows: Size
    width: Size
    count: Size
    kind: Combination
    floats: bool


def _values(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Draw a table, indices some of which are equal, and rows."""
    table, index, rows = shapes
    return [rng.standard_normal(table), rng.integers(0, 5, index), rng.standard_normal(rows)]


def _samples(cls: Any) -> list[Sample]:
    index, rows = TensorType("int32", (N, 4)), float_type(N, 4, 3)
    whole = TensorType("int64", (7,))
    return [
        Sample(cls("set"), (float_type(5, 3), index, rows), values=_values),
        Sample(cls("mul"), (float_type(5, 3), index, rows), values=_values, smooth=False),
        Sample(cls("max"), (float_type(5, 3), index, rows), values=_values, smooth=False),
        Sample(cls("min"), (TensorType("int64", (5,)), whole, whole), values=_values),
    ]


@op(_samples)
@dataclass(frozen=True)
class Scatter(Anchor):
    """out = table; then out[index[i], :] is set to rows[i, :], or combined with it, in the order of the indices.

    An index outside the table means its nearest row.
    """

    label: ClassVar[str] = "scatter"
    template: ClassVar[str] = "scatter"
    operand_names: ClassVar[tuple[str, ...]] = ("table", "index", "rows")
    kind: Combination

    @property
    def attributes(self) -> str:
        """What happens to an element that is there."""
        return self.kind

    @property
    def formula(self) -> str:
        """The assignment."""
        sign = {"set": "=", "mul": "*="}.get(self.kind, f"= {self.kind} with")
        return f"out = table; out[index[k]][d] {sign} rows[k][d]"

    def infer(self, *types: TensorType) -> TensorType:
        """Require integer indices, and as many rows of the table's type."""
        table, index, rows = types
        if index.dtype not in ("int32", "int64"):
            raise DTypeError(f"needs int32 or int64 indices, got {index}")
        if table.dtype != rows.dtype or (table.dtype == "bool" and self.kind != "set"):
            raise DTypeError(f"{self.kind}: rows {rows} do not fit a table {table}")
        if table.rank < 1 or rows.shape != (*index.shape, *table.shape[1:]):
            raise ShapeError(f"rows {rows} do not fit indices {index} and a table {table}")
        return table

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Give rows their cotangent where no later one has replaced them, and the table the rest.

        Raises:
            ShapeError: rows are multiplied or compared, which has no derivative here.
        """
        if self.kind != "set":
            raise ShapeError(f"scatter: {self.kind} has no derivative yet")
        table, index, rows = node.inputs
        order = reshape(iota((index.type.size,), 0), index.shape)
        last = Scatter("set")(full(table.shape[:1], -1, "int64"), index, order)
        kept = cast(equal(Take()(last, index), order), cotangent.dtype)
        wide = reshape(kept, (*index.shape, *[1] * (table.rank - 1)))
        zeros = full(rows.shape, 0.0, cotangent.dtype)
        reaches = where(expand(wide, rows.shape), Take()(cotangent, index), zeros)
        return Scatter("set")(cotangent, index, zeros), None, reaches

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Assign, or combine, row by row."""
        table, index, rows = arrays
        out = np.array(table)
        where_to = np.clip(index.astype(np.int64), 0, len(out) - 1)
        if self.kind != "set":
            _UFUNCS[self.kind].at(out, where_to, rows)
            return out
        for position in np.ndindex(index.shape):
            out[where_to[position]] = rows[position]
        return out

    def spec(self, out: TensorType, *types: TensorType) -> ScatterSpec:
        """Return the extents."""
        return ScatterSpec(out.shape[0], product(out.shape[1:]), types[1].size, self.kind, out.is_float)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return one operation an element, unless it is copied."""
        return 0 if self.kind == "set" else types[2].size

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return no indices: it takes no epilogue."""
        return ()


def scatter(table: Node, index: Node, rows: Node, kind: Combination = "set") -> Node:
    """Return the table with rows at integer indices set, multiplied, or replaced by the larger or smaller one."""
    return Scatter(kind)(table, index, rows)
