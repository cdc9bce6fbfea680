"""The benchmarks: what is measured, what is computed from it, and small runs in which the peers compute the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

import cpu
import emitters
import scaling
import session
from c_peers import lines_of_code
from tables import add_ratios

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPT = FOLDER / "cpu.py"
MACHINE = {
    "cpu": "", "threads": 2, "isa": "", "compiler": "", "flags": [], "date": "", "versions": {},
    "fma_gflops_one_core": 100.0, "fma_gflops": 190.0, "bandwidth_gb_s": 20.0, "fork_join_us": 1.0,
}  # fmt: skip


def test_one_row(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [
        sys.executable, str(SCRIPT), "--nets", "lenet", "--modes", "inference", "--batches", "2",
        "--peers", "eager", "--rounds", "1", "--seconds", "0.01", "--threads", "1",
        "--json", str(file), "--markdown",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| lenet | inference | 2 |" in done.stdout
    results = json.loads(file.read_text())
    assert {"cpu", "threads", "date", "flags", "versions", "fma_gflops", "bandwidth_gb_s"} <= set(
        results["machine"]
    )
    assert results["setup"]["peers"] == ["graphc", "eager"]
    (row,) = results["rows"]
    assert (row["net"], row["mode"], row["batch"], row["threads"]) == ("lenet", "inference", 2, 1)
    assert row["flops"] == 2 * 2 * (6 * 25 * 28**2 + 16 * 6 * 25 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10)
    assert row["peers"]["eager"]["difference"] < 1e-4
    for peer in row["peers"].values():
        assert 0 < peer["best_ms"] <= peer["median_ms"]
    assert row["ratio"] == pytest.approx(row["peers"]["eager"]["best_ms"] / row["peers"]["graphc"]["best_ms"])
    assert results["geometric_means"]["inference"]["fastest"] == pytest.approx(row["ratio"])


def test_emitters_are_no_peers_unless_asked_for() -> None:
    chosen, skipped = cpu.choose_peers(cpu.parse(["--threads", "1"]))
    assert not {"emx", "onnx2c"} & {*chosen, *skipped}
    chosen, skipped = cpu.choose_peers(cpu.parse(["--peers", "emx", "onnx2c", "--threads", "1"]))
    assert {"emx", "onnx2c"} <= {*chosen, *skipped}
    row = {
        "flops": 1e6,
        "peers": {"graphc": {"best_ms": 2.0}, "eager": {"best_ms": 3.0}, "emx": {"best_ms": 2.5}},
    }
    add_ratios(row, {"fma_gflops": 1.0})
    assert (row["fastest_peer"], row["ratio"], row["gflops"]) == ("eager", 1.5, 0.5)


def test_emitters_table() -> None:
    entries = {"graphc": {"best_ms": 2.0, "median_ms": 3.0, "lines": 1500}}
    entries |= {"emx": {"best_ms": 20.0, "median_ms": 21.0, "lines": 600}, "onnx2c": {"left_out": "refused"}}
    row = {"net": "lenet", "batch": 1, "flops": 4e6, "peers": entries}
    emitters.add_ratios(row, {})
    results = {"machine": MACHINE, "setup": {"rounds": 5, "skipped": {}}, "rows": [row]}
    text = emitters.text(results, markdown=True)
    assert "| lenet | 1 | graphc | 2.000 (3.000) |  | 1,500 |" in text
    assert "| lenet | 1 | emx-onnx-cgen | 20.00 (21.00) | 10.0 | 600 |" in text
    assert "onnx2c" not in text


def test_values_of_weights_are_no_lines_of_code() -> None:
    text = "static const float w[2][2] =\n{\n  {1, 2},\n  {3, 4}\n};\nvoid entry(void) {\n}\n"
    assert lines_of_code(text) == 3


def test_emitter_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "onnx2c"
    program.write_text("#!/bin/sh\necho 'void entry(const float *x, float *y) { y[0] = 2*x[0]; }'\n")
    program.chmod(0o755)
    file = tmp_path / "results.json"
    command = [
        sys.executable,
        str(FOLDER / "cpu.py"),
        "--nets",
        "mlp",
        "--modes",
        "inference",
        "--batches",
        "1",
    ]
    command += [
        "--peers",
        "onnx2c",
        "--threads",
        "1",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "--json",
        str(file),
    ]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert row["peers"]["graphc"]["lines"] > 100 and "ratio" not in row
    assert row["peers"]["onnx2c"]["left_out"].startswith("refused: the difference from graphc")


def test_scaling_cases() -> None:
    found = scaling.cases(scaling.parse(["--nets", "resnet18", "vgg16", "--threads", "1"]))
    assert [(case["net"], case["mode"], case["batch"]) for case in found] == [
        ("resnet18", "inference", 16), ("resnet18", "training", 16),
        ("vgg16", "inference", 16), ("vgg16", "training", 16),
    ]  # fmt: skip


def test_each_number_of_threads_is_a_run() -> None:
    runs = session.one_and_all({"threads": 2, "net": "lenet"}, "graphc")
    assert {label: (peer, case["threads"]) for label, (peer, case) in runs.items()} == {
        "1 thread": ("graphc", 1),
        "2 threads": ("graphc", 2),
    }
    assert list(session.one_and_all({"threads": 1}, "graphc")) == ["1 thread"]


def test_scaling_efficiency() -> None:
    assert scaling.efficiency(one=8.0, many=2.5, threads=4) == pytest.approx(0.8)
    one, two = {"best_ms": 30.0, "median_ms": 31.0}, {"best_ms": 20.0, "median_ms": 22.0}
    case = {"mode": "training", "batch": 16, "threads": 2}
    row = {**case, "net": "lenet", "peers": {"1 thread": one, "2 threads": two}}
    scaling.add_efficiency(row, MACHINE)
    assert row["efficiency"] == pytest.approx(0.75) and row["efficiency_of_peak"] == pytest.approx(0.95)
    failed = {**case, "net": "vgg16", "peers": {"1 thread": {"left_out": "?"}}}
    scaling.add_efficiency(failed, MACHINE)
    text = scaling.text({"machine": MACHINE, "setup": {"rounds": 5}, "rows": [row, failed]}, markdown=True)
    assert "| lenet | training | 16 | 30.00 (31.00) | 20.00 (22.00) | 75 % |" in text
    assert "| vgg16 | training | 16 | left out | - | - |" in text
    assert "Geometric mean, training: 75 %." in text
