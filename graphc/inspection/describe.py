"""A compiled module as plain data, such as JSON has: graphs, kernels, plans and source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from graphc.api import Module
from graphc.graph.node import Node, topological
from graphc.graph.text import name_nodes
from graphc.memory import ArenaPlan
from graphc.passes.fuse import Group
from graphc.pipeline import entry_groups
from graphc.program.ir import Entry
from graphc.translation import Translation
from graphc.types import at, shape_text

Inspected: TypeAlias = Module | Translation
"""A net whose compilation is shown; its C need not be built."""


def graph_rows(outputs: Mapping[str, Node]) -> list[dict[str, Any]]:
    """Return a row for each node, in topological order, under the names of the printed graph."""
    order = topological(outputs.values())
    names = name_nodes(order)
    results: dict[Node, list[str]] = {}
    for key, node in outputs.items():
        results.setdefault(node, []).append(key)
    return [
        {
            "name": names[node], "op": node.op.title, "inputs": [names[i] for i in node.inputs],
            "dtype": node.dtype, "shape": shape_text(node.shape), "attributes": node.op.attributes,
            "line": str(node.source), "outputs": results.get(node, []),
        } for node in order
    ]  # fmt: skip


def group_rows(groups: list[Group]) -> list[dict[str, Any]]:
    """Return a row for each group of nodes that became one kernel."""
    names = name_nodes([n for g in groups for n in g.nodes])
    return [
        {
            "number": number, "kind": group.anchor.op.title if group.anchor is not None else "loops",
            "nodes": [names[n] for n in group.nodes], "gives": [names[n] for n in group.outputs],
        } for number, group in enumerate(groups)
    ]  # fmt: skip


def call_rows(module: Inspected, entry: Entry) -> list[dict[str, Any]]:
    """Return a row for each kernel in the order in which they run; FLOPs and bytes are those of the largest batch."""
    described = next(e for e in module.manifest["entries"] if e["name"] == entry.name)
    rows = []
    for number, (call, known) in enumerate(zip(entry.calls, described["calls"], strict=True)):
        operands = [
            {"parameter": o.name, "buffer": b.name, "space": b.space.value, "written": o.written, "dtype": o.dtype,
             "shape": shape_text(o.shape)} for o, b in zip(call.kernel.operands, call.buffers, strict=True)
        ]  # fmt: skip
        rows.append({
            "number": number, "function": known["kernel"], "template": call.kernel.template,
            "nodes": list(call.nodes), "lines": list(call.sources), "formula": call.kernel.formula,
            "again": call.again, "flops": int(at(call.kernel.flops, module.batch)),
            "bytes": int(at(call.kernel.bytes, module.batch)), "operands": operands,
        })  # fmt: skip
    return rows


def plan_data(plan: ArenaPlan) -> dict[str, Any]:
    """Return the certificate of a plan and its buffers."""
    buffers = [
        {"name": i.id, "lower": i.lower, "upper": i.upper, "bytes": i.size, "offset": offset, "kept": i.kept,
         "scratch": i.scratch} for i, offset in zip(plan.intervals, plan.offsets, strict=True)
    ]  # fmt: skip
    return {
        "arena_bytes": plan.arena_bytes, "lower_bound_bytes": plan.lower_bound_bytes,
        "least_bound_bytes": plan.least_bound_bytes, "kept_bytes": plan.kept_bytes, "peak_step": plan.peak_step,
        "alive_at_peak": list(plan.alive_at_peak), "order": plan.notes.order,
        "rewrites": dict(plan.notes.rewrites), "buffers": buffers,
    }  # fmt: skip


def entry_data(module: Inspected, name: str) -> dict[str, Any]:
    """Return an entry point at every level: graph, nodes of each kernel, kernels as they run, memory plan."""
    compiled = module.compiled
    entry = next(e for e in compiled.program.entries if e.name == name)
    return {
        "graph": graph_rows(compiled.graphs[name]),
        "fused": group_rows(entry_groups(compiled, name)),
        "kernels": call_rows(module, entry),
        "plan": plan_data(compiled.plans[name]),
        "inputs": [a.name for a in entry.inputs],
        "outputs": [a.name for a in entry.outputs],
    }


def describe(module: Inspected) -> dict[str, Any]:
    """Return everything about a module: graphs at every level, kernels, plans, source."""
    compiled = module.compiled
    return {
        "name": module.name, "dtype": str(module.dtype), "batch": module.batch,
        "isa": compiled.program.isa.name, "fingerprint": module.fingerprint,
        "written": graph_rows(compiled.graphs["written"]),
        "entries": {entry.name: entry_data(module, entry.name) for entry in compiled.program.entries},
        "parameters": {s["name"]: list(s["shape"]) for s in module.manifest["params"]}, "source": module.source,
    }  # fmt: skip
