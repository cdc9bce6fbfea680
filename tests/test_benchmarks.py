"""The benchmark's table of one small row: its structure, and that the peers computed the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cpu.py"


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
