"""The story of one node: where it was written, what it computes, its derivative, its kernels, its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from graphc import scalar
from graphc.errors import GraphcError, UnknownNameError
from graphc.graph.node import Node, topological
from graphc.graph.text import name_nodes
from graphc.inspection.describe import Inspected
from graphc.lower.arena import middle_of
from graphc.memory import ArenaPlan, Interval
from graphc.ops.anchor import Anchor
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import Input
from graphc.program.ir import Call, Entry, Space

_MODES = {"predict": "inference", "train_step": "training"}
_MOST = 6  # names in a list


def explain(module: Inspected, name: str) -> str:
    """Return the story of a node of the net as it was written, under its name there or the user's.

    Raises:
        UnknownNameError: there is no such node; the message has names like it.
    """
    order = topological(module.compiled.graphs["written"].values())
    names = name_nodes(order)
    node = next((n for n in order if names[n] == name), None)
    if node is None:
        node = next((n for n in order if n.name == name), None)
    if node is None:
        like = get_close_matches(name, list(names.values()), 5, 0.4) or list(names.values())[:5]
        raise UnknownNameError(f"explain: no node is called {name!r}; there are {', '.join(like)}, ...")
    readers = [names[n] for n in order if node in n.inputs]
    lines = [
        f"{names[node]}: {node.type} = {node.op.title}({', '.join(names[i] for i in node.inputs)})",
        f"  written at {node.source}",
        f"  read by {_listed(readers)}",
        *(f"  {line}" for line in _mathematics(node, names)),
    ]
    for entry in module.compiled.program.entries:
        if entry.name in _MODES:
            lines += ["", *_in_entry(module, entry, node)]
    return "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return (", ".join(names[:_MOST]) or "nobody: it is a result") + more


def _mathematics(node: Node, names: dict[Node, str]) -> Iterator[str]:
    """Yield value and derivatives as formulas."""
    op = node.op
    if isinstance(op, Elementwise):
        yield f"value: {scalar.describe(op.expr)}" + "".join(
            f"{', ' if k else ', where '}x{k} is {names[i]}" for k, i in enumerate(node.inputs)
        )
        for k in range(op.arity):
            yield f"derivative for x{k}: {scalar.describe(scalar.derivative(op.expr, scalar.argument(k)))}"
        if op.from_output is not None:
            yield f"which is {scalar.describe(op.from_output)} in the output alone: backward needs no input"
        return
    if isinstance(op, Anchor):
        yield f"value: {op.formula}"
    elif op.attributes:
        yield f"attributes: {op.attributes}"
    if not node.inputs or not node.type.is_float:
        return
    cotangent = Input("gradient", node.dtype, node.shape)(name="gradient")
    try:
        gradients = op.vjp(node, cotangent)
    except GraphcError as error:
        yield f"derivative: {error}"
        return
    known = {**names, cotangent: "gradient"}
    for operand, gradient in zip(node.inputs, gradients, strict=True):
        if gradient is not None:
            yield f"gradient for {names[operand]}: {_text(gradient, known)}"


def _text(node: Node, known: dict[Node, str], depth: int = 4) -> str:
    """Return a node as nested calls of ops, down to what is known."""
    if node in known:
        return known[node]
    if depth == 0 or not node.inputs:
        return node.name or node.op.title
    return f"{node.op.title}({', '.join(_text(i, known, depth - 1) for i in node.inputs)})"


def _in_entry(module: Inspected, entry: Entry, node: Node) -> Iterator[str]:
    """Yield what became of a node in an entry point: its kernels, and where their results lie."""
    plan = module.compiled.plans[entry.name]
    functions = next(e for e in module.manifest["entries"] if e["name"] == entry.name)["calls"]
    found = [k for k, call in enumerate(entry.calls) if _comes_from(call, node)]
    layer = _layer(node)
    if node.name is None and layer is not None:  # of several with one op in one line, that of the same layer
        found = [k for k in found if _comes_from(entry.calls[k], layer)] or found
    yield f"{_MODES[entry.name]}:"
    if not found:
        yield "  in no kernel: it is read where it lies, or was simplified away"
        return
    shown: set[str] = set()
    for number in found:
        call = entry.calls[number]
        again = ", which runs it again" if call.again else ""
        yield f"  kernel {number} of {len(entry.calls)}, {functions[number]['kernel']}{again}: {_listed(call.nodes)}"
        for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True):
            if not operand.written or buffer.name in shown:
                continue
            shown.add(buffer.name)
            if buffer.space is Space.ARENA:
                yield from (f"    {line}" for line in _buffer(plan, entry, buffer.name))
            else:
                yield f"    writes {buffer.name}: {buffer.space.value}, not in the arena"


def _layer(node: Node) -> Node | None:
    """Return the nearest named node that a node is computed from, parameters and inputs aside."""
    while node.name is None:
        computed = [i for i in node.inputs if i.inputs]
        if not computed:
            return None
        node = computed[0]
    return node


def _comes_from(call: Call, node: Node) -> bool:
    """Whether a kernel computes a node, by its name, or by its op and line where it has none."""
    if str(node.source) not in call.sources:
        return False
    if node.name is not None:
        return any(n == node.name or n.startswith(f"{node.name} (") for n in call.nodes)
    return node.op.title in call.nodes


def _buffer(plan: ArenaPlan, entry: Entry, name: str) -> Iterator[str]:
    """Yield where a buffer lies, for how long, why, and who else uses those bytes."""
    position = next((k for k, i in enumerate(plan.intervals) if i.id == name), None)
    if position is None:
        return
    interval, begin = plan.intervals[position], plan.offsets[position]
    yield (
        f"writes {name}: {interval.size:,} bytes at {begin:,} of the arena's {plan.arena_bytes:,}, "
        f"alive in steps {interval.lower} to {interval.upper - 1}"
    )
    reading = [k for k, call in enumerate(entry.calls) if any(
        b.name == name and not o.written for o, b in zip(call.kernel.operands, call.buffers, strict=True)
    )]  # fmt: skip
    if interval.kept:
        middle = middle_of(entry.calls)
        backward = [k for k in reading if middle is None or k >= middle]
        yield f"kept for the backward pass, where {_kernels(entry, backward)} read it"
    elif interval.scratch:
        yield "scratch: no other kernel needs it"
    elif reading:
        yield f"gone after kernel {reading[-1]}, its last reader"
    others = [
        other.id for other, offset in zip(plan.intervals, plan.offsets, strict=True)
        if other is not interval and _overlap(interval, begin, other, offset)
    ]  # fmt: skip
    yield f"the same bytes at other times: {_listed(others) if others else 'nobody'}"


def _kernels(entry: Entry, numbers: Sequence[int]) -> str:
    return _listed([f"kernel {k} ({_listed(entry.calls[k].nodes[:2])})" for k in numbers])


def _overlap(a: Interval, a_begin: int, b: Interval, b_begin: int) -> bool:
    return a_begin < b_begin + b.size and b_begin < a_begin + a.size
