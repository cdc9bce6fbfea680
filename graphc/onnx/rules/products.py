"""Matrix products."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.site import Site, rule
from graphc.ops import elementwise as ew
from graphc.ops.matmul import MatMul, matmul


@rule("Gemm")
def gemm(site: Site) -> Node:
    """``alpha * op(A) op(B) + beta * C``."""
    product = MatMul(bool(site.get("transA", 0)), bool(site.get("transB", 0)))
    out = ew.mul(product(site.tensor(0), site.tensor(1), name=site.label), site.get("alpha", 1.0))
    return out + ew.mul(site.tensor(2), site.get("beta", 1.0)) if site.has(2) else out


@rule("MatMul")
def matrix_product(site: Site) -> Node:
    """As NumPy's."""
    return matmul(site.tensor(0), site.tensor(1))
