"""Gathering rows of a table by index, and its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.graph.node import Node
from graphc.ops.anchor import Anchor
from graphc.ops.registry import Sample, float_type, op
from graphc.types import N, Shape, Size, TensorType, product


@dataclass(frozen=True)
class GatherSpec:
    """``count`` rows of ``width`` elements out of a table of ``rows``."""

    rows: Size
    width: Size
    count: Size


def _index_values(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Draw a float table or cotangent, and indices below 5, in the order of the op's inputs."""
    return [rng.integers(0, 5, s) if len(s) == 2 and s[1] == 4 else rng.standard_normal(s) for s in shapes]


_INDICES = TensorType("int32", (N, 4))


@op(
    lambda cls: [
        Sample(cls(), (float_type(5, 3), _INDICES), values=_index_values),
        Sample(cls(), (float_type(5, 2, 3), _INDICES), values=_index_values),
        Sample(cls(), (TensorType("int64", (5, 3)), _INDICES), values=_index_values),
        Sample(cls(), (TensorType("bool", (5, 2)), _INDICES), values=_index_values),
    ]
)
@dataclass(frozen=True)
class Take(Anchor):
    """out[i, :] = table[index[i], :]; an index outside the table reads its nearest row."""

    label: ClassVar[str] = "take"
    template: ClassVar[str] = "take"
    operand_names: ClassVar[tuple[str, ...]] = ("table", "index")

    @property
    def formula(self) -> str:
        """The lookup."""
        return "out[k][d] = table[index[k]][d]"

    def infer(self, *types: TensorType) -> TensorType:
        """Require integer indices and a table with rows."""
        table, index = types
        if index.dtype not in ("int32", "int64", "uint8"):
            raise DTypeError(f"needs integer indices, got {index}")
        if table.rank < 1:
            raise ShapeError(f"needs a table with rows, got {table}")
        return table.with_shape((*index.shape, *table.shape[1:]))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Add the cotangent's rows into the table."""
        table, index = node.inputs
        return ScatterAdd(table.shape)(cotangent, index), None

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Index."""
        return arrays[0][np.clip(arrays[1].astype(np.int64), 0, len(arrays[0]) - 1)]

    def spec(self, out: TensorType, *types: TensorType) -> GatherSpec:
        """Return the extents."""
        table, index = types
        return GatherSpec(table.shape[0], product(table.shape[1:]), index.size)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return zero: it only copies."""
        return 0

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return no indices: the flattened result takes no epilogue."""
        return ()


@op(lambda cls: [Sample(cls((5, 3)), (float_type(N, 4, 3), _INDICES), values=_index_values)])
@dataclass(frozen=True)
class ScatterAdd(Anchor):
    """out[index[i], :] += rows[i, :] on zeros, in the order of the indices: the transpose of Take."""

    label: ClassVar[str] = "scatter_add"
    template: ClassVar[str] = "scatter_add"
    operand_names: ClassVar[tuple[str, ...]] = ("rows", "index")
    shape: Shape

    @property
    def formula(self) -> str:
        """The sum."""
        return "out[r][d] = sum_{k: index[k] = r} rows[k][d]"

    def infer(self, *types: TensorType) -> TensorType:
        """Require as many rows as indices."""
        rows, index = types
        if rows.shape != (*index.shape, *self.shape[1:]):
            raise ShapeError(f"rows {rows} do not fit indices {index} and a table {self.shape}")
        return rows.with_shape(self.shape)

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Gather the cotangent's rows."""
        return Take()(cotangent, node.inputs[1]), None

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Add row by row."""
        rows, index = arrays
        out = np.zeros(tuple(int(str(d)) for d in self.shape), rows.dtype)
        np.add.at(out, np.clip(index.astype(np.int64), 0, len(out) - 1), rows)
        return out

    def spec(self, out: TensorType, *types: TensorType) -> GatherSpec:
        """Return the extents."""
        return GatherSpec(out.shape[0], product(out.shape[1:]), types[1].size)

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return one addition an element."""
        return types[0].size

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return no indices: it takes no epilogue."""
        return ()


def take(table: Node, index: Node) -> Node:
    """Return the rows of a table at integer indices: shape ``index.shape + table.shape[1:]``."""
    return Take()(table, index)
