"""Products by a large matrix that is read where it lies, once: its kernel packs a chunk at a time, for all rows.

The pass ``pack`` makes these after differentiation where weights change before they are used again: packing them
ahead would write and read as many bytes as the whole product, and take as many in the arena.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.ops.packed import Packed
from graphc.types import Shape, Size, TensorType

SUM_BYTES = 2**15  # of the sums of all rows, on a thread's stack
PANEL_BYTES = 2**14  # of a chunk: half of a first cache


def sums_fit(rows: int, lanes: int, itemsize: int) -> bool:
    """Return whether a thread's stack is to hold the sums of so many rows."""
    return rows * lanes * itemsize <= SUM_BYTES


@dataclass(frozen=True)
class ChunkedMatMulSpec:
    """Loops of such a product."""

    rows: Size
    depth: int
    columns: int
    transpose_b: bool
    lanes: int
    sums: int
    panel_bytes: int


@dataclass(frozen=True)
class ChunkedMatMul(Packed):
    """``out[i][j] = sum_k a[i][k] * b[k][j]``, or ``b[j][k]`` where b is transposed.

    Every sum is taken in the order of k, as by :class:`~graphc.ops.packed.PackedMatMul`: the bits are the same.
    """

    label: ClassVar[str] = "matmul"
    template: ClassVar[str] = "chunked_matmul"
    operand_names: ClassVar[tuple[str, ...]] = ("a", "b")
    transpose_b: bool
    lanes: int
    sums: int  # vectors of sums that are worth having beside each other
    panel_bytes: int = PANEL_BYTES

    @property
    def attributes(self) -> str:
        """Whether B is transposed, and the vector."""
        return f"A {'Bᵀ' if self.transpose_b else 'B'}, {self.lanes} columns a vector, in chunks"

    @property
    def formula(self) -> str:
        """The sum."""
        return f"out[i][j] = sum_k a[i][k] * {'b[j][k]' if self.transpose_b else 'b[k][j]'}"

    def result(self, *shapes: Shape) -> Shape:
        """Return (rows, columns)."""
        a, b = shapes
        return (a[0], b[0 if self.transpose_b else 1])

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Multiply."""
        a, b = arrays
        return np.asarray(a @ (b.T if self.transpose_b else b))

    def spec(self, out: TensorType, *types: TensorType) -> ChunkedMatMulSpec:
        """Return the extents."""
        depth, columns = types[0].shape[1], out.shape[1]
        assert isinstance(depth, int) and isinstance(columns, int)
        return ChunkedMatMulSpec(
            out.shape[0], depth, columns, self.transpose_b, self.lanes, self.sums, self.panel_bytes
        )

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a multiply-add."""
        return out.size * types[0].shape[1] * 2

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the loop indices of a matrix."""
        return ("i", "j")
