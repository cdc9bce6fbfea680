"""The benchmarks of a GPU: their dry run, what is read from tools, and what is computed from times."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

from gpu import compile as compiled_cuda
from gpu import device_peers, equipment, ptxas, report, run, small, speed, stages
from session import RESULTS

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z8update_1PfPKfS_PK6gc_run' for 'sm_80'
ptxas info    : Function properties for _Z8update_1PfPKfS_PK6gc_run
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 384 bytes cmem[0]
ptxas info    : Compiling entry function '_ZL15conv1_bias_gradPKfPf' for 'sm_90'
ptxas info    : Function properties for _ZL15conv1_bias_gradPKfPf
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 32 bytes smem, 376 bytes cmem[0]
"""


@pytest.mark.slow
def test_the_dry_run_passes_every_stage(tmp_path: Path) -> None:
    """All stages run on the emulated device, agree with PyTorch and C, and leave no times."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--dry-run", "--quick", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    assert results["dry_run"]
    assert {name: stage["state"] for name, stage in results["stages"].items()} == dict.fromkeys(
        ("tests", "pytorch", "sanitizer", "ceilings", "speed"), "passed"
    )
    assert "1 passed" in results["stages"]["tests"]["summary"]
    assert results["stages"]["pytorch"]["rows"][0]["wrong"] == []
    assert [(r["net"], r["mode"], r["batch"]) for r in results["rows"]] == [("mlp", "training", 2)]
    for row in results["rows"]:
        assert row["peers"]["eager"]["difference"] < 1e-4 and row["peers"]["graphc"]["host"] == {"calls": 1}
    assert "_ms" not in file.read_text() and "ratio" not in file.read_text()
    # Nothing that looks like a speed of a device, either.
    assert {v for name, v in results["stages"]["ceilings"].items() if name != "state"} == {None}


def test_the_quick_form_of_the_compilation(tmp_path: Path) -> None:
    """Nvcc makes an MLP for both architectures without local memory."""
    if shutil.which(os.environ.get("NVCC", "nvcc").split()[0]) is None:
        pytest.skip("nvcc is not installed")
    file = tmp_path / "compile.json"
    command = [sys.executable, str(FOLDER / "compile.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^mlp +[\d,]+ +\d+ +[\d.]+ +[\d.]+ +\d+ \(\d+\) +[\d,]+ +0 +\d+", done.stdout, re.M)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["faults"] == [] and set(row["architectures"]) == {"sm_80", "sm_90"}


def test_what_ptxas_says_is_read() -> None:
    update, bias = ptxas.read(SAID)
    assert update == ptxas.Assembled("update_1", "sm_80", 30, 0, 0)
    assert bias == ptxas.Assembled("conv1_bias_grad", "sm_90", 255, 32, 16)
    with pytest.raises(ValueError, match="registers or the stack of _Z8update_1"):
        ptxas.read("\n".join(SAID.splitlines()[:3]))


def test_a_kernel_in_local_memory_fails_its_net() -> None:
    """So do warnings, and kernels that ptxas says nothing of."""
    kernels = ptxas.read(SAID)
    assert compiled_cuda.faults(0, SAID, kernels, 1) == [
        "1 kernel in local memory: conv1_bias_grad (sm_90): 16 bytes"
    ]
    assert compiled_cuda.faults(0, "", kernels[:1], 1) == [
        "sm_90: ptxas tells of 0 kernels, the source has 1"
    ]
    warning = 'net.cu(3): error #177-D: variable "n" was declared but never referenced'
    assert warning in compiled_cuda.faults(2, warning, [], 1)[0]


def test_a_dry_run_never_writes_into_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.parse(["--dry-run", "--out", str(RESULTS / "gpu.json")])
    assert "a dry run measures nothing" in capsys.readouterr().err
    assert run.parse(["--quick"]).out == RESULTS / "gpu_quick.json"
    assert not run.parse(["--dry-run"]).out.is_relative_to(RESULTS)


def context(tmp_path: Path, *arguments: str, **lacking: str) -> stages.Context:
    """Return a run on a machine that has all but what is lacking."""
    options = run.parse(["--out", str(tmp_path / "gpu.json"), *arguments])
    facts = {"gpu": {"name": "a GPU", "memory.total": "81559 MiB"}, "sanitizer": "/bin/compute-sanitizer"}
    results: dict[str, Any] = {"machine": facts, "setup": {}, "stages": {}, "rows": [], "dry_run": False}
    found = equipment.Equipment(facts, lacking)
    return stages.Context(options, found, results, time.monotonic() + 60, lambda: None)


def test_a_stage_that_lacks_something_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier run's result stays; a stage that fails is no reason to stop."""
    needy = stages.Stage("ceilings", "ceilings", ("nvcc",), (), 0.1, lambda *_: stages.Outcome("passed"))
    run_of = context(tmp_path, nvcc="no nvcc on PATH")
    assert run.run_stage(needy, run_of) == "skipped"
    assert "skipped: no nvcc on PATH" in capsys.readouterr().out
    run_of.results["stages"]["ceilings"] = {"fp32_tflops": 50.0}
    run.run_stage(needy, run_of)
    assert run_of.results["stages"]["ceilings"] == {"fp32_tflops": 50.0}
    failing = stages.Stage("tests", "tests", (), (), 0.1, lambda *_: 1 / 0)  # type: ignore[arg-type,return-value]
    assert run.run_stage(failing, run_of) == "failed"
    assert "ZeroDivisionError" in run_of.results["stages"]["tests"]["said"]
    assert run.run_stage(failing, context(tmp_path, "--dry-run", nvcc="no nvcc")) == "failed"


def test_resuming_keeps_the_rows_of_the_same_device(tmp_path: Path) -> None:
    before = context(tmp_path).results
    reached = {"net": "mlp", "mode": "training", "batch": 64, "precision": "fp32"}
    before["rows"] = [reached, {**reached, "batch": 1, "not_reached": "no time was left"}]
    options = run.parse(["--resume", "--out", str(tmp_path / "gpu.json")])
    run.write(before, options.out)
    results = run.begin(options, before["machine"])
    assert results["rows"] == [reached]
    plan = stages.plan_of(context(tmp_path), 1.0, ("graphc",))
    done = frozenset(map(speed.key, results["rows"]))
    left = speed.Plan(**{**vars(plan), "done": done}).cases("mlp")
    assert [(c["batch"], c["mode"]) for c in left if c["precision"] == "fp32"] == [
        (64, "inference"), (1, "inference"), (1, "training"), (256, "inference"), (256, "training"),
    ]  # fmt: skip
    assert plan.nets[:3] == ("mlp", "lenet", "resnet50") and plan.memory == 81559 << 20
    with pytest.raises(SystemExit, match="is of a GPU, this machine has another"):
        run.begin(options, {"gpu": {"name": "another"}})


def test_compute_sanitizer_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain run comes first, and what one tool finds fails the stage."""
    commands: list[list[str]] = []

    def ended(command: list[str], seconds: float, **environment: str) -> stages.Ended:
        commands.append(command)
        if "racecheck" in command:
            return stages.Ended(7, "========= Error: Race reported\n========= RACECHECK SUMMARY: 1 hazard\n")
        return stages.Ended(0, "mlp: as C\n========= ERROR SUMMARY: 0 errors\n")

    monkeypatch.setattr(stages, "ended", ended)
    outcome = stages.sanitizer(context(tmp_path), 60.0)
    assert outcome.state == "failed"
    assert outcome.text.splitlines() == [
        "memcheck: passed, ERROR SUMMARY: 0 errors",
        "racecheck: failed, RACECHECK SUMMARY: 1 hazard",
        "initcheck: passed, ERROR SUMMARY: 0 errors",
    ]
    assert commands[0][1].endswith("small.py") and commands[1][:3] == [
        "/bin/compute-sanitizer",
        "--tool",
        "memcheck",
    ]


def test_a_stage_whose_time_is_up_is_stopped() -> None:
    """What it has started is gone, and what it printed is kept."""
    done = stages.ended(["sh", "-c", "echo begun; sleep 600; echo over"], 1.0)
    assert done.status is None and done.output == "begun\n"
    assert done.outcome().state == "stopped"


def test_the_gpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ", ".join(["NVIDIA H100", "570.1", "81559 MiB", "81000 MiB", "1980 MHz", "2619 MHz", "1980 MHz",
                        "2619 MHz", "700.00 W", "9.0", "Enabled"])  # fmt: skip
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = equipment.look()
    assert "gpu" not in found.lacking and equipment.memory_bytes(found.facts) == 81559 << 20
    assert "GPU: NVIDIA H100, compute capability 9.0, driver 570.1" in equipment.text(found)
    program.write_text("#!/bin/sh\necho '1755 MHz, 2619 MHz, 61, 512.25 W'\n")
    assert equipment.clocks() == {
        "clocks.sm": 1755,
        "clocks.mem": 2619,
        "temperature.gpu": 61,
        "power.draw": 512.25,
    }


def test_time_of_kernels() -> None:
    """Copies from and to the host are no kernels, nor is what the profiler tells of the processor."""
    events = [
        SimpleNamespace(key=key, device_type=kind, self_device_time_total=spent)
        for key, kind, spent in (
            ("fc1_matmul", "DeviceType.CUDA", 400.0),
            ("update_1", "DeviceType.CUDA", 800.0),
            ("Memcpy HtoD (Pageable -> Device)", "DeviceType.CUDA", 9000.0),
            ("Memcpy DtoD (Device -> Device)", "DeviceType.CUDA", 200.0),
            ("cudaGraphLaunch", "DeviceType.CPU", 5000.0),
        )
    ]
    times = device_peers.kernel_times(events, 4)
    assert list(times.items()) == [
        ("update_1", 0.2), ("fc1_matmul", 0.1), ("Memcpy DtoD (Device -> Device)", 0.05),
    ]  # fmt: skip


def test_ratios_and_tables() -> None:
    """Host is compared with host and kernels with kernels; a lack of memory is said as such."""
    ours: dict[str, Any] = {"host": {"best_ms": 4.0, "median_ms": 5.0}, "kernels_ms": 2.0}
    eager = {
        "host": {"best_ms": 6.0, "median_ms": 6.5},
        "device": {"best_ms": 3.0, "median_ms": 3.5},
        "kernels_ms": 1.0,
    }
    lacking = {"left_out": speed.reason("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")}
    row = {"net": "resnet50", "mode": "training", "batch": 64, "precision": "tf32", "flops": 4e11,
           "peers": {"graphc": ours, "eager": eager, "compile": lacking}}  # fmt: skip
    speed.add_ratios(row, {"tf32_tflops": 400.0, "fp32_tflops": 50.0})
    assert (row["host_ratio"], row["kernels_ratio"], row["kernels_fastest"]) == (1.5, 0.5, "eager")
    assert ours["percent_of_product"] == pytest.approx(50.0)  # 200 of 400 TFLOP/s
    late = {**row, "batch": 1, "peers": {}, "not_reached": "no time was left"}
    text = report.times([row, late], markdown=True)
    assert (
        "| resnet50 | training | 64 | tf32 | 4.000 (5.000) | 6.000 (6.500) | out of memory | 1.50 |" in text
    )
    assert "| resnet50 | training | 64 | tf32 | - | 3.000 (3.500) | out of memory | - |" in text
    assert "| resnet50 | training | 64 | tf32 | 2.000 | 1.000 | out of memory | 0.50 | 50 % |" in text
    assert "resnet50 training 1 tf32: not reached: no time was left" in text
    assert speed.reason("DeviceError: module 'net': the device has no 8 bytes left").startswith(
        "out of memory"
    )
    assert speed.reason("no answer within 30 s") == "no answer within 30 s"


def test_a_wrong_value_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    computed = {"cuda": {"logits": np.array([1.0, np.nan])}, "c": {"logits": np.array([1.0, 2.0])}}
    monkeypatch.setattr(small, "compiled", lambda name, target: target)
    monkeypatch.setattr(small, "run", lambda name, module: computed[module])
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda _: argparse.Namespace(nets=["mlp"], target="cuda")
    )
    assert small.main() == 1
    assert capsys.readouterr().out == "mlp: differs from C: logits (nan)\n"
