"""The stages of benchmarks/gpu/run.py: what each needs, what share of the time it gets, and how it runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import device_peers, equipment, report, speed
from session import usable

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck")
_ENDED = 7  # compute-sanitizer's exit status where it has found something
_LAST = 15  # lines of output that a failure shows


@dataclass
class Context:
    """A run: its options, what the machine has, the results so far, and when it must end."""

    options: argparse.Namespace
    found: equipment.Equipment
    results: dict[str, Any]
    until: float
    write: Callable[[], None]

    @property
    def target(self) -> str:
        """What graphc compiles for."""
        return "cuda-emulated" if self.options.dry_run else "cuda"

    @property
    def device(self) -> str:
        """Where PyTorch computes."""
        return "cpu" if self.options.dry_run else "cuda"

    def left(self) -> float:
        """Return the seconds until the end."""
        return self.until - time.monotonic()


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "passed", "failed" or "stopped" because its time was up; what is printed, what is kept."""

    state: str
    text: str = ""
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage. In the dry run it needs only what ``dry_needs`` names. ``share`` is its part of all the time."""

    name: str
    title: str
    needs: tuple[str, ...]
    dry_needs: tuple[str, ...]
    share: float
    run: Callable[[Context, float], Outcome]


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its status (None if its time was up) and what it printed."""

    status: int | None
    output: str

    def outcome(self, text: str = "", **kept: Any) -> Outcome:
        """Return the stage's outcome; a failure shows the last lines."""
        state = "stopped" if self.status is None else "failed" if self.status else "passed"
        tail = "\n".join(self.output.strip().splitlines()[-_LAST:])
        return Outcome(state, text if state == "passed" or not tail else f"{text}\n{tail}".strip(), kept)


def ended(command: list[str], seconds: float, **environment: str) -> Ended:
    """Return how a process ended, which is stopped with all that it has started after so many seconds."""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return Ended(None, output)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Ended(process.returncode, output)


def tests(context: Context, seconds: float) -> Outcome:
    """Run the tests of CUDA on the device; in the dry run one of them, in the quick form those of training."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    if context.options.dry_run:
        command += ["-k", "not_committed"]
    elif context.options.quick:
        command += ["-k", "lenet or not_committed"]
    elif context.found.facts.get("xdist"):
        command += ["-n", str(max(1, min(8, usable() // 2)))]  # mostly nvcc's time
    done = ended(command, seconds, GRAPHC_CUDA_TARGET=context.target)
    lines = done.output.strip().splitlines()
    return done.outcome(lines[-1] if lines else "", summary=lines[-1] if lines else "")


def pytorch(context: Context, seconds: float) -> Outcome:
    """Compare with PyTorch on the same device."""
    steps = 3 if context.options.dry_run else 10 if context.options.quick else 50
    script = str(FOLDER / "against_torch.py")
    command = [sys.executable, script, "--device", context.device, "--steps", str(steps)]
    if context.options.dry_run and context.options.quick:
        command += ["--nets", "mlp"]
    done = ended(command, seconds)
    rows = [json.loads(line) for line in done.output.splitlines() if line.startswith('{"net"')]
    return done.outcome(report.comparison(rows), rows=rows)


def sanitizer(context: Context, seconds: float) -> Outcome:
    """Run small nets plainly, which also builds them, then under every tool; the dry run ends before the tools."""
    until, quick = time.monotonic() + seconds, context.options.quick
    command = [sys.executable, str(FOLDER / "small.py"), "--target", context.target]
    command += ["--nets", "mlp"] if quick else []
    done = ended(command, seconds)
    if done.status != 0 or context.options.dry_run:
        return done.outcome(f"{done.output.strip()}\nwithout compute-sanitizer")
    kept, states = {}, []
    for tool in TOOLS[:1] if quick else TOOLS:
        program = [str(context.found.facts["sanitizer"]), "--tool", tool, "--error-exitcode", str(_ENDED)]
        watched = ended(
            [*program, "--target-processes", "application-only", *command], until - time.monotonic()
        )
        lines = [line for line in watched.output.splitlines() if line.startswith("=========")]
        states.append(watched.outcome().state)
        kept[tool] = {
            "state": states[-1],
            "said": lines[-1].strip("= ") if lines else "nothing",
            "first": lines[:40],
        }
    worst = next((state for state in ("failed", "stopped") if state in states), "passed")
    return Outcome(worst, "\n".join(f"{tool}: {r['state']}, {r['said']}" for tool, r in kept.items()), kept)


def ceilings(context: Context, seconds: float) -> Outcome:
    """Measure what the device can do, by libraries."""
    done = ended([sys.executable, str(FOLDER / "ceilings.py"), "--device", context.device], seconds)
    if done.status != 0:
        return done.outcome()
    found = json.loads(done.output.strip().splitlines()[-1])
    return Outcome("passed", report.ceilings(found), found)


def chosen_peers(context: Context) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the peers that can run, and why the others cannot."""
    skipped, lacking, dry = {}, context.found.lacking, context.options.dry_run
    if dry or context.options.quick or not context.options.compile:
        skipped["compile"] = "left out by --dry-run, --quick or --no-compile"
    if dry:
        skipped["onnxruntime"] = "left out by --dry-run"
    for peer, need in (("eager", "torch"), ("compile", "torch"), ("onnxruntime", "onnxruntime")):
        need += "" if dry else " with CUDA"
        if need in lacking:
            skipped.setdefault(peer, lacking[need])
    return tuple(peer for peer in speed.PEERS if peer not in skipped), skipped


def plan_of(context: Context, seconds: float, peers: tuple[str, ...]) -> speed.Plan:
    """Return what is timed."""
    options, dry = context.options, context.options.dry_run
    small = dry or options.quick
    nets = ("mlp", "lenet") if small else tuple(speed.SHARES)
    nets, modes = (nets[:1], speed.MODES[1:]) if dry and options.quick else (nets, speed.MODES)
    known = context.results["rows"]
    return speed.Plan(
        target=context.target, device=context.device,
        nets=tuple(n for n in speed.SHARES if n in options.nets) if options.nets else nets,
        batches=tuple(options.batches or ((2,) if dry else (64,) if small else speed.BATCHES)),
        modes=tuple(options.modes or modes),
        precisions=("fp32",) if dry else device_peers.PRECISIONS,
        peers=peers, rounds=1 if dry else 3 if small else 5, until=time.monotonic() + seconds, timed=not dry,
        memory=equipment.memory_bytes(context.found.facts),
        done=frozenset(speed.key(row) for row in known),
    )  # fmt: skip


def timing(context: Context, seconds: float) -> Outcome:
    """Time graphc beside its peers; the results are written after every row."""
    peers, skipped = chosen_peers(context)
    plan = plan_of(context, seconds, peers)
    context.results["setup"] |= {"peers": list(peers), "skipped": skipped, "rounds": plan.rounds}
    limits = context.results["stages"].get("ceilings", {})

    def add(row: dict[str, Any]) -> None:
        speed.add_ratios(row, limits)
        context.results["rows"].append(row)
        context.write()

    speed.run(plan, add, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    rows = context.results["rows"]
    notes = [f"{speed.titles()[peer]} skipped: {why}" for peer, why in skipped.items()]
    text = "\n\n".join([report.times(rows, markdown=context.options.markdown), "\n".join(notes)])
    refused = [
        row for row in rows for r in row["peers"].values() if r.get("left_out", "").startswith("refused")
    ]
    ours = [row for row in rows if "left_out" in row["peers"].get("graphc", {})]
    ours = [row for row in ours if not row["peers"]["graphc"]["left_out"].startswith("out of memory")]
    late = any("not_reached" in row for row in rows)
    return Outcome("failed" if refused or ours else "stopped" if late else "passed", text)


_GPU = ("gpu", "nvcc")
STAGES = (
    Stage("tests", "tests of CUDA on the device", _GPU, (), 0.3, tests),
    Stage("pytorch", "comparison with PyTorch", (*_GPU, "torch with CUDA"), ("torch",), 0.12, pytorch),
    Stage("sanitizer", "compute-sanitizer on small nets", (*_GPU, "compute-sanitizer"), (), 0.15, sanitizer),
    Stage("ceilings", "ceilings of the device", ("gpu", "torch with CUDA"), ("torch",), 0.05, ceilings),
    Stage("speed", "times beside the peers", _GPU, (), 1.0, timing),
)
