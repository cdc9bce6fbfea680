"""``graphc inspect``: prints what a net was compiled to."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import graphc as gc
from graphc.cli.nets import compile_net
from graphc.errors import GraphError, UnknownNameError
from graphc.passes.fuse import print_groups
from graphc.pipeline import entry_groups

NAME = "inspect"
SUMMARY = "print a net's graph, kernels, memory plan or generated C"
DESCRIPTION = """\
Prints what a net was compiled to. FILE.py:NAME is a compiled module, a tensor, a dict of named tensors, or a
function without arguments that returns one of these; the file is run to get it. Without it, the net is
the LeNet of the demo."""
EXAMPLES = """\
examples:
  graphc inspect
  graphc inspect --show kernels --mode train
  graphc inspect model.py:module --show source"""

_VIEWS = ("graph", "kernels", "plan", "source")
_MODES = {"inference": "predict", "train": "train_step", "evaluate": "evaluate"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("net", nargs="?", metavar="FILE.py:NAME", help="default: the LeNet of the demo")
    parser.add_argument("--show", choices=_VIEWS, default="kernels", help="default: kernels")
    parser.add_argument("--mode", choices=sorted(_MODES), default="inference", help="default: inference")


def run(options: argparse.Namespace) -> None:
    """Print the chosen view."""
    module = compile_net("lenet") if options.net is None else _find(options.net)
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


def _find(place: str) -> gc.Module:
    """Return the module at ``FILE.py:NAME``.

    Raises: UnknownNameError, GraphError.
    """
    file, colon, name = place.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier() or not path.is_file():
        raise UnknownNameError(f"{place}: expected FILE.py:NAME with the name of a module or a tensor in it")
    # The file may import its neighbours, as when Python runs it.
    sys.path.insert(0, str(path.absolute().parent))
    try:
        names = runpy.run_path(str(path), run_name="graphc_inspected")
    except SyntaxError as error:
        raise GraphError(f"{path}: {error}") from error
    finally:
        sys.path.pop(0)
    if name not in names:
        raise UnknownNameError(f"{path} defines no {name!r}")
    found: Any = names[name]
    return _as_module(found() if callable(found) else found, place)


def _as_module(found: Any, place: str) -> gc.Module:
    if isinstance(found, gc.Module):
        return found
    if isinstance(found, gc.Tensor) or (
        isinstance(found, Mapping) and found and all(isinstance(v, gc.Tensor) for v in found.values())
    ):
        return gc.compile(found)
    raise GraphError(f"{place} is {type(found).__name__}; expected a module, a tensor or a dict of tensors")
