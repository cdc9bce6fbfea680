"""Check and measure graphc on a GPU, by one command: tests, PyTorch, compute-sanitizer, ceilings, times beside peers.

Each stage says what it found; a stage that lacks something is skipped with the reason, one whose time is up is
stopped, and the others run all the same. The rows of times come in the order of what is most telling, and the
results are written after each of them, so that a run that ends early leaves what it has measured. --resume goes on
from there.

Calls "from the host" take NumPy arrays and give NumPy arrays, copies included. The time of the kernels alone comes
from PyTorch's profiler for all peers, and is what is held against the ceilings; without PyTorch it stays unknown.
PyTorch and ONNX Runtime use TF32 in no row but that of TF32. Where the device's memory does not hold all peers of a
row at once, they are timed one after the other instead of in turns ("in_turns" of the row).

The dry run needs no GPU: every stage runs in a small form on the emulated device, and nothing is timed.

Examples:
    python benchmarks/gpu/run.py                                       everything, in ten minutes
    python benchmarks/gpu/run.py --quick                               in two
    python benchmarks/gpu/run.py --minutes 60 --stages ceilings speed  all rows
    python benchmarks/gpu/run.py --minutes 9 --stages speed --nets resnet50 --resume
    python benchmarks/gpu/run.py --dry-run                             on any machine
    python benchmarks/gpu/compile.py                                   what nvcc makes of all nets, without a GPU
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu import equipment, speed
from gpu.stages import STAGES, Context, Outcome, Stage
from session import RESULTS


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--quick", action="store_true", help="a small part of every stage")
    parser.add_argument("--dry-run", action="store_true", help="on the emulated device, without times")
    parser.add_argument("--minutes", type=float, help="for everything, default 10, 2 with --quick")
    parser.add_argument("--stages", nargs="+", choices=names, metavar="STAGE", default=names,
                        help=f"of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--nets", nargs="+", choices=speed.SHARES, metavar="NET",
                        help=f"to time, of {', '.join(speed.SHARES)}")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=speed.MODES, metavar="MODE", help="to time")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="to time")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default gpu.json in benchmarks/results, "
                        "gpu_quick.json with --quick, a temporary folder with --dry-run")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file already has")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    options = parser.parse_args(arguments)
    if options.minutes is None:
        options.minutes = 2 if options.quick and not options.dry_run else 10
    if options.minutes <= 0 or min(options.batches or [1]) < 1:
        parser.error("--minutes and --batches must be positive")
    if options.out is None:
        options.out = RESULTS / f"gpu{'_quick' if options.quick else ''}.json"
        if options.dry_run:
            options.out = Path(tempfile.mkdtemp(prefix="graphc-gpu-")) / "gpu.json"
    if options.dry_run and options.out.resolve().is_relative_to(RESULTS):
        parser.error(f"--out: a dry run measures nothing that belongs into {RESULTS}")
    return options


def begin(options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """Return results without rows, or with those of the same device that the file has."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    results: dict[str, Any] = {
        "dry_run": options.dry_run, "machine": {**facts, "cores": os.cpu_count(), "date": date},
        "setup": {"minutes": options.minutes, "quick": options.quick}, "stages": {}, "rows": [],
    }  # fmt: skip
    if options.resume and options.out.exists():
        before = json.loads(options.out.read_text())
        device = [r["machine"].get("gpu", {}).get("name") for r in (before, results)]
        if device[0] != device[1] or before["dry_run"] != options.dry_run:
            raise SystemExit(f"--resume: {options.out} is of {device[0]}, this machine has {device[1]}")
        results["stages"] = before["stages"]
        results["rows"] = [row for row in before["rows"] if "not_reached" not in row]
    return results


def write(results: dict[str, Any], file: Path) -> None:
    """The results are in the file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(file)


def run_stage(stage: Stage, context: Context) -> str:
    """Return how the stage ended, which is printed and noted in the results."""
    why = context.found.why_not(stage.dry_needs if context.options.dry_run else stage.needs)
    began = time.monotonic()
    if not why and context.left() <= 0:
        why = "no time was left"
    print(f"\n== {stage.name}: {stage.title}", flush=True)
    if why:
        outcome = Outcome("skipped", f"skipped: {why}")
    else:
        seconds = min(context.left(), stage.share * 60 * context.options.minutes)
        try:
            outcome = stage.run(context, seconds)
        except Exception as error:  # the other stages run all the same
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    spent = time.monotonic() - began
    if outcome.text:
        print(outcome.text)
    print(f"-- {stage.name} {outcome.state}" + (f" after {spent:.0f} s" if not why else ""), flush=True)
    kept = {"state": outcome.state, **outcome.kept}
    if outcome.state != "passed":
        kept["said"] = outcome.text[-2000:]
    # What was skipped does not replace what an earlier run has found.
    if outcome.state != "skipped" or stage.name not in context.results["stages"]:
        context.results["stages"][stage.name] = kept
    return outcome.state


def main() -> int:
    """Run the stages; return 1 if one failed, 2 if none could run."""
    options = parse()
    until = time.monotonic() + 60 * options.minutes
    # nvcc then compiles for all architectures at once.
    os.environ.setdefault("NVCC", "nvcc --threads 0")
    found = equipment.look()
    print("== equipment" + (" (dry run on the emulated device)" if options.dry_run else ""))
    print(equipment.text(found))
    results = begin(options, found.facts)
    # A machine without a GPU must not replace what another has measured.
    writes = options.dry_run or "gpu" not in found.lacking

    def save() -> None:
        if writes:
            write(results, options.out)

    context = Context(options, found, results, until, save)
    states = {}
    for stage in STAGES:
        if stage.name in options.stages:
            states[stage.name] = run_stage(stage, context)
            save()
    print("\n== summary\n" + "\n".join(f"{name}: {state}" for name, state in states.items()))
    if writes:
        print(f"written to {options.out}")
    if "failed" in states.values():
        return 1
    return 2 if set(states.values()) == {"skipped"} else 0


if __name__ == "__main__":
    sys.exit(main())
