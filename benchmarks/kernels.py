"""Hold products and direct convolutions against the multiply-add peak, on one thread and on all, in turns.

Measured are three matrix products and every distinct convolution of some nets, without Winograd's: forward, the
gradient for the input and the gradient for the weights, each compiled alone. Weights are packed before the call,
as inference does once for all calls; a cotangent that has to be packed is packed in it. Each number of threads
has a process of its own, and both compute the same bits. The peak is measured before and after.

A kernel on one thread is to reach 88 % of the peak of one core, on all threads 80 % of the peak of all: those
below are marked. The memory's share is the part of the time on all threads in which the memory could move every
array once; arrays that fit the caches need less.

Examples:
    python benchmarks/kernels.py                           everything, which takes some 20 minutes
    python benchmarks/kernels.py --below                   the same, but prints those below their goal only
    python benchmarks/kernels.py --only 56x56 --modes forward --batches 16
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import tables
from nets import NETS, Convolution, Product, convolutions
from session import Case, common, finish, one_and_all, parser_for, run, save, thread_label, usable
from worker import versions

MODES = ("forward", "input", "weights")
PRODUCTS = (Product(64, 512, 784), Product(1024, 1024, 1024), Product(256, 4096, 4096))
GOALS = {True: 88, False: 80}  # percent of the peak, by whether it is one thread


def cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, a row each; no net needs the gradient for its images."""
    found: list[Case] = []
    for product in PRODUCTS:
        case = {**common(options), "net": str(product), "product": product.to_dict()}
        found += [{**case, "mode": mode, "batch": product.rows} for mode in options.modes]
    layers: dict[Convolution, None] = {}
    for net in () if options.quick else options.nets:
        layers |= dict.fromkeys(convolutions(net))
    for conv in layers:
        case = {**common(options), "net": str(conv), "conv": conv.to_dict()}
        found += [
            {**case, "mode": mode, "batch": batch}
            for batch in options.batches
            for mode in options.modes
            if not (mode == "input" and conv.channels == 3)
        ]
    return [case for case in found if options.only in case["net"]]


def add_percentages(row: dict[str, Any], machine: dict[str, Any]) -> None:
    """Each run has its GFLOP/s, their part of the peak, and whether that is the goal; the row its memory's share."""
    for count in dict.fromkeys((1, row["threads"])):
        result = row["peers"].get(thread_label(count), {})
        if "best_ms" in result:
            peak = machine["fma_gflops_one_core" if count == 1 else "fma_gflops"]
            result["gflops"] = row["flops"] / result["best_ms"] / 1e6
            result["percent_of_peak"] = 100 * result["gflops"] / peak
            result["reached"] = result["percent_of_peak"] >= GOALS[count == 1]
            row["memory_percent"] = 100 * row["bytes"] / machine["bandwidth_gb_s"] / result["best_ms"] / 1e6


def below(row: dict[str, Any]) -> bool:
    """Whether a run of the row is below its goal."""
    return any(not result.get("reached", True) for result in row["peers"].values())


def _cells(row: dict[str, Any], labels: list[str]) -> list[str]:
    cells = [row["net"], row["mode"], str(row["batch"])]
    for label in labels:
        result = row["peers"].get(label, {})
        if "gflops" not in result:
            cells += ["-", "-"]
            continue
        mark = "" if result["reached"] else " <"
        cells += [f"{result['gflops']:.1f}", f"{result['percent_of_peak']:.0f} %{mark}"]
    share = f"{row['memory_percent']:.0f} %" if "memory_percent" in row else "-"
    return [*cells, share]


def text(results: dict[str, Any], *, markdown: bool, only_below: bool = False) -> str:
    """Return the machine, the table and how many reach their goal."""
    rows, threads = results["rows"], results["machine"]["threads"]
    counts = {thread_label(count): count for count in (1, threads)}
    head = ["kernel", "what", "batch"]
    for label in counts:
        head += [f"GFLOP/s, {label}", "of peak"]
    shown = [row for row in rows if below(row)] if only_below else rows
    lines = [[*head, "memory's share"], *(_cells(row, list(counts)) for row in shown)]
    notes = []
    for label, count in counts.items():
        for mode in dict.fromkeys(row["mode"] for row in rows):
            found = [row["peers"].get(label, {}) for row in rows if row["mode"] == mode]
            percents = [result["percent_of_peak"] for result in found if "gflops" in result]
            reached = sum(result.get("reached", False) for result in found)
            if percents:
                notes.append(
                    f"{mode}, {label}: {reached} of {len(percents)} reach {GOALS[count == 1]} % of the peak; "
                    f"geometric mean {statistics.geometric_mean(percents):.0f} %, least {min(percents):.0f} %."
                )
    return "\n\n".join([tables.machine_text(results), tables.lay_out(lines, markdown), "\n".join(notes)])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = parser_for(str(__doc__), seconds=0.1)
    parser.add_argument("--nets", nargs="+", choices=NETS, metavar="NET", default=["vgg16", "resnet50"],
                        help="whose convolutions are measured, default: vgg16 resnet50")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
                        help=f"of {', '.join(MODES)}")  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", default=[1, 16],
                        help="of the convolutions, default: 1 16")  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name contains the text")
    parser.add_argument("--below", action="store_true", help="print the kernels below their goal only")
    parser.add_argument("--threads", type=int, default=usable(), help=f"beside one (default {usable()})")
    return finish(parser, parser.parse_args(arguments), "kernels")


def main() -> None:
    """Measure, and print the table."""
    options = parse()
    results = run(
        cases(options),
        lambda case: one_and_all(case, "kernel"),
        add_percentages,
        options,
        {"goals_percent": {"one thread": GOALS[True], "all threads": GOALS[False]}},
        versions(("graphc", "numpy")),
    )
    print(text(results, markdown=options.markdown, only_below=options.below))
    save(results, options)


if __name__ == "__main__":
    main()
