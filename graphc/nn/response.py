"""Local response normalisation, the competition between neighbouring channels of the nets of 2012 to 2014."""

from __future__ import annotations

from graphc.errors import RangeError, ShapeError
from graphc.graph.node import Node, located
from graphc.ops.elementwise import pow, square
from graphc.ops.movement import pad
from graphc.types import shape_text


def local_response_norm(
    x: Node, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Node:
    """Return ``x / (k + alpha/size * sum of squares over size neighbouring channels)**beta``.

    Channels outside count as zero. The paper's alpha is ``alpha/size`` here, as in PyTorch.
    Source: Krizhevsky, Sutskever and Hinton 2012, section 3.3.

    Raises:
        ShapeError: x has no channel axis.
        RangeError: the size is not positive.
    """
    if x.rank < 3 or not isinstance(x.shape[1], int):
        raise located(
            ShapeError, "local_response_norm", None, f"expected (N, C, ...), got {shape_text(x.shape)}"
        )
    if size < 1:
        raise located(RangeError, "local_response_norm", None, f"size must be positive, got {size}")
    channels = x.shape[1]
    none = [(0, 0)] * (x.rank - 2)
    squares = pad(square(x), [(0, 0), (size // 2, (size - 1) // 2), *none])
    total = squares[:, 0:channels]
    for shift in range(1, size):
        total = total + squares[:, shift : shift + channels]
    return x * pow(k + total * (alpha / size), -beta)
