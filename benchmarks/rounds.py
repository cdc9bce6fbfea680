"""One row: start the peers, compare what they compute, and time them in turns."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from worker import TITLES, Worker, WorkerError, missing

TOLERANCE = 1e-3  # relative to the largest output
SETTLE = 0.05  # seconds between two peers, in which the threads of the first stop spinning

Case = dict[str, Any]
Progress = Callable[[str], None]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference relative to the largest value, infinite for other shapes or NaN."""
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-30))


def compare(ours: dict[str, Any], theirs: dict[str, Any], random: bool) -> dict[str, float]:
    """Return the differences of outputs, and of the first losses unless dropout makes them random.

    Raises:
        WorkerError: one is larger than the tolerance.
    """
    found = {"difference": difference(np.load(ours["output"]), np.load(theirs["output"]))}
    if ours["losses"] and not random:
        found["loss_difference"] = difference(np.array(ours["losses"]), np.array(theirs["losses"]))
    for what, value in found.items():
        if not value <= TOLERANCE:
            raise WorkerError(f"refused: the {what} from graphc is {value:.2g}, more than {TOLERANCE:g}")
    return found


def start_all(
    case: Case, peers: list[str], limit: float, random: bool, progress: Progress
) -> tuple[dict[str, Worker], dict[str, dict[str, Any]]]:
    """Return the workers whose outputs agree with graphc's, and what is known of every peer."""
    workers: dict[str, Worker] = {}
    known: dict[str, dict[str, Any]] = {}
    try:
        if not missing("eager"):
            progress("weights")
            onnx = bool({"onnxruntime", "openvino"} & set(peers))
            try:
                Worker("prepare", {**case, "onnx": onnx}, limit).stop()
            except WorkerError as error:  # graphc's own weights will do; who needs the ONNX file is left out
                known["prepare"] = {"left_out": str(error)}
        for peer in peers:
            progress(f"{TITLES[peer]} starts")
            try:
                workers[peer] = worker = Worker(peer, case, limit)
                known[peer] = {"start_s": worker.facts["start_s"]}
                if peer != "graphc" and "graphc" in workers:
                    known[peer] |= compare(workers["graphc"].facts, worker.facts, random)
            except WorkerError as error:
                drop(peer, workers, known, error)
                if peer == "graphc":
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


def drop(peer: str, workers: dict[str, Worker], known: dict[str, dict[str, Any]], error: WorkerError) -> None:
    """The peer is stopped, and its entry says why."""
    if peer in workers:
        workers.pop(peer).kill()
    known[peer] = {**known.get(peer, {}), "left_out": str(error)}


def measure(case: Case, peers: list[str], options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Return the row of a case: of each peer the median and best milliseconds, or why it is left out."""
    from nets import net_of

    shown = {key: value for key, value in case.items() if key != "folder"}
    row: dict[str, Any] = {**shown}
    try:
        workers, known = start_all(case, peers, options.limit, net_of(case).dropout, progress)
    except WorkerError as error:  # nothing to compare with
        return {**row, "peers": {"graphc": {"left_out": str(error)}}}
    row |= {key: workers["graphc"].facts[key] for key in ("flops", "arena_bytes")}
    rounds: dict[str, list[dict[str, Any]]] = {peer: [] for peer in workers}
    busy: list[float] = []
    try:
        for number in range(options.rounds):
            order = list(workers)
            shift = number % len(order)
            for peer in order[shift:] + order[:shift]:
                progress(f"round {number + 1} of {options.rounds}, {TITLES[peer]}")
                time.sleep(SETTLE)
                busy.append(busy_share(SETTLE))
                try:
                    rounds[peer].append(workers[peer].ask({"seconds": options.seconds}))
                except WorkerError as error:
                    drop(peer, workers, known, error)
        for peer in workers:
            known[peer] |= {
                "median_ms": 1e3 * statistics.median(r["median"] for r in rounds[peer]),
                "best_ms": 1e3 * min(r["best"] for r in rounds[peer]),
                "calls": sum(r["calls"] for r in rounds[peer]),
            }
            workers[peer].stop()
    finally:
        for worker in workers.values():
            worker.kill()
    row["busy_percent"] = round(100 * statistics.mean(busy), 1) if busy else None
    return {**row, "peers": known}
