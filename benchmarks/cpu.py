"""Compare graphc with every installed peer: same weights, same inputs, same number of threads, same run.

Each peer runs in a process of its own, since two OpenMP pools that spin in one process slow each other down.
The rounds take the peers in turns, one at a time. Outputs (and in training the first losses, where nothing is
random) are compared with graphc's before anything is timed; a peer that differs is left out, as is one that
fails or takes longer than --limit. FLOPs are those of the direct convolutions and products, two for each
multiply-accumulate, and three times the forward pass for training.

Examples:
    python benchmarks/cpu.py                                        the whole table, which takes long
    python benchmarks/cpu.py --quick --no-compile --markdown        small nets, about a minute
    python benchmarks/cpu.py --nets lenet resnet18 --modes inference --rounds 7 --json out.json
    python benchmarks/cpu.py --layers resnet50                      each distinct convolution alone

The peers come with: pip install -e '.[bench]'
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import tables
from nets import NETS, convolutions
from rounds import measure
from tqdm import tqdm
from worker import TITLES, missing, versions

RESULTS = Path(__file__).resolve().parent / "results"
BUSY = 10  # percent of all processors, above which a row is called disturbed
MODES = ("inference", "training")
LAYER_PEERS = ("graphc", "eager", "onnxruntime")

Case = dict[str, Any]


def cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, a row each."""
    common = {"threads": options.threads}
    if options.wait_policy:
        common["wait_policy"] = options.wait_policy
    if options.layers:
        return [
            {**common, "net": str(conv), "mode": "inference", "batch": batch, "conv": conv.to_dict(), "count": count}
            for conv, count in convolutions(options.layers).items()
            for batch in options.batches or (1, 16)
        ]  # fmt: skip
    found = []
    for net in options.nets or (("mlp", "lenet", "resnet18") if options.quick else NETS):
        large = NETS[net].batch
        for mode in options.modes:
            batches = options.batches or ((1, large) if mode == "inference" else (large,))
            if options.quick and net not in ("mlp", "lenet"):
                batches = (1,) if mode == "inference" else ()
            found += [{**common, "net": net, "mode": mode, "batch": batch} for batch in batches]
    return found


def peers_of(case: Case, chosen: list[str]) -> list[str]:
    """Return the peers that have an implementation of the case."""
    left_out = set() if case["net"] in ("mlp", "lenet") else {"jax"}
    if case["mode"] == "training":
        left_out |= {"onnxruntime", "openvino"}
    return [peer for peer in chosen if peer not in left_out]


def choose_peers(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Return the peers to run, and why the others are not."""
    wanted = options.peers or (LAYER_PEERS if options.layers else tuple(TITLES))
    chosen, skipped = [], {}
    for peer in TITLES:
        lacking = missing(peer)
        if peer != "graphc" and peer not in wanted:
            continue
        if peer == "compile" and not options.compile:
            skipped[peer] = "left out by --no-compile"
        elif lacking:
            skipped[peer] = f"not installed: {', '.join(lacking)}"
        else:
            chosen.append(peer)
    return chosen, skipped


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
                        help=f"of {', '.join(MODES)}")  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="in place of 1 and 16 (or 64)")
    parser.add_argument("--peers", nargs="+", choices=TITLES, metavar="PEER", help=f"of {', '.join(TITLES)}")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="mlp, lenet, and resnet18 at batch 1; 3 rounds")
    parser.add_argument("--layers", choices=NETS, metavar="NET", help="each distinct convolution of a net")
    parser.add_argument("--threads", type=int, default=usable, help=f"of each peer (default {usable})")
    parser.add_argument("--rounds", type=int, help="default 5, 3 with --quick")
    parser.add_argument("--seconds", type=float, help="of calls in a round, default 0.3, 0.1 with --quick")
    parser.add_argument("--wait-policy", choices=("active", "passive"), help="OMP_WAIT_POLICY of each peer; "
                        "by default not set, as users have it, which needs an otherwise idle machine")  # fmt: skip
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a peer's answer may take")
    parser.add_argument("--json", type=Path, help="default benchmarks/results/cpu.json; with --quick or "
                        "--layers cpu_quick.json or layers_NET.json")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.1 if options.quick else 0.3)
    name = f"layers_{options.layers}" if options.layers else "cpu_quick" if options.quick else "cpu"
    options.json = options.json or RESULTS / f"{name}.json"
    if not 1 <= options.threads <= usable:
        parser.error(f"--threads: there are 1 to {usable}")
    if options.rounds < 1 or options.limit <= 0 or options.seconds <= 0:
        parser.error("--rounds, --seconds and --limit must be positive")
    return options


def confine(threads: int) -> None:
    """Run this process and those it starts on that many processors, so that no peer takes more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def say(text: str) -> None:
    """The text is on standard error, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the results, which are also in the JSON file after every row."""
    chosen, skipped = choose_peers(options)
    for peer, why in skipped.items():
        say(f"{TITLES[peer]} skipped: {why}")
    confine(options.threads)
    say("measuring the machine")
    speeds = machine.measure(options.threads)
    facts = {**machine.describe(options.threads), "versions": versions()}
    setup = {
        "wait_policy": options.wait_policy,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "peers": chosen,
        "skipped": skipped,
    }
    results: dict[str, Any] = {"machine": {**facts, **speeds}, "setup": setup, "rows": []}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    todo = cases(options)
    with tqdm(todo, file=sys.stderr, unit="row", dynamic_ncols=True) as bar:
        folders: dict[str, tempfile.TemporaryDirectory[str]] = {}
        for case in bar:
            if case["net"] not in folders:  # the weights of the net before are not needed any more
                for folder in folders.values():
                    folder.cleanup()
                folders = {case["net"]: tempfile.TemporaryDirectory(prefix="graphc-bench-")}
            name = f"{case['net']} {case['mode']} {case['batch']}"
            case = {**case, "folder": folders[case["net"]].name}

            def progress(text: str, name: str = name) -> None:
                bar.set_description(f"{name}: {text}")

            row = measure(case, peers_of(case, chosen), options, progress)
            for peer, result in row["peers"].items():
                if "left_out" in result:
                    say(f"{name}: {TITLES.get(peer, peer)} left out: {result['left_out']}")
            if (row.get("busy_percent") or 0) > BUSY:
                say(
                    f"{name}: other processes took {row['busy_percent']:.0f} % of the processors, times are too long"
                )
            results["rows"].append(row)
            tables.add_ratios(row, results["machine"])
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        for folder in folders.values():
            folder.cleanup()
    say("measuring the machine again")
    results["machine"].update(machine.best_of(speeds, machine.measure(options.threads)))
    for row in results["rows"]:
        tables.add_ratios(row, results["machine"])
    results["geometric_means"] = tables.geometric_means(results["rows"])
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main() -> None:
    """Measure, and print the table."""
    options = parse()
    results = run(options)
    print(tables.text(results, markdown=options.markdown))
    say(f"written to {options.json}")


if __name__ == "__main__":
    main()
