"""Measure how much faster graphc gets by more threads: each net on one thread and on all, in turns.

Both runs have a process of their own and compute the same: their outputs and first losses are compared. The
efficiency is T1/(n*Tn), 100 % where n threads take an n-th of the time of one. The multiply-add peak, which
needs no memory, shows what the processor itself loses when all cores work.

Examples:
    python benchmarks/scaling.py                                      large nets at batch 16
    python benchmarks/scaling.py --nets resnet18 --modes inference    one row, about a minute
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import tables
from nets import NETS
from session import Case, common, finish, one_and_all, parser_for, run, save, thread_label, usable
from worker import versions

MODES = ("inference", "training")
LARGE = ("alexnet", "vgg16", "googlenet", "resnet18", "resnet50")


def cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, a row each."""
    return [
        {**common(options), "net": net, "mode": mode, "batch": options.batch}
        for net in options.nets or (("resnet18",) if options.quick else LARGE)
        for mode in options.modes
    ]


def efficiency(one: float, many: float, threads: int) -> float:
    """Return the time on one thread as a part of the processors' time on many."""
    return one / (threads * many)


def add_efficiency(row: dict[str, Any], machine: dict[str, Any]) -> None:
    """The row has the efficiency of its threads, and that of the multiply-add peak."""
    threads = row["threads"]
    one, many = (row["peers"].get(thread_label(count), {}).get("best_ms") for count in (1, threads))
    if one is not None and many is not None:
        row["efficiency"] = efficiency(one, many, threads)
        row["efficiency_of_peak"] = machine["fma_gflops"] / (threads * machine["fma_gflops_one_core"])


def text(results: dict[str, Any], *, markdown: bool) -> str:
    """Return the machine, the table and the means."""
    rows, threads = results["rows"], results["machine"]["threads"]
    labels = list(dict.fromkeys(thread_label(count) for count in (1, threads)))
    lines = [["net", "mode", "batch", *labels, "efficiency"]]
    for row in rows:
        share = f"{100 * row['efficiency']:.0f} %" if "efficiency" in row else "-"
        times = [tables.cell(row["peers"].get(label)) for label in labels]
        lines.append([row["net"], row["mode"], str(row["batch"]), *times, share])
    peak = results["machine"]["fma_gflops"] / (threads * results["machine"]["fma_gflops_one_core"])
    below = [
        f"Milliseconds a call, best (median) of {results['setup']['rounds']} rounds; the efficiency is T1/(n*Tn), "
        f"that of the multiply-add peak {100 * peak:.0f} %."
    ]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        found = [row["efficiency"] for row in rows if row["mode"] == mode and "efficiency" in row]
        if found:
            below.append(f"Geometric mean, {mode}: {100 * statistics.geometric_mean(found):.0f} %.")
    return "\n\n".join([tables.machine_text(results), tables.lay_out(lines, markdown), "\n".join(below)])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = parser_for(str(__doc__))
    parser.add_argument("--nets", nargs="+", choices=NETS, metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
                        help=f"of {', '.join(MODES)}")  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--threads", type=int, default=usable(), help=f"beside one (default {usable()})")
    return finish(parser, parser.parse_args(arguments), "scaling")


def main() -> None:
    """Measure, and print the table."""
    options = parse()
    results = run(
        cases(options),
        lambda case: one_and_all(case, "graphc"),
        add_efficiency,
        options,
        {},
        versions(("graphc", "numpy")),
    )
    print(text(results, markdown=options.markdown))
    save(results, options)


if __name__ == "__main__":
    main()
