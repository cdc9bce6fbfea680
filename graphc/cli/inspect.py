"""``graphc inspect``: prints what a net was compiled to, or its layers before that."""

from __future__ import annotations

import argparse

import graphc as gc
from graphc.cli import places
from graphc.cli.nets import module_of
from graphc.passes.fuse import print_groups
from graphc.pipeline import entry_groups

NAME = "inspect"
SUMMARY = "print a net's layers, graph, kernels, memory plan or generated C"
DESCRIPTION = f"""\
Prints what a net was compiled to, or with --show layers, without compiling it, its layers with their
shapes, parameters, multiply-accumulates and bytes in inference. Without NET it is the LeNet of the demo.

{places.SYNTAX}

A ready-made net is compiled with cross-entropy and SGD."""
EXAMPLES = """\
examples:
  graphc inspect
  graphc inspect model:resnet18 --show layers
  graphc inspect model:resnet_cifar,depth=32 --show plan --mode train --batch 64
  graphc inspect --show kernels --mode train
  graphc inspect model.py:module --show source"""

_VIEWS = ("layers", "graph", "kernels", "plan", "source")
_MODES = {"inference": "predict", "train": "train_step", "evaluate": "evaluate"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("net", nargs="?", metavar=places.METAVAR, help="default: the LeNet of the demo")
    add("--show", choices=_VIEWS, default="kernels", help="default: kernels")
    add(
        "--mode", choices=sorted(_MODES), default="inference", help="default: inference; layers have no other"
    )
    add("--batch", type=int, help="the largest batch (default: 1; 64 for the LeNet of the demo)")


def run(options: argparse.Namespace) -> None:
    """Print the chosen view."""
    if options.show == "layers":
        print(gc.layers_table(gc.layers(_outputs(options.net or "model:lenet"))), end="")
        return
    module = module_of(options.net, options.batch)
    entry = _MODES[options.mode]
    if options.show == "source":
        print("\n".join(module.source.values()))
        return
    plan = module.plan(options.mode)  # refuses a mode that the module does not have
    if options.show == "graph":
        print(gc.print_graph(module.compiled.graphs[entry]), end="")
    elif options.show == "kernels":
        print(print_groups(entry_groups(module.compiled, entry)), end="")
    else:
        print(plan.table(), end="")


def _outputs(place: str) -> places.Tensors:
    """Return the tensors that the net at a place predicts."""
    found = places.find(place)
    if isinstance(found, dict):
        return found
    return found._request.outputs  # as written; found.compiled has been rewritten, and may take long
