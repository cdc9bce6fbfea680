"""What a well-formed graph is: the check that runs between the compiler's steps."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.errors import GraphcError, GraphError
from graphc.graph.node import Node, topological


def verify(outputs: Mapping[str, Node]) -> None:
    """Check that the graph is acyclic and that every node has the type that its op infers.

    Raises:
        GraphError: it is not; the message names the node and the user's line.
    """
    for node in topological(outputs.values()):
        try:
            inferred = node.op.infer(*(i.type for i in node.inputs))
        except GraphcError as error:
            raise GraphError(f"ill-typed graph: {node!r}: {error}") from None
        if inferred != node.type:
            raise GraphError(f"ill-typed graph: {node!r} should have type {inferred}")
