"""The nodes that a graph's outputs need, in an order in which each can be computed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from graphc.errors import GraphError


def needed_nodes(graph: Any, file: str) -> list[tuple[int, Any]]:
    """Return the nodes that the outputs depend on and the position of each in the file, sorted.

    Nodes that nothing depends on are left out, so that they need not be supported. The order is that of the file,
    unless a node there comes before what it reads.

    Raises:
        GraphError: two values have the same name, or nodes depend on each other.
    """
    nodes = list(graph.node)
    producer = _producers(graph, nodes, file)
    sources = [{producer[n] for n in reads(node) if n in producer} for node in nodes]
    wanted: set[int] = set()
    waiting = [producer[o.name] for o in graph.output if o.name in producer]
    while waiting:
        k = waiting.pop()
        if k not in wanted:
            wanted.add(k)
            waiting.extend(sources[k] - wanted)
    order = _sorted(wanted, sources)
    if len(order) < len(wanted):
        caught = sorted(wanted - set(order))[:5]
        named = ", ".join(repr(nodes[k].name or ", ".join(nodes[k].output)) for k in caught)
        raise GraphError(f"onnx: {file}: these nodes depend on their own results: {named}")
    return [(k, nodes[k]) for k in order]


def reads(node: Any) -> Iterator[str]:
    """Yield the names that a node depends on: its inputs, and what the graphs in its attributes see around them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():  # GRAPH, GRAPHS
            own = {v.name for v in (*graph.input, *graph.initializer)} | {
                name for inner in graph.node for name in inner.output
            }
            seen = {name for inner in graph.node for name in reads(inner)} | {o.name for o in graph.output}
            yield from seen - own


def _producers(graph: Any, nodes: Sequence[Any], file: str) -> dict[str, int]:
    """Return which node computes each name."""
    for kind, given in (
        ("inputs", graph.input),
        ("initializers", graph.initializer),
        ("outputs", graph.output),
    ):
        names = [v.name for v in given]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise GraphError(f"onnx: {file}: two {kind} are called {twice!r}")
    taken = {v.name for v in (*graph.input, *graph.initializer)}
    producer: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in taken or name in producer:
                raise GraphError(f"onnx: {file}: {node.op_type} {node.name!r}: {name!r} has a value already")
            producer[name] = k
    return producer


def _sorted(wanted: set[int], sources: Sequence[set[int]]) -> list[int]:
    """Return those of the nodes that do not depend on themselves, each after its sources, earlier ones first."""
    missing = {k: len(sources[k]) for k in wanted}
    users: dict[int, list[int]] = {k: [] for k in wanted}
    for k in wanted:
        for source in sources[k]:
            users[source].append(k)
    ready = [k for k, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        k = heapq.heappop(ready)
        order.append(k)
        for user in users[k]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    return order
