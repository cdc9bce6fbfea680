"""Compare graphc's C with the C that other emitters make of PyTorch's ONNX export, for inference on one thread.

emx-onnx-cgen and onnx2c emit plain loops that are meant to be read. Their C is compiled by the same compiler,
with -O3 -march=native, and runs in a process of its own. The outputs are compared before anything is timed, and
the rounds take graphc and the others in turns. Lines are those of the source without the values of weights.

Examples:
    python benchmarks/emitters.py                       LeNet and ResNet-18 at batch 1
    python benchmarks/emitters.py --nets lenet --quick  a try, some seconds

emx-onnx-cgen comes with: pip install -e '.[bench]'. onnx2c is a C++ program, which is used if it is on the PATH:
https://github.com/kraiskil/onnx2c
"""

from __future__ import annotations

import argparse
from typing import Any

import tables
from nets import NETS
from session import Case, common, finish, parser_for, run, save, say
from worker import EMITTERS, TITLES, missing, versions

PACKAGES = ("graphc", "emx_onnx_cgen", "torch", "onnx", "numpy")


def cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, a row each."""
    return [
        {**common(options), "net": net, "mode": "inference", "batch": batch}
        for net in options.nets
        for batch in options.batches
    ]


def add_ratios(row: dict[str, Any], machine: dict[str, Any]) -> None:
    """Each emitter's entry has its time over graphc's, and the row graphc's GFLOP/s."""
    ours = row["peers"]["graphc"].get("best_ms")
    if ours is None:
        return
    row["gflops"] = row["flops"] / ours / 1e6
    for peer, result in row["peers"].items():
        if peer in EMITTERS and "best_ms" in result:
            result["ratio"] = result["best_ms"] / ours


def text(results: dict[str, Any], *, markdown: bool) -> str:
    """Return the machine, and the time and lines of each emitter."""
    lines = [["net", "batch", "emitter", "ms", "time / graphc", "lines of C"]]
    for row in results["rows"]:
        for peer in ("graphc", *EMITTERS):
            result = row["peers"].get(peer, {})
            if "best_ms" in result:
                ratio = f"{result['ratio']:.1f}" if "ratio" in result else ""
                first = [row["net"], str(row["batch"]), TITLES[peer]]
                lines.append([*first, tables.cell(result), ratio, f"{result['lines']:,}"])
    skipped = [f"{TITLES[peer]} skipped: {why}." for peer, why in results["setup"]["skipped"].items()]
    below = [f"Best (median) of {results['setup']['rounds']} rounds, one thread each.", *skipped]
    return "\n\n".join([tables.machine_text(results), tables.lay_out(lines, markdown), "\n".join(below)])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = parser_for(str(__doc__))
    parser.add_argument("--nets", nargs="+", choices=NETS, metavar="NET", default=["lenet", "resnet18"],
                        help=f"of {', '.join(NETS)}, default: lenet resnet18")  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", default=[1], help="default: 1")
    parser.set_defaults(threads=1)
    return finish(parser, parser.parse_args(arguments), "emitters")


def main() -> None:
    """Measure, and print the table."""
    options = parse()
    lacking = {peer: missing(peer) for peer in EMITTERS}
    skipped = {peer: f"not installed: {', '.join(names)}" for peer, names in lacking.items() if names}
    chosen = ["graphc", *(peer for peer in EMITTERS if peer not in skipped)]
    for peer, why in skipped.items():
        say(f"{TITLES[peer]} skipped: {why}")
    results = run(
        cases(options),
        lambda case: {peer: (peer, case) for peer in chosen},
        add_ratios,
        options,
        {"peers": chosen, "skipped": skipped},
        versions(PACKAGES),
    )
    print(text(results, markdown=options.markdown))
    save(results, options)


if __name__ == "__main__":
    main()
