"""Matrix products, with transposes as attributes and NumPy's broadcasting of leading axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.graph.node import Node, names_the_line, operators
from graphc.ops.anchor import Anchor
from graphc.ops.movement import reshape
from graphc.ops.reduce import sum_to
from graphc.ops.registry import float_type, op
from graphc.types import N, Shape, Size, TensorType, broadcast_shapes, contiguous_strides, product, shape_text


@dataclass(frozen=True)
class MatMulSpec:
    """Loops of a matrix product: ``batch`` products of (rows, depth) by (depth, columns).

    ``lead`` are the leading extents; the leading strides of both operands are 0 where they are broadcast.
    """

    rows: Size
    columns: Size
    depth: Size
    transpose_a: bool
    transpose_b: bool
    lead: Shape
    lead_strides_a: Shape
    lead_strides_b: Shape


@op(
    lambda cls: [
        (cls(False, False), (float_type(N, 5), float_type(5, 7))),
        (cls(False, True), (float_type(N, 19), float_type(6, 19))),
        (cls(True, False), (float_type(N, 5), float_type(N, 18))),
        (cls(True, True), (float_type(5, 4), float_type(N, 5))),
        (cls(False, False), (float_type(N, 2, 3, 5), float_type(N, 2, 5, 4))),
        (cls(False, True), (float_type(N, 1, 3, 5), float_type(2, 4, 5))),
    ]
)
@dataclass(frozen=True)
class MatMul(Anchor):
    """``C = op(A) op(B)`` over the last two axes; op is the transpose where the attribute says so."""

    label: ClassVar[str] = "matmul"
    template: ClassVar[str] = "matmul"
    operand_names: ClassVar[tuple[str, ...]] = ("a", "b")
    transpose_a: bool = False
    transpose_b: bool = False

    @property
    def attributes(self) -> str:
        """Which operand is transposed."""
        return "A" + "ᵀ" * self.transpose_a + " B" + "ᵀ" * self.transpose_b

    @property
    def formula(self) -> str:
        """The sum over the inner axis."""
        a = "a[k][i]" if self.transpose_a else "a[i][k]"
        return f"out[i][j] = sum_k {a} * {'b[j][k]' if self.transpose_b else 'b[k][j]'}"

    def _extents(self, a: TensorType, b: TensorType) -> tuple[Size, Size, Size, Size]:
        rows, depth_a = a.shape[-2:][:: -1 if self.transpose_a else 1]
        depth_b, columns = b.shape[-2:][:: -1 if self.transpose_b else 1]
        return rows, depth_a, depth_b, columns

    def infer(self, *types: TensorType) -> TensorType:
        """Require equal inner extents, floating-point dtypes and leading axes that broadcast."""
        a, b = types
        if a.rank < 2 or b.rank < 2:
            raise ShapeError(f"needs matrices, got {shape_text(a.shape)} and {shape_text(b.shape)}")
        if not a.is_float or a.dtype != b.dtype:
            raise DTypeError(f"needs floating-point tensors of one dtype, got {a} and {b}")
        rows, depth_a, depth_b, columns = self._extents(a, b)
        if depth_a != depth_b:
            raise ShapeError(
                f"inner extents differ: {shape_text(a.shape)} by {shape_text(b.shape)} ({self.attributes})"
            )
        return a.with_shape((*broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns))

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Multiply the cotangent by the other factor."""
        a, b = node.inputs
        ta, tb = self.transpose_a, self.transpose_b
        da = MatMul(tb, True)(b, cotangent) if ta else MatMul(False, not tb)(cotangent, b)
        db = MatMul(True, ta)(cotangent, a) if tb else MatMul(not ta, False)(a, cotangent)
        return sum_to(da, a.shape), sum_to(db, b.shape)

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Multiply."""
        a, b = arrays
        left = a.swapaxes(-1, -2) if self.transpose_a else a
        return np.asarray(left @ (b.swapaxes(-1, -2) if self.transpose_b else b))

    def spec(self, out: TensorType, *types: TensorType) -> MatMulSpec:
        """Return the extents and the leading strides."""
        a, b = types
        rows, depth, _, columns = self._extents(a, b)
        lead = out.shape[:-2]
        return MatMulSpec(
            rows, columns, depth, self.transpose_a, self.transpose_b, lead,
            _lead_strides(a.shape, lead), _lead_strides(b.shape, lead),
        )  # fmt: skip

    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return two operations a multiply-add."""
        return out.size * self._extents(*types)[1] * 2


def _lead_strides(shape: Shape, lead: Shape) -> Shape:
    strides = contiguous_strides(shape)[:-2]
    own = shape[:-2]
    new = len(lead) - len(own)
    return tuple(0 if a < new or own[a - new] == 1 else strides[a - new] for a in range(len(lead)))


@names_the_line
def matmul(a: Node, b: Node) -> Node:
    """Return the matrix product as ``numpy.matmul`` defines it, vectors and leading axes included.

    Raises:
        ShapeError: an operand is a scalar or the inner extents differ.
    """
    if a.rank == 0 or b.rank == 0:
        raise ShapeError("matmul: operands must not be scalars")
    left, right = as_matrices(a, b)
    if right.rank == 2 and left.rank > 2:  # leading axes of A are just more rows
        rows = reshape(left, (product(left.shape[:-1]), left.shape[-1]))
        out = reshape(MatMul()(rows, right), (*left.shape[:-1], right.shape[-1]))
    else:
        out = MatMul()(left, right)
    return without_added_axes(out, a, b)


def as_matrices(a: Node, b: Node) -> tuple[Node, Node]:
    """Return the factors of a product, a vector on the left as one row and one on the right as one column."""
    left = reshape(a, (1, *a.shape)) if a.rank == 1 else a
    return left, reshape(b, (*b.shape, 1)) if b.rank == 1 else b


def without_added_axes(out: Node, a: Node, b: Node) -> Node:
    """Return a product without the axes that ``as_matrices`` gave its factors."""
    shape = list(out.shape)
    if b.rank == 1:
        del shape[-1]
    if a.rank == 1:
        del shape[len(shape) - (1 if b.rank == 1 else 2)]
    return reshape(out, shape)


operators["matmul"] = matmul
