"""Time graphc beside its peers on a GPU: one row for each net, mode, batch and precision, the most telling first."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import equipment
from nets import NETS
from rounds import compare, prepare
from session import usable
from worker import TITLES, Worker, WorkerError

SCRIPT = Path(__file__).resolve().with_name("device_peers.py")
# The nets in the order in which they are measured, and their share of the time.
SHARES = {"mlp": 1, "lenet": 1, "resnet50": 4, "resnet18": 2, "vgg16": 2, "alexnet": 2, "googlenet": 2}
BATCHES = (64, 1, 256)
MODES = ("inference", "training")
PEERS = ("graphc", "eager", "compile", "onnxruntime")
PROFILED_CALLS = 5
MARGIN = 4  # as much memory as graphc's blocks may another peer take
# TF32 keeps 11 bits of each factor, BF16 8; errors of a net's layers add up to several times that.
TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured, where, how often, and until when (by ``time.monotonic``)."""

    target: str
    device: str
    nets: tuple[str, ...]
    batches: tuple[int, ...]
    modes: tuple[str, ...]
    precisions: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: int
    until: float
    timed: bool = True
    memory: int = 0
    done: frozenset[tuple[Any, ...]] = field(default=frozenset())

    def cases(self, net: str) -> list[Row]:
        """Return the rows of a net that are not there yet, float32 first."""
        common = {
            "threads": usable(),
            "target": self.target,
            "device": self.device,
            "dropout": NETS[net].dropout,
        }
        found = [
            {"net": net, "mode": mode, "batch": batch, "precision": precision, **common}
            for precision in self.precisions
            for batch in self.batches
            for mode in self.modes
        ]
        return [case for case in found if key(case) not in self.done]


def key(row: Row) -> tuple[Any, ...]:
    """Return what tells a row from all others."""
    return row["net"], row["mode"], row["batch"], row["precision"]


def name_of(row: Row) -> str:
    """Return ``resnet50 training 64 float32``."""
    return " ".join(map(str, key(row)))


def run(plan: Plan, add: Callable[[Row], None], say: Say) -> None:
    """Every row that there is time for has been handed to ``add``, those that there is none for with the reason."""
    nets = list(plan.nets)
    for number, net in enumerate(nets):
        shares = [SHARES[n] for n in nets[number:]]
        left = plan.until - time.monotonic()
        until = time.monotonic() + left * shares[0] / sum(shares)
        cases = plan.cases(net)
        if left > 0 and plan.timed:
            build(cases, left, say)
        with tempfile.TemporaryDirectory(prefix="graphc-bench-") as folder:
            for position, case in enumerate(cases):
                seconds = (until - time.monotonic()) / (len(cases) - position)
                if time.monotonic() >= plan.until:
                    add({**case, "peers": {}, "not_reached": "no time was left"})
                    continue
                say(name_of(case))
                add(measure(plan, {**case, "folder": folder}, max(seconds, 1.0)))


def build(cases: list[Row], limit: float, say: Say) -> None:
    """The modules of all rows of a net are in the build cache, made at once; what fails is told by its row."""

    def one(case: Row) -> None:
        with tempfile.TemporaryDirectory(prefix="graphc-bench-") as folder:
            try:
                Worker("build", {**case, "folder": folder}, limit, SCRIPT).stop()
            except WorkerError as error:
                say(f"{name_of(case)}: not built: {error}")

    if cases:
        say(f"{cases[0]['net']}: building {len(cases)} modules")
        with ThreadPoolExecutor(max(1, usable() // 2)) as pool:
            list(pool.map(one, cases))


class _Row:
    """A row while it is measured."""

    def __init__(self, plan: Plan, case: Row, seconds: float):
        self.plan, self.case, self.until = plan, case, time.monotonic() + seconds
        self.workers: dict[str, Worker] = {}
        self.known: dict[str, Row] = {}
        self.ours: Row | None = None
        self.clocks: list[dict[str, float]] = []

    def left(self) -> float:
        """Return the seconds that the row still has."""
        return self.until - time.monotonic()

    def drop(self, peer: str, error: WorkerError) -> None:
        """The peer is stopped, and its entry says why."""
        if peer in self.workers:
            self.workers.pop(peer).kill()
        self.known[peer] = {**self.known.get(peer, {}), "left_out": reason(str(error))}

    def start(self, peer: str) -> None:
        """The peer waits for requests, if it computes what graphc does."""
        if peer in self.workers or "left_out" in self.known.get(peer, {}):
            return
        # What torch.compile looks for may take longer than everything else; it gets half of what is left.
        limit = max(30.0, self.left() * (0.5 if peer == "compile" else 1.0))
        try:
            worker = self.workers[peer] = Worker(peer, {**self.case, "label": peer}, limit, SCRIPT)
            self.known[peer] = {"start_s": round(worker.facts["start_s"], 2), **worker.facts["more"]}
            if peer == "graphc":
                self.ours = worker.facts
            elif self.ours is not None:
                tolerance = TOLERANCES[self.case["precision"]]
                self.known[peer] |= compare(self.ours, worker.facts, self.case["dropout"], tolerance)
        except WorkerError as error:
            self.drop(peer, error)

    def rounds(self, peers: list[str], share: float) -> None:
        """These peers have been timed in turns, in a share of the time that is left, and are stopped."""
        for peer in peers:
            self.start(peer)
        asks = [
            (peer, way) for peer in peers if peer in self.workers for way in self.workers[peer].facts["ways"]
        ]
        times: dict[tuple[str, str], list[dict[str, float]]] = {ask: [] for ask in asks}
        seconds = min(1.0, max(0.02, 0.8 * share * self.left() / max(1, self.plan.rounds * len(asks))))
        for number in range(self.plan.rounds):
            if number and self.left() <= 0:
                break
            shift = number % max(1, len(asks))
            for ask in asks[shift:] + asks[:shift]:
                self._ask(ask, seconds, times[ask])
        for peer in peers:
            if peer in self.workers:
                self._finish(peer, {way: times[peer, way] for p, way in asks if p == peer})

    def _ask(self, ask: tuple[str, str], seconds: float, times: list[dict[str, float]]) -> None:
        peer, way = ask
        if peer not in self.workers:
            return
        try:
            times.append(self.workers[peer].ask({"way": way, "seconds": seconds if self.plan.timed else 0.0}))
        except WorkerError as error:
            self.drop(peer, error)
        if self.plan.timed:
            self.clocks.append(equipment.clocks())

    def _finish(self, peer: str, times: dict[str, list[dict[str, float]]]) -> None:
        for way, found in times.items():
            self.known[peer][way] = (
                {
                    "median_ms": 1e3 * statistics.median(r["median"] for r in found),
                    "best_ms": 1e3 * min(r["best"] for r in found),
                    "calls": sum(r["calls"] for r in found),
                }
                if self.plan.timed
                else {"calls": sum(r["calls"] for r in found)}
            )
        if self.plan.timed:
            way = "device" if "device" in times else "host"
            try:
                self.known[peer] |= self.workers[peer].ask({"way": way, "profile": PROFILED_CALLS})
            except WorkerError as error:
                self.known[peer]["kernels_unknown"] = str(error)
        self.workers.pop(peer).stop()


def reason(text: str) -> str:
    """Return why a peer is left out; whatever words tell that memory is lacking become the same."""
    lacking = ("out of memory", "OutOfMemory", "bytes left", "failed to allocate", "BFCArena", "MemoryError")
    return f"out of memory ({text})" if any(word in text for word in lacking) else text


def measure(plan: Plan, case: Row, seconds: float) -> Row:
    """Return the row of a case: of each peer the times of its ways to be called, or why it is left out.

    Peers are timed in turns where the device has room for all of them at once, else one after the other.
    """
    peers = [
        p
        for p in plan.peers
        if p != "onnxruntime" or (case["mode"] == "inference" and case["precision"] != "bf16")
    ]
    row = _Row(plan, case, seconds)
    try:
        failed = prepare(case, {peer: (peer, case) for peer in peers}, max(60.0, seconds))
        if failed:
            row.known["prepare"] = {"left_out": failed}
        row.start("graphc")
        needed = row.known["graphc"].get("device_bytes", 0) * MARGIN * len(peers)
        # If graphc had no room, nobody knows what the others need.
        together = row.ours is not None and needed <= (plan.memory or needed)
        groups = [peers] if together else [[peer] for peer in peers]
        for number, group in enumerate(groups):
            row.rounds(group, 1 / (len(groups) - number))
    finally:
        for worker in row.workers.values():
            worker.kill()
    shown = {name: value for name, value in case.items() if name != "folder"}
    work = row.ours["work"] if row.ours is not None else {}
    return {**shown, **work, "in_turns": together, "clocks": ranges(row.clocks), "peers": row.known}


def ranges(samples: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the smallest and the largest value of each quantity."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    found = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: [min(values), max(values)] for name, values in found.items()}


def add_ratios(row: Row, ceilings: dict[str, Any]) -> None:
    """The row says how many times as long as graphc the fastest peer takes, and what part of the ceiling is reached.

    Calls from the host are compared with calls from the host. On the device, the time of graphc's kernels is compared
    with that of the peers' kernels, and FLOP/s are held against the product of the same precision.
    """
    ours = row["peers"].get("graphc", {})
    others = {peer: r for peer, r in row["peers"].items() if peer != "graphc"}
    for what, found in (
        ("host", lambda r: r.get("host", {}).get("best_ms")),
        ("kernels", lambda r: r.get("kernels_ms")),
    ):
        own, theirs = found(ours), {peer: found(r) for peer, r in others.items() if found(r)}
        if own and theirs:
            fastest = min(theirs, key=lambda peer: theirs[peer])
            row[f"{what}_ratio"], row[f"{what}_fastest"] = theirs[fastest] / own, fastest
    most = ceilings.get(f"{row['precision']}_tflops")
    if most and "flops" in row:
        for peer, result in row["peers"].items():
            spent = result.get("kernels_ms")
            if spent:
                row["peers"][peer]["percent_of_product"] = 100 * row["flops"] / spent / 1e9 / most


def titles() -> dict[str, str]:
    """Return the peers' names as they are printed."""
    return {peer: TITLES[peer] for peer in PEERS}
