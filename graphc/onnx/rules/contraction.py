"""Sums of products over named axes: Einsum, and products of whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.matmul import as_matrices, matmul, without_added_axes
from graphc.ops.movement import expand, reshape, transpose
from graphc.ops.reduce import iota, sum
from graphc.types import Size, broadcast_shapes, product


@dataclass(frozen=True)
class _Term:
    """A tensor whose axes have names, all different."""

    tensor: Node
    names: str

    def extent(self, name: str) -> Size:
        return self.tensor.shape[self.names.index(name)]

    def ordered(self, names: str) -> Node:
        """Return the tensor with its axes in this order, which names each of them."""
        return transpose(self.tensor, [self.names.index(n) for n in names])

    def aligned(self, names: str) -> Node:
        """Return the tensor with these axes, which have extent 1 where it has none of the name."""
        own = self.ordered("".join(n for n in names if n in self.names))
        return reshape(own, [self.extent(n) if n in self.names else 1 for n in names])

    def summed(self, kept: str) -> _Term:
        """Return the term summed over the axes that are not kept."""
        axes = [a for a, n in enumerate(self.names) if n not in kept]
        names = "".join(n for n in self.names if n in kept)
        return _Term(sum(self.tensor, axes), names) if axes else self


def _diagonal(tensor: Node, names: str) -> _Term:
    """Return a term in which no name occurs twice, from the elements whose indices are equal there."""
    for name in dict.fromkeys(names):
        while names.count(name) > 1:
            first, last = names.index(name), names.rindex(name)
            if tensor.shape[first] != tensor.shape[last]:
                raise UnsupportedError(f"a diagonal {name!r} of {tensor.type}")
            on = ew.equal(iota(tensor.shape, first), iota(tensor.shape, last))
            tensor = sum(ew.where(on, tensor, 0), last)
            names = names[:last] + names[last + 1 :]
    return _Term(tensor, names)


def _contracted(a: _Term, b: _Term, kept: str) -> _Term:
    """Multiply two terms and sum over the names that are not kept."""
    a, b = a.summed(kept + b.names), b.summed(kept + a.names)
    shared = [n for n in a.names if n in b.names]
    batch = "".join(n for n in shared if n in kept)
    inner = "".join(n for n in shared if n not in kept)
    rows = "".join(n for n in a.names if n not in b.names)
    columns = "".join(n for n in b.names if n not in a.names)
    names = batch + rows + columns
    if not inner:
        return _Term(a.aligned(names) * b.aligned(names), names)
    if not a.tensor.type.is_float:
        every = names + inner
        summed = tuple(range(len(names), len(every)))
        return _Term(sum(a.aligned(every) * b.aligned(every), summed), names)

    def extents(term: _Term, chosen: str) -> list[Size]:
        return [term.extent(n) for n in chosen]

    lead = extents(a, batch)
    left = reshape(
        a.ordered(batch + rows + inner), (*lead, product(extents(a, rows)), product(extents(a, inner)))
    )
    right = reshape(
        b.ordered(batch + inner + columns), (*lead, product(extents(b, inner)), product(extents(b, columns)))
    )
    return _Term(reshape(matmul(left, right), (*lead, *extents(a, rows), *extents(b, columns))), names)


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the names of every operand's axes and of the result's; those of an ellipsis get free letters."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks):
        raise UnsupportedError(f"the equation {equation!r} has {len(operands)} operands, not {len(ranks)}")
    free = [c for c in ascii_letters if c not in equation]
    hidden = max(
        (rank - len(o) + 3 for o, rank in zip(operands, ranks, strict=True) if "..." in o), default=0
    )
    if len(free) < hidden or hidden < 0:
        raise UnsupportedError(f"the equation {equation!r} does not fit")
    rest = "".join(free[:hidden])

    def named(text: str, rank: int) -> str:
        size = rank - len(text) + 3
        found = text.replace("...", rest[len(rest) - size :] if size else "") if "..." in text else text
        if len(found) != rank or not all(c in ascii_letters for c in found):
            raise UnsupportedError(f"{text!r} of the equation {equation!r} does not name {rank} axes")
        return found

    names = [named(o, rank) for o, rank in zip(operands, ranks, strict=True)]
    if arrow:
        result = right.replace("...", rest)
        if len(set(result)) < len(result) or not set(result) <= set("".join(names)):
            raise UnsupportedError(f"the result of the equation {equation!r} is not one of its names each")
        return names, result
    plain = left.replace(".", "").replace(",", "")
    return names, rest + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))


@rule("Einsum")
def einsum(site: Site) -> Node:
    """Any number of operands, two at a time from the left; products of two that sum are matrix products."""
    tensors = site.tensors()
    names, result = _parsed(site.get("equation", ""), [t.rank for t in tensors])
    terms = [_diagonal(t, n) for t, n in zip(tensors, names, strict=True)]
    terms = _stretched(terms)
    term = terms[0]
    for k, other in enumerate(terms[1:], 2):
        later = "".join(t.names for t in terms[k:])
        term = _contracted(term, other, result + later)
    return term.summed(result).ordered(result)


def _stretched(terms: Sequence[_Term]) -> list[_Term]:
    """Return terms in which a name has one extent: axes of extent 1 are repeated, as in NumPy."""
    sizes: dict[str, Size] = {}
    for term in terms:
        for name in term.names:
            (sizes[name],) = broadcast_shapes((sizes.get(name, 1),), (term.extent(name),))
    stretched = []
    for term in terms:
        shape = tuple(sizes[n] for n in term.names)
        tensor = term.tensor if term.tensor.shape == shape else expand(term.tensor, shape)
        stretched.append(_Term(tensor, term.names))
    return stretched


def whole_matmul(a: Node, b: Node) -> Node:
    """Return the product of matrices of whole numbers as ``numpy.matmul`` defines it, in one fused sum.

    Raises:
        UnsupportedError: an operand is a scalar, or the inner extents differ.
    """
    if a.rank == 0 or b.rank == 0:
        raise UnsupportedError("a product of scalars")
    left, right = as_matrices(a, b)
    if left.shape[-1] != right.shape[-2]:
        raise UnsupportedError(f"inner extents of {a.type} by {b.type} differ")
    spread = reshape(left, (*left.shape, 1)) * reshape(right, (*right.shape[:-2], 1, *right.shape[-2:]))
    return without_added_axes(sum(spread, -2), a, b)
