"""What every benchmark here has in common: its options, the machine before and after, and a row for each case."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
from rounds import Runs, measure
from tqdm import tqdm
from worker import TITLES

RESULTS = Path(__file__).resolve().parent / "results"
BUSY = 10  # percent of all processors, above which a row is called disturbed

Case = dict[str, Any]


def usable() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bare_parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have; ``place`` fills in what is not given."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=1800, help="seconds that an answer may take")
    parser.add_argument("--quick", action="store_true", help="a small part, with fewer and shorter rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default NAME.json in benchmarks/results, "
                        "NAME_quick.json with --quick")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    return parser


def parser_for(text: str, seconds: float = 0.3) -> argparse.ArgumentParser:
    """Return a parser with the options of the benchmarks that time; ``finish`` fills in what is not given."""
    parser = bare_parser(text)
    parser.set_defaults(usual_seconds=seconds)
    parser.add_argument("--rounds", type=int, help="default 5, 3 with --quick")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help=f"of calls in a round, default {seconds}, 0.1 with --quick")  # fmt: skip
    parser.add_argument("--wait-policy", choices=("active", "passive"), help="OMP_WAIT_POLICY of each process; "
                        "by default not set, as users have it, which needs an otherwise idle machine")  # fmt: skip
    return parser


def place(options: argparse.Namespace, name: str) -> None:
    """The options say where the results go."""
    options.json = options.json or RESULTS / f"{name}{'_quick' if options.quick else ''}.json"


def finish(parser: argparse.ArgumentParser, options: argparse.Namespace, name: str) -> argparse.Namespace:
    """Return the options with their defaults, after an error for what cannot be."""
    if options.rounds is None:
        options.rounds = 3 if options.quick else 5
    if options.seconds is None:
        options.seconds = 0.1 if options.quick else options.usual_seconds
    place(options, name)
    if not 1 <= options.threads <= usable():
        parser.error(f"--threads: there are 1 to {usable()}")
    if options.rounds < 1 or options.limit <= 0 or options.seconds <= 0:
        parser.error("--rounds, --seconds and --limit must be positive")
    return options


def common(options: argparse.Namespace) -> Case:
    """Return the part of a case that every case has."""
    waits = {"wait_policy": options.wait_policy} if options.wait_policy else {}
    return {"threads": options.threads, **waits}


def one_and_all(case: Case, peer: str) -> Runs:
    """Return the runs of a case by one peer, on one thread and on all that the case has."""
    counts = dict.fromkeys((1, case["threads"]))
    return {thread_label(count): (peer, {**case, "threads": count}) for count in counts}


def thread_label(count: int) -> str:
    """Return the name of a run on so many threads."""
    return "1 thread" if count == 1 else f"{count} threads"


def confine(threads: int) -> None:
    """Run this process and those it starts on that many processors, so that no peer takes more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def say(text: str) -> None:
    """The text is on standard error, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def run(
    todo: list[Case],
    runs_of: Callable[[Case], Runs],
    add: Callable[[dict[str, Any], dict[str, Any]], None],
    options: argparse.Namespace,
    setup: dict[str, Any],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Return the results, which are also in the JSON file after every row.

    ``runs_of`` says what is run for a case, and ``add`` computes from a row and the machine what is derived.
    """
    confine(options.threads)
    say("measuring the machine")
    speeds = machine.measure(options.threads)
    facts = {**machine.describe(options.threads), "versions": versions}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    rounds = {"wait_policy": options.wait_policy, "rounds": options.rounds, "seconds": options.seconds}
    results: dict[str, Any] = {"machine": {**facts, **speeds}, "setup": {**rounds, **setup}, "rows": []}

    def write() -> None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")

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

            row = measure(case, runs_of(case), options, progress)
            complain(name, row)
            results["rows"].append(row)
            add(row, results["machine"])
            write()
        for folder in folders.values():
            folder.cleanup()
    say("measuring the machine again")
    results["machine"].update(machine.best_of(speeds, machine.measure(options.threads)))
    for row in results["rows"]:
        add(row, results["machine"])
    write()
    return results


def complain(name: str, row: dict[str, Any]) -> None:
    """Whatever is left out of the row, or makes its times doubtful, is said."""
    for label, result in row["peers"].items():
        if "left_out" in result:
            say(f"{name}: {TITLES.get(label, label)} left out: {result['left_out']}")
    if (row.get("busy_percent") or 0) > BUSY:
        say(f"{name}: other processes took {row['busy_percent']:.0f} % of the processors, times are too long")


def save(results: dict[str, Any], options: argparse.Namespace) -> None:
    """The results, with what was added to them, are in the JSON file."""
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    say(f"written to {options.json}")
