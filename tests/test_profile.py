"""The profile counts what kernels do, changes no result, and leaves the module as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError
from graphc_runtime.profile import KernelTime, Profile

BATCH = 4
MACHINE = {"fma_gflops": 100.0, "bandwidth_gb_s": 10.0}


def module(profile: bool) -> gc.Module:
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    loss, sgd = gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9)
    return gc.compile({"logits": logits}, loss, sgd, batch=BATCH, name="timed", profile=profile)


def batch(rows: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(rows, 1, 32, 32)).astype("f"),
        "y": rng.integers(0, 10, rows).astype("i4"),
    }


@pytest.fixture(scope="module")
def profiled() -> gc.Module:
    return module(True)


def test_inference(profiled: gc.Module) -> None:
    """Five layers, with the operations of the net for the batch that is given."""
    for rows in (BATCH, 2):
        profile = profiled.profile_on(MACHINE, {"x": batch(rows)["x"]}, repeats=3)
        products = 6 * 25 * 28**2 + 16 * 6 * 25 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10
        assert len(profile.kernels) == 5
        assert profile.batch == rows
        counted = sum(k.flops for k in profile.kernels)
        # Beside the products: a bias, a ReLU and a comparison for each element.
        assert 2 * rows * products <= counted <= 1.05 * 2 * rows * products
        assert all(k.seconds > 0 and k.bytes > 0 for k in profile.kernels)
        assert profile.seconds == sum(k.seconds for k in profile.kernels)


def test_training_leaves_the_module_as_it_was(profiled: gc.Module) -> None:
    """A step more gives the bits that a module without a profile gives."""
    plain = module(False)
    before = profiled.state_dict()
    profile = profiled.profile_on(MACHINE, batch(), train=True, repeats=2)
    after = profiled.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert profile.kernels[-1].kernel == "update"
    assert len(profile.kernels) == len(profiled.manifest["entries"][2]["calls"]) + 1
    for _ in range(2):
        assert profiled.train_step(**batch()) == plain.train_step(**batch())
    for name, value in plain.state_dict().items():
        assert value.tobytes() == profiled.state_dict()[name].tobytes(), name


def test_code_without_a_profile_has_no_clock() -> None:
    """It is compiled out, and asked for it the module says what is missing."""
    plain = module(False)
    assert "clock" not in plain.source["timed.c"]
    with pytest.raises(GraphcError, match="was compiled without profile=True"):
        plain.profile_on(MACHINE, {"x": batch()["x"]})
    with pytest.raises(GraphcError, match="mode must be 'inference' or 'train'"):
        plain.profile(mode="test", x=batch()["x"])


def test_numbers_and_files(tmp_path: Path) -> None:
    """Of a kernel that is bound by memory, one by the peak, and one that took no time."""
    moves = KernelTime(0, "copy", ("a",), ("net.py:1",), 2e-3, 1_000_000, 10_000_000)
    works = KernelTime(1, "product", ("b", "c"), ("net.py:2",), 1e-3, 50_000_000, 1_000)
    none = KernelTime(2, "update", ("optimizer",), (), 0.0, 0, 0)
    profile = Profile("net", "predict", 4, 2, 5, (moves, works, none), MACHINE)
    assert (moves.gb_s, works.gflops) == (pytest.approx(5.0), pytest.approx(50.0))
    assert profile.percent_of_peak(moves) == pytest.approx(50.0)  # 10 MB take 1 ms at 10 GB/s
    assert profile.percent_of_peak(works) == pytest.approx(50.0)
    assert profile.percent_of_peak(none) == 0
    lines = profile.table(2).splitlines()
    assert lines[0] == "net predict, batch 4, threads 2: 3.000 ms in 3 kernels (medians of 5)"
    assert lines[4].split() == ["2000.0", "66.7%", "0.5", "5.0", "50%", "copy:", "a,", "net.py:1"]
    assert lines[-1] == "... and 1 more"
    profile.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(e["name"], e["ts"], e["dur"]) for e in events[:2]] == [
        ("copy", 0, 2000),
        ("product", 2000, 1000),
    ]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    profile.plot(tmp_path / "roofline.svg")
    text = (tmp_path / "roofline.svg").read_text()
    assert text.startswith("<?xml") and "</svg>" in text


def test_the_machine_is_measured(profiled: gc.Module) -> None:
    """The peak is that of some machine: not below what a kernel reaches by more than noise explains."""
    profile = profiled.profile(x=batch()["x"], repeats=2)
    assert profile.machine["fma_gflops"] > 0.1
    assert profile.machine["bandwidth_gb_s"] > 0.1
