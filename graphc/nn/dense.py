"""Fully connected layers, embeddings, and flattening in front of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.errors import RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.initialisers import Normal, Uniform
from graphc.nn.arguments import Initial, as_count, is_int, make_parameter
from graphc.ops.control import bounded, stop_gradient
from graphc.ops.elementwise import equal, where
from graphc.ops.gather import take
from graphc.ops.leaves import Scope
from graphc.ops.matmul import MatMul
from graphc.ops.movement import reshape
from graphc.ops.registry import Sample, float_type, register
from graphc.types import DType, N, TensorType, product, shape_text


def linear(
    x: Node,
    features: int,
    *,
    name: str | None = None,
    bias: bool | Node = True,
    weight: Node | Initial | None = None,
    initial_bias: Initial | None = None,
    trainable: bool = True,
) -> Node:
    """Return ``x @ weight.T + bias`` with weight (features, in) and bias (features,).

    ``weight`` and ``bias`` may be another layer's tensors, to share them; ``weight`` and
    ``initial_bias`` may be first values: an initialiser, a number or an array.

    Shapes: x (..., in) gives (..., features). Initial values: Uniform(+-1/sqrt(in)), as PyTorch.

    Raises:
        ShapeError: x has no axes, or shared or initial values do not fit.
        RangeError: ``features`` is not a positive int.
    """
    if x.rank < 1 or not isinstance(x.shape[-1], int):
        raise located(ShapeError, "linear", name, f"expected (..., in), got {shape_text(x.shape)}")
    features = as_count(features, "linear", name, "features")
    inner = x.shape[-1]
    if isinstance(weight, Node) and weight.shape != (features, inner):
        if weight.rank == 2 and weight.shape[1] != inner:
            message = f"expected {shape_text((*x.shape[:-1], weight.shape[1]))}, got {shape_text(x.shape)}"
        else:
            message = f"expected a weight ({features}, {inner}), got {shape_text(weight.shape)}"
        raise located(ShapeError, "linear", name, message)
    scope = Scope("linear", name)
    first = Uniform() if weight is None else weight
    matrix = make_parameter(scope, "weight", (features, inner), first, x.dtype, trainable)
    rows = reshape(x, (product(x.shape[:-1]), inner)) if x.rank != 2 else x
    out = MatMul(False, True)(rows, matrix, name=name)
    if bias is not False:
        first = Uniform(fan_in=inner) if initial_bias is None else initial_bias
        value = bias if isinstance(bias, Node) else first
        out = out + make_parameter(scope, "bias", (features,), value, x.dtype, trainable)
    return reshape(out, (*x.shape[:-1], features)) if x.rank != 2 else out


def flatten(x: Node, start: int = 1) -> Node:
    """Return x with the axes from ``start`` on as one.

    Raises:
        RangeError: x has no such axis.
    """
    if not -x.rank <= start < x.rank:
        raise located(RangeError, "flatten", None, f"axis {start} is out of range for {shape_text(x.shape)}")
    start %= x.rank
    return reshape(x, (*x.shape[:start], product(x.shape[start:])))


def embedding(
    index: Node,
    rows: int,
    width: int,
    *,
    name: str | None = None,
    weight: Node | Initial | None = None,
    padding_index: int | None = None,
    trainable: bool = True,
    dtype: str = "float32",
) -> Node:
    """Return the rows of a table (rows, width) at integer indices: shape ``index.shape + (width,)``.

    Initial values: Normal(0, 1), as PyTorch. The row at ``padding_index`` gets no gradient; unlike
    PyTorch's it starts like the others unless ``weight`` says otherwise. An input with an index outside
    0..rows-1 is refused before anything runs; a computed index reads the nearest row.

    Raises:
        RangeError: rows or width is not a positive int, or ``padding_index`` is no row.
    """
    rows = as_count(rows, "embedding", name, "rows")
    width = as_count(width, "embedding", name, "width")
    first = Normal() if weight is None else weight
    real: DType = "float64" if dtype == "float64" else "float32"
    table = make_parameter(Scope("embedding", name), "weight", (rows, width), first, real, trainable)
    if padding_index is None:
        return take(table, bounded(index, 0, rows))
    if not is_int(padding_index) or not -rows <= padding_index < rows:
        message = f"padding_index {padding_index!r} is no row of a table of {rows}"
        raise located(RangeError, "embedding", name, message)
    index = bounded(index, 0, rows)
    found = take(table, index)
    padding = reshape(equal(index, padding_index % rows), (*index.shape, 1))
    return where(padding, stop_gradient(found), found)


def _draw_indices(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [rng.integers(0, 5, shapes[0]), rng.standard_normal(shapes[1])]


_INDEX = TensorType("int32", (N, 4))

register(
    "linear",
    lambda: [
        Sample(
            lambda x, w, b: linear(x, 5, weight=w, bias=b),
            (float_type(N, 2, 3), float_type(5, 3), float_type(5)),
            lambda x, w, b: np.einsum("nti,oi->nto", x, w) + b,
        ),
        Sample(
            lambda x, w: linear(x, 4, weight=w, bias=False),
            (float_type(3), float_type(4, 3)),
            lambda x, w: w @ x,
        ),
    ],
)
register(
    "embedding",
    lambda: [
        Sample(
            lambda index, table: embedding(index, 5, 3, weight=table),
            (_INDEX, float_type(5, 3)),
            lambda index, table: np.stack([np.stack([table[i] for i in row]) for row in index]),
            values=_draw_indices,
        )
    ],
)
