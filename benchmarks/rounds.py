"""One row: start the peers, compare what they compute, and time them in turns."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from worker import NEEDS, TITLES, Worker, WorkerError, missing

TOLERANCE = 1e-3  # relative to the largest output
SETTLE = 0.05  # seconds between two peers, in which the threads of the first stop spinning

Case = dict[str, Any]
Progress = Callable[[str], None]
Runs = dict[str, tuple[str, Case]]  # by label: which peer, and what it is given; the first is compared with


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference relative to the largest value, infinite for other shapes or NaN."""
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-30))


def compare(
    ours: dict[str, Any], theirs: dict[str, Any], random: bool, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Return the differences of outputs, and of the first losses unless dropout makes them random.

    Raises:
        WorkerError: one is larger than the tolerance.
    """
    found = {"difference": difference(np.load(ours["output"]), np.load(theirs["output"]))}
    if ours["losses"] and not random:
        found["loss_difference"] = difference(np.array(ours["losses"]), np.array(theirs["losses"]))
    for what, value in found.items():
        if not value <= tolerance:
            raise WorkerError(f"refused: the {what} from graphc is {value:.2g}, more than {tolerance:g}")
    return found


def prepare(case: Case, runs: Runs, limit: float) -> str | None:
    """The weights that the peers share, and the ONNX file if one needs it, are in the case's folder.

    Returns why not: then graphc's own weights will do, and who needs the ONNX file is left out.
    """
    needed = {package for peer, _ in runs.values() for package in NEEDS[peer]}
    if "torch" not in needed or missing("eager"):
        return None
    try:
        Worker("prepare", {**case, "onnx": "onnx" in needed}, limit).stop()
    except WorkerError as error:
        return str(error)
    return None


def start_all(
    case: Case, runs: Runs, limit: float, progress: Progress
) -> tuple[dict[str, Worker], dict[str, dict[str, Any]]]:
    """Return the workers whose outputs agree with the first one's, and what is known of every run.

    Raises:
        WorkerError: the first one fails, so that there is nothing to compare with.
    """
    workers: dict[str, Worker] = {}
    known: dict[str, dict[str, Any]] = {}
    first = next(iter(runs))
    try:
        progress("weights")
        failure = prepare(case, runs, limit)
        if failure:
            known["prepare"] = {"left_out": failure}
        for label, (peer, given) in runs.items():
            progress(f"{TITLES.get(label, label)} starts")
            try:
                workers[label] = worker = Worker(peer, {**given, "label": label}, limit)
                known[label] = {"start_s": worker.facts["start_s"]} | worker.facts["more"]
                if label != first:
                    known[label] |= compare(workers[first].facts, worker.facts, case.get("dropout", False))
            except WorkerError as error:
                drop(label, workers, known, error)
                if label == first:
                    raise
    except BaseException:
        for worker in workers.values():
            worker.kill()
        raise
    return workers, known


def busy_share(seconds: float) -> float:
    """Return the part of all processors' time that was used in these seconds, when no peer works."""

    def ticks() -> tuple[int, int]:
        stat = Path("/proc/stat")
        if not stat.exists():
            return 0, 0
        fields = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4], sum(fields)  # all but idle and waiting for disks

    used, total = ticks()
    time.sleep(seconds)
    used_after, total_after = ticks()
    return (used_after - used) / max(1, total_after - total)


def drop(
    label: str, workers: dict[str, Worker], known: dict[str, dict[str, Any]], error: WorkerError
) -> None:
    """The run is stopped, and its entry says why."""
    if label in workers:
        workers.pop(label).kill()
    known[label] = {**known.get(label, {}), "left_out": str(error)}


def measure(case: Case, runs: Runs, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Return the row of a case: of each run the median and best milliseconds, or why it is left out."""
    shown = {key: value for key, value in case.items() if key != "folder"}
    row: dict[str, Any] = {**shown}
    try:
        workers, known = start_all(case, runs, options.limit, progress)
    except WorkerError as error:  # nothing to compare with
        return {**row, "peers": {next(iter(runs)): {"left_out": str(error)}}}
    row |= workers[next(iter(runs))].facts["work"]
    rounds: dict[str, list[dict[str, Any]]] = {label: [] for label in workers}
    busy: list[float] = []
    try:
        for number in range(options.rounds):
            order = list(workers)
            shift = number % len(order)
            for label in order[shift:] + order[:shift]:
                progress(f"round {number + 1} of {options.rounds}, {TITLES.get(label, label)}")
                time.sleep(SETTLE)
                busy.append(busy_share(SETTLE))
                try:
                    rounds[label].append(workers[label].ask({"seconds": options.seconds}))
                except WorkerError as error:
                    drop(label, workers, known, error)
        for label in workers:
            known[label] |= {
                "median_ms": 1e3 * statistics.median(r["median"] for r in rounds[label]),
                "best_ms": 1e3 * min(r["best"] for r in rounds[label]),
                "calls": sum(r["calls"] for r in rounds[label]),
            }
            workers[label].stop()
    finally:
        for worker in workers.values():
            worker.kill()
    row["busy_percent"] = round(100 * statistics.mean(busy), 1) if busy else None
    return {**row, "peers": known}
