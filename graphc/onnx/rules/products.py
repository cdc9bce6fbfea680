"""Matrix products."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.rules.contraction import whole_matmul
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.matmul import MatMul, matmul
from graphc.ops.movement import transpose

_LARGEST_DETERMINANT = 4  # 40 products; larger ones need pivots


@rule("Gemm")
def gemm(site: Site) -> Node:
    """``alpha * op(A) op(B) + beta * C``."""
    a, b = site.tensor(0), site.tensor(1)
    if a.rank != 2 or b.rank != 2:
        raise UnsupportedError(f"expected two matrices, got {a.type} and {b.type}")
    transposed = bool(site.get("transA", 0)), bool(site.get("transB", 0))
    if a.type.is_float:
        out = MatMul(*transposed)(a, b, name=site.label)
    else:
        out = whole_matmul(*(transpose(x) if t else x for x, t in zip((a, b), transposed, strict=True)))
    out = _scaled(out, site.get("alpha", 1.0))
    return out + _scaled(site.tensor(2), site.get("beta", 1.0)) if site.has(2) else out


def _scaled(x: Node, factor: float) -> Node:
    if x.type.is_float:
        return ew.mul(x, factor)
    if factor != int(factor):
        raise UnsupportedError(f"the factor {factor} of {x.dtype}")
    return ew.mul(x, int(factor))


@rule("MatMul")
def matrix_product(site: Site) -> Node:
    """As NumPy's."""
    a, b = site.tensor(0), site.tensor(1)
    return matmul(a, b) if a.type.is_float else whole_matmul(a, b)


@rule("Det")
def determinant(site: Site) -> Node:
    """By cofactors, of small matrices."""
    x = site.tensor(0)
    size = x.shape[-1] if x.rank > 1 else 0
    if x.rank < 2 or x.shape[-2] != size or not isinstance(size, int) or size > _LARGEST_DETERMINANT:
        raise UnsupportedError(f"a determinant of {x.type}; square matrices up to {_LARGEST_DETERMINANT}")
    return _cofactors(x, tuple(range(size)), tuple(range(size)))


def _cofactors(x: Node, rows: tuple[int, ...], columns: tuple[int, ...]) -> Node:
    """Return the determinant of a part of each matrix, expanded along its first row."""
    first = [x[..., rows[0], c] for c in columns]
    if len(rows) == 1:
        return first[0]
    total: Node | None = None
    for k, element in enumerate(first):
        part = element * _cofactors(x, rows[1:], columns[:k] + columns[k + 1 :])
        total = part if total is None else total - part if k % 2 else total + part
    assert total is not None
    return total
