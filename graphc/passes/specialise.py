"""Choose training or inference, and take the guiding ops out of the graph.

before: relu(mode_switch(batch_norm by batch statistics, batch_norm by running statistics))
after:  relu(batch_norm by running statistics)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graphc.errors import GraphError
from graphc.graph.node import Node, apply, rebuild, topological
from graphc.ops.control import Bounded, KnownSlope, ModeSwitch, StopGradient, Updating
from graphc.ops.leaves import Input, RandomKey, RandomUniform


@dataclass(frozen=True)
class Specialised:
    """A graph for one mode: its outputs, the states' new values, and the bounds of its integer inputs."""

    outputs: dict[str, Node]
    updates: dict[Node, Node]
    bounds: tuple[tuple[Node, Bounded], ...]


def specialise(outputs: Mapping[str, Node], training: bool) -> Specialised:
    """Return the graph for training or for inference.

    Random streams are numbered by their order in the graph, so that two builds of the same program
    draw the same numbers. What steers differentiation stays in a training graph, which is still to be
    differentiated; :func:`without_gradient_rules` takes it out then.
    """
    names = list(outputs)
    chosen = rebuild(list(outputs.values()), lambda node, inputs: _choose(node, inputs, training))
    streams: dict[RandomKey, int] = {}
    bounds: dict[tuple[Node, Bounded], None] = {}
    updates: dict[Node, Node] = {}

    def strip(node: Node, inputs: tuple[Node, ...]) -> Node | None:
        op = node.op
        if isinstance(op, RandomUniform) and isinstance(op.stream, RandomKey):
            return apply(replace(op, stream=streams.setdefault(op.stream, len(streams))), ())
        if isinstance(op, (StopGradient, KnownSlope)) and not training:
            return inputs[0]
        if isinstance(op, Bounded):
            if isinstance(inputs[0].op, Input):
                bounds[inputs[0], op] = None
            return inputs[0]
        if isinstance(op, Updating):
            _, state, new = inputs
            if state in updates and updates[state] is not new:
                raise GraphError(
                    f"state {state.name or state.op.title!r} is updated twice in one step, at {node.source}"
                )
            updates[state] = new
            return inputs[0]
        return None

    stripped = rebuild(chosen, strip)
    return Specialised(dict(zip(names, stripped, strict=True)), updates if training else {}, tuple(bounds))


def without_gradient_rules(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Return a graph that has been differentiated without what only differentiation reads."""
    nodes = rebuild(
        list(outputs.values()),
        lambda node, inputs: inputs[0] if isinstance(node.op, (StopGradient, KnownSlope)) else None,
    )
    return dict(zip(outputs, nodes, strict=True))


def _choose(node: Node, inputs: tuple[Node, ...], training: bool) -> Node | None:
    if isinstance(node.op, ModeSwitch):
        return inputs[0 if training else 1]
    if isinstance(node.op, Updating) and not training:
        return inputs[0]
    return None


def leaves_of(outputs: Mapping[str, Node]) -> list[Node]:
    """Return the leaves that the outputs need, in topological order."""
    return [n for n in topological(outputs.values()) if not n.inputs]
