"""``graphc inspect``: prints what a net was compiled to, or its layers before that."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import graphc as gc
from graphc.build import measure_machine
from graphc.cli import colour, onnx_nets, places
from graphc.cli.nets import module_of, translation_of
from graphc.errors import GraphcError, RangeError
from graphc.export.samples import sample_inputs
from graphc.inspection import Inspected, call_rows, describe, entry_data, explain, graph_rows, plan_data
from graphc.passes.fuse import print_groups
from graphc.pipeline import entry_groups
from graphc_runtime.profile import Profile

NAME = "inspect"
SUMMARY = "print a net's layers, graphs, kernels, memory plan, generated C or profile, or the story of a node"
DESCRIPTION = f"""\
Prints what a net was compiled to, at one of its levels: the graph as it was written; the graph that is computed, with
its backward pass in training; the nodes that were fused to each kernel; the kernels with their operations and bytes;
the memory plan; the source. --show layers does not compile it: its layers with their shapes, parameters,
multiply-accumulates, bytes and operations a byte in inference. --explain tells the story of one node: the line it was
written at, value and derivative as formulas, its kernels, and where in the arena their results lie and why.
--profile builds the net, on all usable processors, runs it on made-up inputs and tells the time of every kernel
beside what this machine can do; all else is read from the compiler, and no C is built for it. Without NET it is the
LeNet of the demo.

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
  graphc inspect model:lenet --profile --mode train --batch 64 --trace trace.json
  graphc inspect model:lenet --profile --html lenet.html
  graphc inspect --show source --color always | less -R
  graphc inspect net.onnx --show plan --mode train --loss cross_entropy
  graphc inspect model.py:module --show all --json > module.json"""

_VIEWS = ("layers", "written", "graph", "kernels", "calls", "plan", "source", "all")
_KINDS = {"calls": "calls", "plan": "plan", "source": "c"}  # all others are graphs
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
    add("--profile", action="store_true",
        help="the time of every kernel; a module in FILE.py must be compiled with profile=True")  # fmt: skip
    add("--trace", type=Path, metavar="FILE", help="write the profile for chrome://tracing or Perfetto")
    add("--json", action="store_true", help="the view as JSON")
    add("--html", type=Path, metavar="FILE",
        help="write a page with all levels, source, memory and profile, to be explored")  # fmt: skip
    onnx_nets.add_arguments(parser)
    colour.add_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Print the chosen view."""
    _check(options)
    if options.profile:
        _show_profile(options)
    elif options.html is not None:
        _write_page(translation_of(options.net, options.batch, onnx_nets.options_of(options)), options.html)
    elif options.explain is not None:
        _print(
            options,
            explain(
                translation_of(options.net, options.batch, onnx_nets.options_of(options)), options.explain
            ),
            "story",
        )
    elif options.show == "layers":
        rows = gc.layers(_outputs(options.net or "model:lenet", onnx_nets.options_of(options)))
        _print(options, [asdict(row) for row in rows] if options.json else gc.layers_table(rows), "layers")
    else:
        module = translation_of(options.net, options.batch, onnx_nets.options_of(options))
        _print(
            options, (_data if options.json else _text)(module, options), _KINDS.get(options.show, "graph")
        )


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises: GraphcError.
    """
    colour.check(options.color)
    if options.trace is not None and not options.profile:
        raise GraphcError("--trace writes a profile: it needs --profile")
    if options.profile and options.explain is not None:
        raise GraphcError("--explain and --profile are two views: ask for one of them")
    if options.profile and options.mode == "evaluate":
        raise RangeError("--profile: --mode must be inference or train")


def _print(options: argparse.Namespace, view: object, kind: str) -> None:
    if options.json:
        colour.show(json.dumps(view, indent=1, default=str) + "\n", "json", options.color)
    else:
        colour.show(str(view), kind, options.color)


def _write_page(module: Inspected, file: Path, profiles: Sequence[Profile] = ()) -> None:
    path = gc.report(module, file, profiles)
    print(f"{path}: {path.stat().st_size:,} bytes; open it in a browser")


def _show_profile(options: argparse.Namespace) -> None:
    """Time the kernels; print them, or put them into the page."""
    module = module_of(options.net, options.batch, profile=True, options=onnx_nets.options_of(options))
    if not module.manifest["profiled"]:
        raise GraphcError(
            f"--profile: {options.net} was compiled without profile=True, so that its code notes no times: "
            "write gc.compile(..., profile=True) there"
        )
    module.plan(options.mode)  # refuses a mode that the module does not have
    program = module.compiled.program
    taken = {a.name for e in program.entries if e.name == _MODES[options.mode] for a in e.inputs}
    samples = {k: v for k, v in sample_inputs(program, module.batch).items() if k in taken}
    machine = measure_machine(module.threads)
    profile = module.profile_on(machine, samples, train=options.mode == "train")
    if options.trace is not None:
        profile.trace(options.trace)
    if options.html is not None:
        _write_page(module, options.html, [profile])
    else:
        _print(options, _profile_rows(profile) if options.json else profile.table(), "profile")


def _profile_rows(profile: Profile) -> list[dict[str, Any]]:
    return [
        {**asdict(k), "gflops": k.gflops, "gb_s": k.gb_s, "percent_of_peak": profile.percent_of_peak(k)}
        for k in profile.kernels
    ]


def _text(module: Inspected, options: argparse.Namespace) -> str:
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


def _data(module: Inspected, options: argparse.Namespace) -> Any:
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
    whole = entry_data(module, _MODES[options.mode])
    return whole[{"graph": "graph", "kernels": "fused", "calls": "kernels"}[options.show]]


def _calls(module: Inspected, name: str) -> str:
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


def _outputs(place: str, options: onnx_nets.OnnxOptions) -> places.Tensors:
    """Return the tensors that the net at a place predicts."""
    if onnx_nets.is_onnx(place):
        tensors: places.Tensors = onnx_nets.describe(place, 1, options)["outputs"]
        return tensors
    found = places.find(place)
    if isinstance(found, dict):
        return found
    return found._request.outputs  # as written; found.compiled has been rewritten, and may take long
