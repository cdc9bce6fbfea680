"""Measure what a memory budget costs: operations that run again, in percent of one forward pass.

Every row is a training step planned within a part of the arena that it has without a budget. Nothing is compiled or
run: the operations are those that the plan's kernels execute, products of Winograd's algorithm as many as it needs.
With --direct, convolutions are planned without Winograd's algorithm: figures in the literature count that way, where
a 3x3 convolution weighs up to four times as much.

Examples:
    python benchmarks/budget.py                                       four nets, a minute or two
    python benchmarks/budget.py --nets resnet18 --parts 0.8 0.6 --direct
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import tables
from nets import NETS
from session import bare_parser, place, save, say
from tqdm import tqdm

import graphc as gc
from graphc.errors import RangeError
from graphc.isa import ISAS
from graphc.memory import ArenaPlan
from graphc.pipeline import Compiled, Request, compile_program
from graphc.types import at

USUAL = ("vgg16", "googlenet", "resnet18", "resnet50")
PARTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
MIB = 2**20


class Cost(NamedTuple):
    """A plan within a budget, and what it runs again in percent of one forward pass."""

    plan: ArenaPlan
    again: float


def _compiled(net: str, batch: int, winograd: bool, budget: int | None) -> Compiled:
    x = gc.input("x", ("N", *NETS[net].shape))
    y = gc.input("y", ("N",), dtype="int32")
    logits = NETS[net].graph(gc, x)
    loss, sgd = gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.01, momentum=0.9)
    # Instructions that are not this machine's, so that the figures are the same everywhere.
    request = Request(
        net, {"logits": logits}, loss, {}, sgd, batch, "float32", isa=ISAS["avx512"], winograd=winograd,
        memory_budget=budget,
    )  # fmt: skip
    return compile_program(request)


def free(net: str, batch: int, winograd: bool = True) -> ArenaPlan:
    """Return the plan of a training step without a budget."""
    return _compiled(net, batch, winograd, None).plans["train_step"]


def cost(net: str, batch: int, budget: int, winograd: bool = True) -> Cost:
    """Return the plan within a budget of bytes, and its cost.

    Raises:
        RangeError: the budget is below the least that can be.
    """
    compiled = _compiled(net, batch, winograd, budget)
    calls = {entry.name: entry.calls for entry in compiled.program.entries}
    forward = sum(at(call.kernel.flops, batch) for call in calls["evaluate"])
    repeated = sum(at(call.kernel.flops, batch) for call in calls["train_step"] if call.again)
    return Cost(compiled.plans["train_step"], 100 * repeated / forward)


def _row(net: str, batch: int, part: float, winograd: bool, without: ArenaPlan) -> dict[str, Any]:
    row: dict[str, Any] = {"net": net, "batch": batch, "winograd": winograd, "part": part}
    try:
        plan, again = cost(net, batch, int(part * without.arena_bytes), winograd)
    except RangeError as error:
        return {**row, "refused": str(error)}
    return {
        **row,
        "arena_bytes": plan.arena_bytes,
        "kept_bytes": plan.kept_bytes,
        "of_arena": plan.arena_bytes / without.arena_bytes,
        "of_kept": plan.kept_bytes / without.kept_bytes,
        "again_percent": again,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    first = [row["net"], str(row["batch"]), f"{100 * row['part']:.0f} %"]
    if "refused" in row:
        return [*first, "-", "-", "-", "cannot be"]
    return [
        *first,
        f"{row['arena_bytes'] / MIB:,.0f}",
        f"{100 * row['of_arena']:.0f} %",
        f"{100 * row['of_kept']:.0f} %",
        f"{row['again_percent']:.0f} %",
    ]


def main() -> None:
    """Plan and print."""
    parser = bare_parser(__doc__)
    parser.add_argument("--nets", nargs="+", default=list(USUAL), choices=list(NETS), metavar="NET",
                        help=f"default: {' '.join(USUAL)}")  # fmt: skip
    parser.add_argument("--parts", nargs="+", type=float, default=list(PARTS), metavar="PART",
                        help=f"of the arena without a budget, default: {' '.join(map(str, PARTS))}")  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, help="default: 32")
    parser.add_argument("--direct", action="store_true", help="no convolutions by Winograd's algorithm")
    options: argparse.Namespace = parser.parse_args()
    if options.quick:
        options.nets, options.parts = ["lenet"], [0.9]
    place(options, "budget_direct" if options.direct else "budget")
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(options.nets) * len(options.parts), unit="plan", dynamic_ncols=True) as bar:
        for net in options.nets:
            without = free(net, options.batch, not options.direct)
            for part in options.parts:
                bar.set_description(f"{net} {part}")
                rows.append(_row(net, options.batch, part, not options.direct, without))
                bar.update()
                if "refused" in rows[-1]:
                    say(f"{net}: {rows[-1]['refused']}")
    save({"direct": options.direct, "rows": rows}, options)
    head = ["net", "batch", "budget", "arena, MiB", "of the arena", "of what is kept", "runs again"]
    print(tables.lay_out([head, *map(_cells, rows)], options.markdown))


if __name__ == "__main__":
    main()
