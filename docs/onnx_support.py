"""Runs ONNX's backend suite against graphc and writes docs/onnx_support.md: what passes, fails and is unsupported.

    python docs/onnx_support.py                      all tests; writes docs/onnx_support.md
    python docs/onnx_support.py --only 'conv|gemm'   those whose names match, listed on the terminal
    python docs/onnx_support.py --only . --json results.json

Nothing of graphc's stands between the suite and the results: the suite builds models, calls the backend and compares.
Tests run in processes of their own, so that one that crashes takes nothing with it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

PAGE = Path(__file__).parent / "onnx_support.md"
NOTES = {
    "test_dft_inverse": "the exact result is 0 there; the suite expects the 1.9e-7 that its own float32 transform "
    "rounds to, beyond its own tolerance",
}
"""What the page says of failures that are no mistakes of graphc's, by the beginning of their names."""
_SECONDS = 300  # after which a test counts as failed


@dataclass(frozen=True)
class Outcome:
    """What became of a test. ``ulp`` is the largest distance of a floating-point output from the expected value."""

    name: str
    category: str
    operator: str
    status: str  # passed, known (passed, by importing alone), unsupported, failed
    reason: str = ""
    ulp: float = 0.0
    seconds: float = 0.0


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest distance in units in the last place of the expected value's type; NaNs are equal."""
    if actual.dtype != expected.dtype or actual.dtype not in (np.float32, np.float64) or not actual.size:
        return 0.0
    whole = np.int32 if actual.dtype == np.float32 else np.int64

    def ordered(array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array).view(whole).astype(object)
        least = int(np.iinfo(whole).min)
        return np.where(bits < 0, least - bits, bits)

    differences = np.abs(ordered(actual) - ordered(expected))
    same = (np.isnan(actual) & np.isnan(expected)) | (actual == expected)
    return float(np.max(np.where(same, 0, differences)))


class Suite:
    """ONNX's tests by name, made to remember how far results are from what is expected."""

    def __init__(self) -> None:
        """Build all tests, which takes some seconds."""
        from onnx.backend.test import BackendTest

        from graphc.onnx_backend import Backend, Rep

        suite = self
        self.ulp, self.rep = 0.0, None

        class Recording(Backend):
            @classmethod
            def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Rep:
                suite.rep = super().prepare(model, device, **kwargs)
                return suite.rep

        class Measuring(BackendTest):  # type: ignore[misc]  # the package has no types
            @classmethod
            def assert_similar_outputs(
                cls, ref_outputs: Any, outputs: Any, *rest: Any, **kwargs: Any
            ) -> None:
                super().assert_similar_outputs(ref_outputs, outputs, *rest, **kwargs)
                pairs = zip(outputs, ref_outputs, strict=True)
                arrays = [(a, b) for a, b in pairs if isinstance(a, np.ndarray) and isinstance(b, np.ndarray)]
                suite.ulp = max([suite.ulp, *(distance(a, b) for a, b in arrays)])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            items = Measuring(Recording, __name__)._test_items
        self.items = {
            name.removesuffix("_cpu"): (category, item)
            for category, tests in items.items()
            for name, item in tests.items()
            if name.endswith("_cpu")
        }

    def run(self, name: str) -> Outcome:
        """Run one test."""
        import unittest

        category, item = self.items[name]
        self.ulp, self.rep, start = 0.0, None, time.perf_counter()
        status, reason = "passed", ""
        try:
            item.func(unittest.TestCase())
        except unittest.SkipTest as error:
            status, reason = "unsupported", str(error)
        except Exception as error:  # whatever a wrong answer or a mistake of ours raises
            status, reason = "failed", f"{type(error).__name__}: {error}"
        found: Any = self.rep._found if self.rep is not None else None
        if status == "passed" and found is not None and len(self.rep.known) == len(found.outputs):  # type: ignore[attr-defined]
            status = "known"
        return Outcome(
            name,
            category,
            _operator(name, category, item.proto[0]),
            status,
            reason,
            self.ulp,
            time.perf_counter() - start,
        )


def _operator(name: str, category: str, model: Any) -> str:
    """Return the operator that a test is about: that of its only node, or what its name says."""
    if model is not None and category == "NodeModel" and len(model.graph.node) == 1:
        return str(model.graph.node[0].op_type)
    if category == "NodeModel" and "expanded" in name:
        return "decompositions (" + name.removeprefix("test_").split("_")[0] + ")"
    return f"models: {category.removesuffix('Model')}"


def work() -> None:
    """Run the tests whose names come in as lines, and print an outcome a line."""
    suite = Suite()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(suite.run(line.strip()))), flush=True)


class Worker:
    """A process that runs tests; it is started anew after a crash."""

    def __init__(self) -> None:
        """Start it."""
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str] = queue.Queue()

    def run(self, name: str, category: str) -> Outcome:
        """Return the outcome of a test, also where it does not come back."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        try:
            line = self.lines.get(timeout=_SECONDS)
        except queue.Empty:
            line = ""
        if line:
            return Outcome(**json.loads(line))
        process.kill()
        self.process = None
        code = process.wait()
        return Outcome(name, category, f"models: {category}", "failed", f"crashed or took too long ({code})")

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            command = [sys.executable, "-W", "ignore", __file__, "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self.lines = queue.Queue()
            assert self.process.stdout is not None
            threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
            self.lines.get(timeout=_SECONDS)
        return self.process


def _read(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line.strip())
    lines.put("")


def run_all(names: Sequence[tuple[str, str]], workers: int) -> Iterator[Outcome]:
    """Yield the outcomes of all tests, as they come."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for pair in names:
        waiting.put(pair)

    def serve() -> None:
        worker = Worker()
        while True:
            try:
                pair = waiting.get_nowait()
            except queue.Empty:
                break
            done.put(worker.run(*pair))
        if worker.process is not None:
            worker.process.kill()

    for _ in range(workers):
        threading.Thread(target=serve, daemon=True).start()
    for _ in names:
        yield done.get()


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the page: totals, a row an operator, and every reason why something is unsupported or failed."""
    import onnx

    count = {s: sum(o.status == s for o in outcomes) for s in ("passed", "known", "failed", "unsupported")}
    lines = [
        "# ONNX support",
        "",
        "Written by `python docs/onnx_support.py`; do not edit. ONNX's own backend suite "
        f"(`onnx.backend.test.BackendTest` of onnx {onnx.__version__}, {len(outcomes)} tests on the processor) run "
        "against `graphc.onnx_backend`, with nothing in between: every model is imported, compiled to C, built and "
        "called, and the suite compares.",
        "",
        f"**{count['passed'] + count['known']} pass**, {count['failed']} fail, {count['unsupported']} are "
        f"unsupported (refused with a reason). Of those that pass, {count['known']} have results that are known when "
        "importing (shapes, ranges, constants), so that no C was made. ULP is the largest distance of a "
        "floating-point result from what the suite expects, which it computed in NumPy; its tolerance is relative, "
        "so that results near 0 may be many ULP away.",
        "",
        "| operator | passed | of these known | failed | unsupported | largest ULP |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        grouped[outcome.operator].append(outcome)
    for operator in sorted(grouped, key=str.lower):
        group = grouped[operator]
        n = {s: sum(o.status == s for o in group) for s in count}
        ulp = max((o.ulp for o in group if o.status == "passed"), default=0.0)
        shown = f"{ulp:.0f}" if ulp < 1e6 else f"{ulp:.1e}"
        passed = n["passed"] + n["known"]
        lines.append(
            f"| {operator} | {passed} | {n['known']} | {n['failed']} | {n['unsupported']} | {shown} |"
        )
    for status, title in (("failed", "Failed"), ("unsupported", "Unsupported")):
        chosen = sorted((o for o in outcomes if o.status == status), key=lambda o: o.name)
        if chosen:
            lines += ["", f"## {title}", ""]
            lines += [f"- `{o.name}`: {_short(o.reason)}{_note(o)}" for o in chosen]
    return "\n".join(lines) + "\n"


def _note(outcome: Outcome) -> str:
    notes = [note for name, note in NOTES.items() if outcome.name.startswith(name)]
    return f" ({notes[0]})" if notes and outcome.status == "failed" else ""


def _short(reason: str) -> str:
    """Return a reason without line breaks, and without what differs from machine to machine."""
    text = " ".join(reason.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 220 else text[:217] + "..."


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="REGEX", help="run tests whose names match, and write no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes to a file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("ONNX_HOME", home)
        suite = Suite()
        chosen = [(n, c) for n, (c, _) in suite.items.items() if re.search(options.only or "", n)]
        outcomes = []
        for k, outcome in enumerate(run_all(chosen, options.workers), 1):
            outcomes.append(outcome)
            if options.only and outcome.status in ("failed", "unsupported"):
                print(
                    f"{outcome.status}: {outcome.name}: {' '.join(outcome.reason.split())[:300]}", flush=True
                )
            elif not options.only and k % 50 == 0:
                print(f"{k} of {len(chosen)}", flush=True)
    for status in ("passed", "known", "failed", "unsupported"):
        print(f"{status}: {sum(o.status == status for o in outcomes)}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    if not options.only:
        PAGE.write_text(page(sorted(outcomes, key=lambda o: o.name)))
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
