"""The benchmarks: what is measured, what is computed from it, and small runs in which the peers compute the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

import cpu
import emitters
import exact
import kernels
import memory
import nets
import peers
import placement
import resident
import scaling
import session
from c_peers import lines_of_code
from tables import add_ratios

import graphc as gc
from graphc.errors import DataError
from graphc.memory import ArenaPlan, Interval, plan_arena

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
    pytest.importorskip("onnx", reason="emitters read the file that PyTorch exports by onnx, an extra")
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


def test_kernels_cases() -> None:
    found = kernels.cases(kernels.parse([]))
    assert len({(case["net"], case["mode"], case["batch"]) for case in found}) == len(found)
    assert {case["batch"] for case in found if "product" in case} == {64, 256, 1024}
    images = [case for case in found if case["net"] == "3x224x224 -> 64, 7x7/2"]
    assert {(case["mode"], case["batch"]) for case in images} == {
        ("forward", 1), ("forward", 16), ("weights", 1), ("weights", 16),
    }  # fmt: skip
    shared = [case for case in found if case["net"] == "256x56x56 -> 512, 1x1/2"]
    assert len(shared) == 6
    few = kernels.cases(kernels.parse(["--only", "3x3/2", "--modes", "input", "--batches", "4"]))
    assert [case["batch"] for case in few] == [4, 4, 4] and all("3x3/2" in case["net"] for case in few)


@pytest.mark.parametrize(
    ("mode", "shape"), [("forward", (8, 5, 3)), ("input", (6, 9, 5)), ("weights", (8, 3, 3, 3))]
)
def test_a_kernel_and_its_gradients_have_the_same_flops(mode: str, shape: tuple[int, ...]) -> None:
    conv = nets.Convolution(6, 9, 5, 8, (3, 3), (2, 2), (1, 1), (1, 1), 2)
    node = nets.kernel_of(gc, {"conv": conv.to_dict(), "mode": mode})
    assert node.shape[-len(shape) :] == shape
    assert node.op.flops(node.type, *(given.type for given in node.inputs)).at(2) == 2 * 2 * 8 * 5 * 3 * 3 * 9


def test_product_kernel() -> None:
    product = nets.Product(4, 3, 5)
    case = {"product": product.to_dict(), "batch": 4, "threads": 1}
    weight = np.random.default_rng(1).standard_normal((5, 3), dtype=np.float32)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5), dtype=np.float32)
    _, out, facts = peers.kernel({**case, "mode": "forward"})
    np.testing.assert_allclose(out, x @ weight, rtol=1e-5, atol=1e-5)  # five products of about one
    assert facts["work"] == {"flops": 2 * 4 * 3 * 5, "bytes": 4 * (20 + 12 + 15), "kernels": ["out_matmul"]}


def test_kernels_table() -> None:
    one, two = {"best_ms": 1.0}, {"best_ms": 0.7}  # 90 and 129 of 100 and 190 GFLOP/s
    case = {"batch": 16, "mode": "input", "threads": 2, "flops": 9e7, "bytes": 7e6}
    slow = {**case, "net": "slow", "peers": {"1 thread": dict(one), "2 threads": dict(two)}}
    fast = {**case, "net": "fast", "peers": {"1 thread": dict(one), "2 threads": {"best_ms": 0.55}}}
    failed = {**case, "net": "failed", "peers": {"1 thread": {"left_out": "?"}}}
    for row in (slow, fast, failed):
        kernels.add_percentages(row, MACHINE)
    assert [kernels.below(row) for row in (slow, fast, failed)] == [True, False, False]
    results = {"machine": MACHINE, "setup": {"rounds": 5}, "rows": [slow, fast, failed]}
    text = kernels.text(results, markdown=True)
    assert "| slow | input | 16 | 90.0 | 90 % | 128.6 | 68 % < | 50 % |" in text
    assert "| fast | input | 16 | 90.0 | 90 % | 163.6 | 86 % | 64 % |" in text
    assert "| failed | input | 16 | - | - | - | - | - |" in text
    assert "input, 2 threads: 1 of 2 reach 80 % of the peak" in text
    assert "fast" not in kernels.text(results, markdown=True, only_below=True)


def test_memory_of_processes(tmp_path: Path) -> None:
    """Three processes of one net, each of which takes more with the net than by its imports alone."""
    file = tmp_path / "results.json"
    command = [
        sys.executable, str(FOLDER / "memory.py"), "--nets", "mlp", "--modes", "inference", "--batch", "1",
        "--peers", "runtime", "graphc", "eager", "--threads", "1", "--json", str(file), "--markdown",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| mlp | inference | 1 |" in done.stdout
    (row,) = json.loads(file.read_text())["rows"]
    found = row["peers"]
    assert list(found) == ["runtime", "graphc", "eager"]
    weights = 4 * (784 * 512 + 512 * 512 + 512 * 10 + 2 * 512 + 10)
    assert weights <= found["graphc"]["weights_bytes"] < 1.01 * weights
    for result in found.values():
        assert result["peak_bytes"] > result["imports_bytes"] + weights
    # The compiler is what the runtime does without.
    assert found["runtime"]["imports_bytes"] < found["graphc"]["imports_bytes"]


def test_memory_cases_and_peers() -> None:
    options = memory.parse(["--nets", "lenet", "resnet18", "--batch", "4", "--threads", "1"])
    found = memory.cases(options)
    assert [(case["net"], case["mode"], case["batch"]) for case in found] == [
        (net, mode, batch)
        for net in ("lenet", "resnet18")
        for mode, batch in (
            ("inference", 1),
            ("inference", 4),
            ("training", 4),
            ("training", 4),
            ("training", 4),
        )
    ]
    titles = ["training", "training, lean", "training, lean, 60% of its arena"]
    assert [memory.title_of(case) for case in found[2:5]] == titles
    assert memory.peers_of(found[4], list(memory.TITLES)) == ["runtime", "graphc"]
    assert memory.peers_of(found[2], list(memory.TITLES)) == ["runtime", "graphc", "eager", "compile"]
    assert memory.peers_of(found[0], list(memory.TITLES)) == list(memory.TITLES)


def test_memory_table() -> None:
    mib = memory.MIB
    ours = {"imports_bytes": 40 * mib, "peak_bytes": 90 * mib, "kept_bytes": 10 * mib}
    ours |= {"weights_bytes": 4 * mib, "arena_bytes": 12 * mib}
    runtime = {"imports_bytes": 30 * mib, "peak_bytes": 80 * mib, "seconds": 0.0125}
    eager = {"imports_bytes": 200 * mib, "peak_bytes": 1300 * mib, "kept_bytes": 25 * mib}
    row = {
        "net": "lenet",
        "mode": "training",
        "batch": 16,
        "peers": {"runtime": runtime, "graphc": ours, "eager": eager},
    }
    failed = {"net": "vgg16", "mode": "inference", "batch": 1, "peers": {"eager": {"left_out": "no room"}}}
    facts = {**MACHINE, "system": "Linux", "python": "3"}
    results = {
        "machine": facts,
        "setup": {"skipped": {"openvino": "not installed: openvino"}},
        "rows": [row, failed],
    }
    text = memory.text(results, markdown=True)
    assert "| lenet | training | 16 | 80 (30) | 90 (40) | 1,300 (200) |" in text
    assert "| vgg16 | inference | 1 | - | - | left out |" in text
    assert "| lenet | training | 16 | 4.0 | 12.0 | 10.0 | 25.0 | - | 2.50 | 12 | - |" in text
    assert "vgg16 inference 1: PyTorch eager left out: no room." in text
    assert "OpenVINO skipped: not installed: openvino." in text


def test_saved_tensors_are_counted_once() -> None:
    """What LeNet's layers need for their gradients, at batch 2; without the images, weights and labels."""
    activations = 6 * 28**2 + 6 * 14**2 + 16 * 10**2 + 400 + 120 + 84 + 10
    indices = 6 * 14**2 + 16 * 5**2  # of the two maximum poolings, in int64
    got = resident.kept({"net": "lenet", "batch": 2, "threads": 1})
    # The sum of weights that the loss divides by is a scalar, which not every version saves.
    assert 0 <= got - 2 * (4 * activations + 8 * indices) <= 8


def test_files_of_instances(tmp_path: Path) -> None:
    file = tmp_path / "half_open.csv"
    file.write_text("size,upper,id,lower,hint\n4,3,a,0,x\n4,9,b,3,y\n")
    assert placement.read(file).intervals == [Interval("a", 0, 3, 4), Interval("b", 3, 9, 4)]
    file.write_text("buffer,start,end,size\na,0,3,4\nb,3,9,4\n")
    assert placement.read(file).intervals == [Interval("a", 0, 3, 4), Interval("b", 3, 9, 4)]
    for wrong, message in (
        ("id,lower,size\na,0,4\n", "columns upper are missing among id, lower, size"),
        ("id,lower,upper,size\na,0,3,many\n", "many"),
        ("id,lower,upper,size,gaps\na,0,9,4,2-3\n", "buffer a has gaps"),
    ):
        file.write_text(wrong)
        with pytest.raises(DataError, match=message):
            placement.read(file)


@pytest.mark.parametrize("seed", range(4))
def test_cut_rectangles_are_full(seed: int) -> None:
    """Where the pieces lay before is a plan without waste, so that the bound is the optimum."""
    pieces, instance = placement.cut(40, seed), placement.rectangle(40, seed)
    assert len(pieces) == len(instance.intervals) == 40
    plan = ArenaPlan(tuple(instance.intervals), tuple(64 * piece.bottom for piece in pieces))
    assert plan.arena_bytes == plan.lower_bound_bytes == placement.BYTES
    assert set(plan.live_bytes) == {placement.BYTES}


def test_placement_table() -> None:
    row = placement.measure(placement.rectangle(8, 0), 1000, 0)
    assert (row["buffers"], row["bound"]) == (8, placement.BYTES)
    worse = {**row, "bound": 100, "arena": 150, "ratio": 1.5, "seconds": 0.25}
    worse["exact"] = {"arena": 100, "proven": True, "seconds": 2.0}
    results = {
        "machine": {**MACHINE, "python": "3"},
        "setup": {"effort": 7, "no_exact": "?"},
        "rows": [worse],
    }
    text = placement.text(results, markdown=True)
    assert "| cut | 8 seed 0 | 8 | 100 | 150 | 1.5000 | 0.25 | 100 | 1.0000 | yes | 2.0 |" in text
    assert "0 of 1 plans meet the bound, the worst ratio is 1.5000." in text


def test_exact_plans() -> None:
    pytest.importorskip("ortools", reason="OR-Tools is not installed, an extra")
    rows = [(4, 6, 3), (0, 1, 5), (1, 4, 1), (0, 4, 1), (5, 6, 3), (0, 3, 2), (1, 5, 4), (3, 5, 1), (5, 9, 2)]
    intervals = [Interval(f"b{k}", *row) for k, row in enumerate(rows)]  # 9 at best, though the bound is 8
    plan, proven = exact.plan_exactly(intervals, plan_arena(intervals, alignment=1, effort=0), 20)
    assert (plan.arena_bytes, proven) == (9, True)
    instance = placement.rectangle(12, 1)
    plan, proven = exact.plan_exactly(instance.intervals, plan_arena(instance.intervals, effort=0), 20)
    assert (plan.arena_bytes, proven) == (placement.BYTES, True)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("budget", [r"lenet +32 +90 % +[\d,.]+ +\d+ % +\d+ % +\d+ %|lenet +32 +90 % +- +- +- +cannot be"]),
        (
            "exported",
            [
                r"from C +[\d.]+ \([\d.]+\) us a call",
                r"from Python +[\d.]+ \([\d.]+\) us a call, [\d.]+ times",
            ],
        ),
    ],
)
def test_the_quick_form_of_a_benchmark(name: str, lines: list[str], tmp_path: Path) -> None:
    """It prints its table and writes its file."""
    file = tmp_path / "results.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for line in lines:
        assert re.search(line, done.stdout), done.stdout
    assert json.loads(file.read_text())
