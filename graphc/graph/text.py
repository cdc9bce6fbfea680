"""Graphs as text: one line a node, in topological order, with names that follow the user's."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.graph.node import Node, topological


def name_nodes(order: list[Node]) -> dict[Node, str]:
    """Return a short unique name for every node: the user's where there is one, else op and number."""
    names: dict[Node, str] = {}
    taken: set[str] = set()
    for number, node in enumerate(order):
        base = node.name or f"{node.op.title}_{number}"
        name = base if base not in taken else f"{base}_{number}"
        taken.add(name)
        names[node] = name
    return names


def print_graph(outputs: Mapping[str, Node]) -> str:
    """Return the graph as text: name, type, op, operands, attributes and the user's line."""
    order = topological(outputs.values())
    names = name_nodes(order)
    lines = []
    for node in order:
        operands = ", ".join(names[i] for i in node.inputs)
        attributes = f" {{{node.op.attributes}}}" if node.op.attributes else ""
        lines.append(f"{names[node]}: {node.type} = {node.op.title}({operands}){attributes}  # {node.source}")
    lines += [f"return {key} = {names[node]}" for key, node in outputs.items()]
    return "\n".join(lines) + "\n"
