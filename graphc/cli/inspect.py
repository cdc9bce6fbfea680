"""``graphc inspect``: prints what a net was compiled to, or its layers before that."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import graphc as gc
from graphc.cli import places
from graphc.cli.nets import module_of
from graphc.errors import RangeError
from graphc.inspection import call_rows, describe, explain, graph_rows, plan_data
from graphc.passes.fuse import print_groups
from graphc.pipeline import entry_groups

NAME = "inspect"
SUMMARY = "print a net's layers, graphs, kernels, memory plan or generated C, or the story of a node"
DESCRIPTION = f"""\
Prints what a net was compiled to, at one of its levels: the graph as it was written; the graph that is computed, with
its backward pass in training; the nodes that were fused to each kernel; the kernels with their operations and bytes;
the memory plan; the source. --show layers does not compile it: its layers with their shapes, parameters,
multiply-accumulates, bytes and operations a byte in inference. --explain tells the story of one node: the line it was
written at, value and derivative as formulas, its kernels, and where in the arena their results lie and why. Without
NET it is the LeNet of the demo.

{places.SYNTAX}

A ready-made net is compiled with cross-entropy and SGD."""
EXAMPLES = """\
examples:
  graphc inspect
  graphc inspect model:resnet18 --show layers
  graphc inspect model:resnet_cifar,depth=32 --show plan --mode train --batch 64
  graphc inspect --show calls --mode train
  graphc inspect model:lenet --explain conv1
  graphc inspect model:resnet18 --html resnet18.html
  graphc inspect model.py:module --show all --json > module.json"""

_VIEWS = ("layers", "written", "graph", "kernels", "calls", "plan", "source", "all")
_MODES = {"inference": "predict", "train": "train_step", "evaluate": "evaluate"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("net", nargs="?", metavar=places.METAVAR, help="default: the LeNet of the demo")
    add("--show", choices=_VIEWS, default="kernels",
        help="default: kernels, the nodes of each; calls are the kernels as they run")  # fmt: skip
    add(
        "--mode", choices=sorted(_MODES), default="inference", help="default: inference; layers have no other"
    )
    add("--batch", type=int, help="the largest batch (default: 1; 64 for the LeNet of the demo)")
    add("--explain", metavar="NODE", help="a node under its name in --show written")
    add("--json", action="store_true", help="the view as JSON")
    add(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page with all levels, source and memory, to be explored",
    )


def run(options: argparse.Namespace) -> None:
    """Print the chosen view."""
    if options.show == "layers" and options.explain is None and options.html is None:
        rows = gc.layers(_outputs(options.net or "model:lenet"))
        _print(options, [asdict(row) for row in rows] if options.json else gc.layers_table(rows))
        return
    module = module_of(options.net, options.batch)
    if options.html is not None:
        print(
            f"{gc.report(module, options.html)}: {options.html.stat().st_size:,} bytes; open it in a browser"
        )
        return
    if options.explain is not None:
        _print(options, explain(module, options.explain))
    elif options.json:
        print(json.dumps(_data(module, options), indent=1, default=str))
    else:
        _print(options, _text(module, options))


def _print(options: argparse.Namespace, view: object) -> None:
    if options.json:
        print(json.dumps(view, indent=1, default=str))
    else:
        print(view, end="")


def _text(module: gc.Module, options: argparse.Namespace) -> str:
    """Return a view as text."""
    entry = _MODES[options.mode]
    if options.show == "source":
        return "\n".join(module.source.values()) + "\n"
    if options.show == "written":
        return gc.print_graph(module.compiled.graphs["written"])
    plan = module.plan(options.mode)  # refuses a mode that the module does not have
    if options.show == "graph":
        return gc.print_graph(module.compiled.graphs[entry])
    if options.show == "kernels":
        return print_groups(entry_groups(module.compiled, entry))
    if options.show == "calls":
        return _calls(module, entry)
    if options.show == "plan":
        return plan.table()
    raise RangeError("--show all is for --json")


def _data(module: gc.Module, options: argparse.Namespace) -> Any:
    """Return a view as plain data."""
    if options.show == "all":
        return describe(module)
    if options.show == "source":
        return module.source
    if options.show == "written":
        return graph_rows(module.compiled.graphs["written"])
    plan = module.plan(options.mode)
    if options.show == "plan":
        return plan_data(plan)
    whole = describe(module)["entries"][_MODES[options.mode]]
    return whole[{"graph": "graph", "kernels": "fused", "calls": "kernels"}[options.show]]


def _calls(module: gc.Module, name: str) -> str:
    """Return the kernels of an entry point in the order in which they run."""
    entry = next(e for e in module.compiled.program.entries if e.name == name)
    lines = [f"{'':>4} {'FLOP':>14} {'bytes':>13} {'FLOP/B':>7}  kernel, nodes, line"]
    for row in call_rows(module, entry):
        intensity = row["flops"] / row["bytes"] if row["bytes"] else 0.0
        again = " (again)" if row["again"] else ""
        counts = f"{row['number']:>4} {row['flops']:>14,} {row['bytes']:>13,} {intensity:>7.2f}"
        what = f"{', '.join(row['nodes'][:4])}, {', '.join(row['lines'][:1])}"
        lines.append(f"{counts}  {row['function']}{again}: {what}")
    return "\n".join(lines) + "\n"


def _outputs(place: str) -> places.Tensors:
    """Return the tensors that the net at a place predicts."""
    found = places.find(place)
    if isinstance(found, dict):
        return found
    return found._request.outputs  # as written; found.compiled has been rewritten, and may take long
