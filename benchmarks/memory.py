"""Measure how much memory a whole process takes with graphc and with its peers, and what training keeps.

Every number is the largest resident memory of a process of its own, which the parent reads (VmHWM of /proc, so
this needs Linux) while the process waits at its end, after three training steps or inferences. What it had taken
by the imports alone, before there was a net, is read as well. graphc and torch.compile compile in a process
before, so that what is measured finds the compiled code in the cache; "graphc runtime" is a process that loads
the same code and never imports the compiler. Each peer draws its own first weights (the runtime alone gets
constants), as nothing is compared here. Compilers that run as other processes are not counted.

What training keeps for the backward pass is graphc's plan, and PyTorch's tensors that autograd saves in one forward
pass with the loss: each storage once, without parameters, buffers, the net's input and the labels.

The mode "lean" is a training step with ``keep_gradients=False``, "budget" one with a ``memory_budget`` as well. The
time of a step is the shortest of three, a hint and no benchmark: cpu.py takes times.

Examples:
    python benchmarks/memory.py                                       all six nets, which takes long
    python benchmarks/memory.py --nets lenet resnet18 --modes training
    python benchmarks/memory.py --nets lenet --peers runtime graphc eager --quick

The peers come with: pip install -e '.[bench]'
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import rounds
import tables
import worker
from nets import NETS
from session import Case, bare_parser, complain, confine, place, save, say, usable
from tqdm import tqdm
from worker import Worker, WorkerError, missing, versions

PACKAGES = ("graphc", "torch", "onnxruntime", "openvino", "numpy")
MODES = ("inference", "training", "lean", "budget")
USUAL = ("lenet", "alexnet", "vgg16", "googlenet", "resnet18", "resnet50")
TITLES = {
    "runtime": "graphc runtime",
    **{p: worker.TITLES[p] for p in ("graphc", "eager", "compile", "onnxruntime", "openvino")},
}
TRAINERS = ("runtime", "graphc", "eager", "compile")
KEEPERS = ("eager", "compile")  # whose saved tensors are counted; graphc's plan tells its own
STEPS = 3  # training steps or inferences
MIB = 2**20
RESIDENT = Path(__file__).resolve().with_name("resident.py")


def cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, a row each."""
    same = {"threads": options.threads, "alone": True, "steps": STEPS}
    lean = {"mode": "training", "lean": True}
    forms = {
        "inference": [{"mode": "inference", "batch": batch} for batch in sorted({1, options.batch})],
        "training": [{"mode": "training", "batch": options.batch}],
        "lean": [{**lean, "batch": options.batch}],
        "budget": [{**lean, "batch": options.batch, "budget": options.budget}],
    }
    nets = options.nets or (("lenet",) if options.quick else USUAL)
    return [{**same, "net": net, **form} for net in nets for mode in options.modes for form in forms[mode]]


def title_of(row: dict[str, Any]) -> str:
    """Return what a row's mode is called."""
    budget = f", {row['budget']:.0%} of its arena" if row.get("budget") else ""
    return row["mode"] + (", lean" if row.get("lean") else "") + budget


def choose_peers(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Return the peers to measure, and which are skipped and why."""
    wanted = [peer for peer in TITLES if peer in (options.peers or TITLES)]
    skipped = {peer: f"not installed: {', '.join(missing(peer))}" for peer in wanted if missing(peer)}
    return [peer for peer in wanted if peer not in skipped], skipped


def peers_of(case: Case, chosen: list[str]) -> list[str]:
    """Return the peers that can do the case."""
    able = ("runtime", "graphc") if case.get("lean") else TITLES if case["mode"] == "inference" else TRAINERS
    return [peer for peer in chosen if peer in able]


def peak(pid: int) -> int:
    """Return the most bytes that a process has had in memory.

    The kernel's count for ended processes (ru_maxrss) will not do: it begins with what the parent had at the fork.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(size) * 1024


def measured(peer: str, case: Case, limit: float) -> dict[str, Any]:
    """Return the memory of a peer's process before and with the net, and what the peer knows of its net.

    Raises:
        WorkerError: the peer cannot do this case.
    """
    process = Worker(peer, case, limit, RESIDENT)
    try:
        before = peak(process.process.pid)
        facts = process.ask({})
        return {"imports_bytes": before, "peak_bytes": peak(process.process.pid), **facts}
    finally:
        process.stop()


def measure(case: Case, chosen: list[str], limit: float, progress: rounds.Progress) -> dict[str, Any]:
    """Return the row of a case: for every peer its memory, or why it is left out."""
    present = peers_of(case, chosen)
    row: dict[str, Any] = {k: v for k, v in case.items() if k not in ("folder", "alone")} | {"peers": {}}
    exported = {peer: (peer, case) for peer in present if "onnx" in worker.NEEDS[peer]}
    progress("ONNX")
    failure = rounds.prepare(case, exported, limit) if exported else None
    for peer in present:
        progress(TITLES[peer])
        row["peers"][peer] = found = {}
        try:
            if failure and peer in exported:
                raise WorkerError(failure)
            compile_first(peer, case, limit, again="runtime" in present)
            found |= measured(peer, case, limit)
            if case["mode"] == "training" and peer in KEEPERS:
                progress(f"{TITLES[peer]}, saved tensors")
                found["kept_bytes"] = measured(peer, {**case, "mode": "kept"}, limit)["kept_bytes"]
        except WorkerError as error:
            found["left_out"] = str(error)
    return row


def compile_first(peer: str, case: Case, limit: float, *, again: bool) -> None:
    """What the peer compiles is in its cache; ``again`` says that graphc's runtime has had its net compiled before.

    Raises:
        WorkerError: the peer cannot do this case.
    """
    if peer == "runtime" or (peer == "graphc" and not again):
        measured("graphc", {**case, "steps": 0}, limit)
    elif peer == "compile":
        measured("compile", {**case, "steps": 1}, limit)


def run(options: argparse.Namespace, chosen: list[str], skipped: dict[str, str]) -> dict[str, Any]:
    """Return the results, which are also in the JSON file after every row."""
    confine(options.threads)
    facts = {**machine.describe(options.threads), "versions": versions(PACKAGES)}
    setup = {"peers": chosen, "skipped": skipped}
    results: dict[str, Any] = {"machine": facts, "setup": setup, "rows": []}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(cases(options), file=sys.stderr, unit="row", dynamic_ncols=True) as bar:
        for case in bar:
            name = f"{case['net']} {title_of(case)} {case['batch']}"

            def progress(text: str, name: str = name) -> None:
                bar.set_description(f"{name}: {text}")

            with tempfile.TemporaryDirectory(prefix="graphc-bench-") as folder:
                row = measure({**case, "folder": folder}, chosen, options.limit, progress)
            complain(name, row)
            results["rows"].append(row)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def cell(result: dict[str, Any] | None) -> str:
    """Return the largest memory and that of the imports in MiB, or what stands in their place."""
    if result is None:
        return "-"
    if "peak_bytes" not in result:
        return "left out"
    return f"{result['peak_bytes'] / MIB:,.0f} ({result['imports_bytes'] / MIB:,.0f})"


def mebibytes(size: int | None) -> str:
    """Return a number of bytes in MiB."""
    return "-" if size is None else f"{size / MIB:,.1f}"


def kept_line(row: dict[str, Any]) -> list[str]:
    """Return the table's line of what a training step keeps."""
    ours = row["peers"].get("graphc", {})
    sizes = [row["peers"].get(peer, {}).get("kept_bytes") for peer in ("graphc", *KEEPERS)]
    ratio = f"{sizes[1] / sizes[0]:.2f}" if sizes[0] and sizes[1] else "-"
    others = [mebibytes(ours.get(key)) for key in ("weights_bytes", "arena_bytes")]
    seconds = [row["peers"].get(peer, {}).get("seconds") for peer in ("runtime", "eager")]
    times = ["-" if s is None else f"{1e3 * s:,.0f}" for s in seconds]
    return [row["net"], title_of(row), str(row["batch"]), *others, *map(mebibytes, sizes), ratio, *times]


def text(results: dict[str, Any], *, markdown: bool) -> str:
    """Return the machine and both tables."""
    rows, facts = results["rows"], results["machine"]
    present = [peer for peer in TITLES if any(peer in row["peers"] for row in rows)]
    lines = [["net", "mode", "batch", *(TITLES[peer] for peer in present)]]
    lines += [
        [row["net"], title_of(row), str(row["batch"]), *(cell(row["peers"].get(peer)) for peer in present)]
        for row in rows
    ]
    names = [f"{name} {version}" for name, version in facts["versions"].items()]
    above = (
        f"{facts['system']}, {tables.count(facts['threads'], 'thread')}, Python {facts['python']}, {facts['date']}."
        f"\n{', '.join(names)}.\n"
        "Largest resident memory of a whole process in MiB, and in parentheses that after the imports alone."
    )
    parts = [above, tables.lay_out(lines, markdown)]
    trained = [row for row in rows if row["mode"] == "training"]
    if trained:
        head = ["net", "mode", "batch", "weights", "graphc's arena"]
        head += [f"kept by {TITLES[peer]}" for peer in ("graphc", *KEEPERS)] + ["eager / graphc"]
        head += [f"step of {TITLES[peer]}, ms" for peer in ("runtime", "eager")]
        parts.append("Kept for the backward pass, in MiB:")
        parts.append(tables.lay_out([head, *map(kept_line, trained)], markdown))
    left = [
        f"{row['net']} {title_of(row)} {row['batch']}: {TITLES[peer]} left out: {result['left_out']}."
        for row in rows
        for peer, result in row["peers"].items()
        if "left_out" in result
    ]
    left += [f"{TITLES[peer]} skipped: {why}." for peer, why in results["setup"]["skipped"].items()]
    return "\n\n".join([*parts, *(["\n".join(left)] if left else [])])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = bare_parser(str(__doc__))
    parser.add_argument("--nets", nargs="+", choices=NETS, metavar="NET",
                        help=f"of {', '.join(NETS)}; default: {' '.join(USUAL)}, lenet with --quick")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
                        help=f"of {', '.join(MODES)}")  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, metavar="N",
                        help="of training, and of inference beside 1; default: 16")  # fmt: skip
    parser.add_argument("--peers", nargs="+", choices=TITLES, metavar="PEER", help=f"of {', '.join(TITLES)}")
    parser.add_argument("--threads", type=int, default=usable(), help=f"of each peer (default {usable()})")
    parser.add_argument("--budget", type=float, default=0.6, metavar="PART",
                        help="of the arena, in the mode of that name; default: 0.6")  # fmt: skip
    options = parser.parse_args(arguments)
    place(options, "memory")
    if not 1 <= options.threads <= usable() or options.batch < 1 or options.limit <= 0:
        parser.error(f"--batch and --limit must be positive, and --threads in 1 to {usable()}")
    return options


def main() -> None:
    """Measure, and print the tables."""
    options = parse()
    chosen, skipped = choose_peers(options)
    for peer, why in skipped.items():
        say(f"{TITLES[peer]} skipped: {why}")
    results = run(options, chosen, skipped)
    print(text(results, markdown=options.markdown))
    save(results, options)


if __name__ == "__main__":
    main()
