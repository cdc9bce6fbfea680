"""One self-contained page that shows a compiled module: graphs, formulas, kernels, source, memory and time.

The page needs no network: what draws the graph (cytoscape with dagre) and what colours the source (highlight.js) are
in it. Formulas are MathML. A graph of more than 160 nodes is drawn as blocks, which open with a click.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import sympy as sp
from jinja2 import Environment, PackageLoader, StrictUndefined
from sympy.printing.mathml import MathMLPresentationPrinter

from graphc import scalar
from graphc.errors import GraphcError
from graphc.graph.node import Node, topological
from graphc.inspection.describe import Inspected, call_rows, graph_rows, plan_data
from graphc.ops.anchor import Anchor
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import Parameter, State
from graphc.pipeline import entry_groups
from graphc.program.ir import Entry
from graphc_runtime.profile import Profile

_TITLES = {
    "predict": "Inference", "evaluate": "Evaluation", "train_step": "Training", "fold": "Fold step",
    "freeze": "Freeze step",
}  # fmt: skip
_SHOWN = ("predict", "train_step")  # entry points whose graphs and kernels are drawn
_MOST_BLOCKS = 60
_SCRIPTS = (
    "vendor/cytoscape.min.js",
    "vendor/cytoscape-dagre.min.js",
    "vendor/highlight.min.js",
    "report.js",
)


def report(module: Inspected, path: str | Path, profiles: Iterable[Profile] = ()) -> Path:
    """Write one HTML page about a module and return its path.

    Args:
        module: what is shown.
        path: the file; it is replaced if it is there.
        profiles: what ``module.profile`` returned, for bars of time and a roofline.

    Raises:
        GraphcError: the file cannot be written.
    """
    data = _data(module, profiles)
    # Inside a script element only "</" could end it.
    text = json.dumps(data, separators=(",", ":"), default=str).replace("</", "<\\/")
    environment = Environment(
        loader=PackageLoader("graphc_templates", "report"), undefined=StrictUndefined, autoescape=False
    )
    files = resources.files("graphc_templates") / "report"
    scripts = [
        (files / name).read_text(encoding="utf-8").replace("</script", "<\\/script") for name in _SCRIPTS
    ]
    page = environment.get_template("page.html.j2").render(
        title=html.escape(f"{module.name}, compiled by graphc"), data=text, scripts=scripts,
        css=(files / "report.css").read_text(encoding="utf-8"),
    )  # fmt: skip
    target = Path(path)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise GraphcError(f"report: {target}: {error.strerror or error}") from error
    return target


def _data(module: Inspected, profiles: Iterable[Profile]) -> dict[str, Any]:
    compiled = module.compiled
    shown = [entry for entry in compiled.program.entries if entry.name in _SHOWN]
    texts: list[str] = []
    known: dict[str, int] = {}
    kernels = {entry.name: _kernels(module, entry, texts, known) for entry in shown}
    main = shown[-1] if shown else None
    written = compiled.graphs["written"]
    of_written = _kernels_by_label(topological(written.values()), main) if main is not None else {}
    levels = [
        _graph_level("written", "As written", written, main.name if main is not None else None, of_written)
    ]
    for entry in shown:
        of_nodes = _kernels_of_nodes(module, entry)
        title = f"{_TITLES[entry.name]}: graph" + (" with backward" if entry.name == "train_step" else "")
        levels.append(_graph_level(entry.name, title, compiled.graphs[entry.name], entry.name, of_nodes))
        levels.append(_kernel_level(entry, kernels[entry.name]))
    return {
        "name": module.name, "batch": module.batch, "levels": levels, "kernels": kernels, "texts": texts,
        "plans": {entry.name: plan_data(compiled.plans[entry.name]) for entry in compiled.program.entries
                  if compiled.plans[entry.name].intervals},
        "profiles": [_profile(profile) for profile in profiles],
    }  # fmt: skip


def _profile(profile: Profile) -> dict[str, Any]:
    kernels = [{**asdict(k), "gflops": k.gflops, "gb_s": k.gb_s} for k in profile.kernels]
    return {**asdict(profile), "kernels": kernels}


# ------------------------------------------------------------------ graphs


def _graph_level(
    level: str, title: str, outputs: Mapping[str, Node], entry: str | None, kernels: Mapping[Node, list[int]]
) -> dict[str, Any]:
    """Return a graph: its nodes with their formulas, their blocks and their kernels."""
    order = topological(outputs.values())
    blocks = _blocks(order)
    nodes = []
    for node, row in zip(order, graph_rows(outputs), strict=True):
        formulas = _formulas(node)
        nodes.append({
            "name": row["name"], "op": row["op"], "inputs": row["inputs"], "type": f"{row['dtype']}{row['shape']}",
            "attributes": "" if isinstance(node.op, Elementwise) else row["attributes"], "line": row["line"],
            "block": blocks[node], "kernels": kernels.get(node, []), **formulas,
        })  # fmt: skip
    return {"id": level, "title": title, "entry": entry, "nodes": nodes}


def _formulas(node: Node) -> dict[str, Any]:
    """Return value and derivatives of a node as MathML, or the formula of an anchor as text."""
    op = node.op
    if isinstance(op, Anchor):
        return {"value": f"<code>{html.escape(op.formula)}</code>"}
    if not isinstance(op, Elementwise):
        return {}
    derivatives = [
        (f"derivative for x{k}", _mathml(scalar.derivative(op.expr, scalar.argument(k))))
        for k in range(op.arity) if node.type.is_float
    ]  # fmt: skip
    if op.from_output is not None:
        derivatives.append(("in the output y", _mathml(op.from_output)))
    return {"value": _mathml(op.expr), "derivatives": derivatives}


class _Printer(MathMLPresentationPrinter):  # type: ignore[misc]  # sympy is untyped
    """MathML with cases in a table behind a brace."""

    def _print_Piecewise(self, expr: sp.Piecewise) -> Any:  # noqa: N802  # sympy finds it by this name
        table = self.dom.createElement("mtable")
        table.setAttribute("columnalign", "left left")
        for value, condition in expr.args:
            row = table.appendChild(self.dom.createElement("mtr"))
            otherwise = self.dom.createElement("mtext")
            otherwise.appendChild(self.dom.createTextNode("otherwise"))
            for cell in (self._print(value), otherwise if condition == sp.true else self._print(condition)):
                row.appendChild(self.dom.createElement("mtd")).appendChild(cell)
        brace = self.dom.createElement("mo")
        brace.appendChild(self.dom.createTextNode("{"))
        cases = self.dom.createElement("mrow")
        cases.appendChild(brace)
        cases.appendChild(table)
        return cases

    _print_Choice = _print_Piecewise  # noqa: N815  # of functions, sympy looks for the very class


@lru_cache(maxsize=4096)
def _mathml(expr: sp.Expr) -> str:
    """Return an expression as MathML; as text where sympy cannot write it."""
    try:
        return f"<math>{_Printer().doprint(expr)}</math>"
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        return f"<code>{html.escape(scalar.describe(expr))}</code>"


def _blocks(order: Sequence[Node]) -> dict[Node, str]:
    """Return the block that each node is drawn in: the layers' names up to a dot, of few enough of them."""
    layers: dict[Node, str] = {}
    for node in order:
        name = node.name or next((layers[i] for i in node.inputs if i.inputs and layers[i]), "")
        if not name:
            name = next((layers[i] for i in node.inputs if layers[i]), "")
        if isinstance(node.op, (Parameter, State)) and node.op.field:
            name = name.removesuffix(f".{node.op.field}")
        layers[node] = name
    for node in reversed(order):  # what is made from nothing belongs to its first reader
        for operand in node.inputs:
            if not layers[operand]:
                layers[operand] = layers[node]
    for depth in (2, 1):
        blocks = {n: ".".join(_parents(name)[:depth]) for n, name in layers.items()}
        if len(set(blocks.values())) <= _MOST_BLOCKS:
            break
    return blocks


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return parts[:-1] if len(parts) > 1 else parts


# ------------------------------------------------------------------ kernels


def _kernels_of_nodes(module: Inspected, entry: Entry) -> dict[Node, list[int]]:
    """Return which kernels compute each node, by the labels that calls have from their nodes."""
    calls: dict[tuple[str, ...], list[int]] = {}
    for number, call in enumerate(entry.calls):
        calls.setdefault(call.nodes, []).append(number)
    groups: dict[tuple[str, ...], list[list[Node]]] = {}
    for group in entry_groups(module.compiled, entry.name):
        label = tuple(f"{n.name} ({n.op.title})" if n.name else n.op.title for n in group.nodes)
        groups.setdefault(label, []).append(list(group.nodes))
    found: dict[Node, list[int]] = {}
    for label, members in groups.items():
        numbers = calls.get(label, [])
        first = [k for k in numbers if not entry.calls[k].again]
        for position, nodes in enumerate(members):
            own = [first[position]] if len(first) == len(members) else numbers
            for node in nodes:
                found.setdefault(node, []).extend(own)
    return found


def _kernels_by_label(order: Sequence[Node], entry: Entry) -> dict[Node, list[int]]:
    """Return which kernels compute each node of the net as it was written: by name, or by op and layer."""
    calls = [(number, set(call.nodes)) for number, call in enumerate(entry.calls)]
    layers: dict[Node, str] = {}
    found: dict[Node, list[int]] = {}
    for node in order:
        above = next((layers[i] for i in node.inputs if i.inputs), "")
        layers[node] = f"{node.name} ({node.op.title})" if node.name else above
        if node.inputs and layers[node]:
            wanted = {layers[node], node.op.title} if node.name is None else {layers[node]}
            found[node] = [number for number, labels in calls if wanted <= labels]
    return found


def _kernels(
    module: Inspected, entry: Entry, texts: list[str], known: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the kernels of an entry point, each with the number of its text in ``texts``."""
    rows = []
    for row in call_rows(module, entry):
        function = row["function"]
        if function not in known:
            known[function] = len(texts)
            texts.append(_text_of(module.source, function))
        rows.append({
            "function": function, "nodes": row["nodes"], "lines": row["lines"], "flops": row["flops"],
            "bytes": row["bytes"], "again": row["again"], "text": known[function], "formula": row["formula"],
        })  # fmt: skip
    return rows


def _text_of(sources: Mapping[str, str], function: str) -> str:
    """Return the definition of a function in the emitted source, with the comment above it."""
    pattern = re.compile(
        rf"^[a-zA-Z_][\w \t*]*\b{re.escape(function)}\((?:[^;{{}}]*)\)\s*\n?\{{", re.MULTILINE
    )
    for text in sources.values():
        match = pattern.search(text) if function in text else None
        if match is not None:
            begin, end = match.start(), text.find("\n}", match.end())
            if text.endswith("*/\n", 0, begin):
                begin = text.rfind("/*", 0, begin)
            return text[begin : end + 2] if end >= 0 else text[begin:]
    return f"/* {function} is a function of the C library. */"


def _kernel_level(entry: Entry, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the kernels as a graph: an edge where one reads what another wrote."""
    writer: dict[str, str] = {}
    nodes: list[dict[str, Any]] = []
    for number, (call, row) in enumerate(zip(entry.calls, rows, strict=True)):
        name = f"{number} {row['function']}"
        operands = list(zip(call.kernel.operands, call.buffers, strict=True))
        inputs = dict.fromkeys(writer[b.name] for _, b in operands if b.name in writer)
        layer = call.layer.removesuffix(".weight").removesuffix(".bias")
        block = ".".join(_parents(layer)[:2]) if layer else (nodes[-1]["block"] if nodes else "")
        nodes.append({
            "name": name, "label": row["function"], "op": "kernel", "inputs": list(inputs),
            "line": ", ".join(row["lines"]),
            "type": f"{row['flops']:,} FLOP, {row['bytes']:,} bytes", "attributes": row["formula"], "block": block,
            "kernels": [number],
        })  # fmt: skip
        writer |= {b.name: name for o, b in operands if o.written}
    title = f"{_TITLES[entry.name]}: kernels"
    return {"id": f"{entry.name}-kernels", "title": title, "entry": entry.name, "nodes": nodes}
