"""``graphc diff``: what changed between two compilations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from graphc.cli import colour, onnx_nets, places
from graphc.cli.nets import translation_of
from graphc.errors import DataError
from graphc.inspection import describe, differences

NAME = "diff"
SUMMARY = "compare two compilations: graphs, kernels, memory, source"
DESCRIPTION = f"""\
Compares two nets as they are compiled: nodes of the graphs, kernels with their operations and bytes, the arena and
its buffers, and the source. Each is a NET, or a file that "graphc inspect NET --show all --json" wrote, such as one
of an earlier version. Exit status: 0 if nothing differs, 1 if something does, 2 for an error.

{places.SYNTAX}"""
EXAMPLES = """\
examples:
  graphc diff model:resnet18 model:resnet34
  graphc diff model:lenet net.onnx
  graphc inspect net.py:module --show all --json > before.json
  graphc diff before.json net.py:module"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("a", metavar="A", help="a net, or a .json file")
    parser.add_argument("b", metavar="B", help="the other")
    parser.add_argument(
        "--batch", type=int, help="the largest batch of nets that are not compiled yet (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    onnx_nets.add_dims(parser)
    colour.add_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Print the differences; return the exit status."""
    colour.check(options.color)
    dims = onnx_nets.options_of(options)
    found = differences(*(_data(net, options.batch, dims) for net in (options.a, options.b)))
    if options.json:
        rows = [{"where": d.where, "what": d.what} for d in found]
        colour.show(json.dumps(rows, indent=1) + "\n", "json", options.color)
    else:
        colour.show("".join(f"{difference}\n" for difference in found), "differences", options.color)
    return 1 if found else 0


def _data(place: str, batch: int | None, dims: onnx_nets.OnnxOptions) -> dict[str, Any]:
    """Return the description of a net, or the one in a file."""
    if not place.endswith(".json"):
        return describe(
            translation_of(place, batch, dims if onnx_nets.is_onnx(place) else onnx_nets.OnnxOptions())
        )
    try:
        data = json.loads(Path(place).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{place}: no JSON: {error}") from None
    if not isinstance(data, dict) or not {"name", "written", "entries", "source"} <= data.keys():
        raise DataError(f'{place}: not what "graphc inspect NET --show all --json" writes')
    return data
