"""Tuning for a device: tiles of its products are measured, kept for the device, and compute the same.

On the emulated device, whose times are a processor's. With GRAPHC_CUDA_TARGET=cuda in the environment, for the GPU.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc import api
from graphc.emit.tiling import Problem, tiles_to_measure, tiling
from graphc.passes.variants import Variant
from graphc.program.ir import Tile
from graphc.tuning import tuner
from graphc.tuning.contest import Outcome

TARGET = os.environ.get("GRAPHC_CUDA_TARGET", "cuda-emulated")


def net(target: str = TARGET, **options: object) -> gc.Module:
    """Return a net with a convolution and a linear layer whose depth may be divided into shares."""
    x = gc.input("x", ("N", 3, 12, 12))
    logits = gc.nn.linear(gc.flatten(gc.relu(gc.nn.conv2d(x, 40, 3, padding=1, name="a"))), 10, name="b")
    loss = gc.mean(logits * logits)
    return gc.compile(
        {"logits": logits}, loss, gc.SGD(lr=0.1), batch=4, name="tiled", target=target, **options
    )  # type: ignore[arg-type]


def values(module: gc.Module) -> dict[str, np.ndarray]:
    """Return inference and gradients of a batch."""
    images = np.random.default_rng(3).standard_normal((4, 3, 12, 12)).astype("f")
    found = {"logits": module.predict(x=images)["logits"]}
    module.backward(x=images)
    return found | {name: np.array(g) for name, g in module.grads.items()}


def last(count: int, seconds: Callable[[int], float]) -> Outcome:
    """Let the last variant win, having timed all of them once."""
    times = [seconds(k) for k in range(count)]
    assert min(times) > 0
    return Outcome(count - 1, times[0], times[-1])


def test_tiles_are_measured_kept_and_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wins, here the last candidate; another device is measured anew, the same one is not."""
    build = gc.BuildOptions(optimisation=("-O0",), cache_dir=tmp_path)
    monkeypatch.setattr(tuner, "contest", last)
    module = net(tune=True, build=build)
    (note,) = (tmp_path / "notes").glob("tuned-*")
    kept = json.loads(note.read_text())
    assert "multiprocessors" in kept["machine"]["device"]
    assert len(kept["kernels"]) >= 4 and all(k["candidates"] > 1 for k in kept["kernels"].values())
    tuned = module.manifest["tuned"]
    assert {task: k["variant"] for task, k in kept["kernels"].items()} == tuned
    for chosen in tuned.values():
        assert f"a block computes {chosen['rows']} x {chosen['columns']} " in module.source["tiled.cu"]
    plain = net(build=build)
    assert "tuned" not in plain.manifest and plain.source != module.source
    want = values(plain)
    for name, value in values(module).items():
        # Sums of up to 5,760 terms in another order.
        np.testing.assert_allclose(
            value, want[name], rtol=0, atol=1e-5 * np.abs(want[name]).max(), err_msg=name
        )
    # What is exported, or looked at, is the tuned net.
    tiles = {c.kernel.tile for e in module.compiled.program.entries for c in e.calls} - {None}
    assert tiles == {(Variant.from_dict(chosen) or Variant()).tile for chosen in tuned.values()}
    monkeypatch.setattr(tuner, "DeviceBench", None)
    assert net(tune=True, build=build).source == module.source
    monkeypatch.setattr(api, "device_name", lambda options, target: "another device")
    with pytest.raises(TypeError, match="not callable"):
        net(tune=True, build=build)


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    """The error says why."""
    if shutil.which("nvcc") is None or Path("/dev/nvidia0").exists():
        pytest.skip("needs nvcc, and a machine without a GPU")
    with pytest.raises(gc.GraphcError, match=r"tune=True measures on a GPU, and none can be used \(.+\)"):
        net("cuda", tune=True, build=gc.BuildOptions(cache_dir=tmp_path))


def test_candidates_begin_with_the_cost_model_and_differ() -> None:
    """Tiles that fit, with more and fewer shares; a chosen tile is taken, and one that cannot be is not."""
    deep = Problem(rows=96, columns=200, depth=5000, planes=1, itemsize=4, element=4, gathers=False)
    found = tiles_to_measure(deep)
    assert found[0] == tiling(deep).tile and len(set(found)) == len(found) > 4
    assert len({t.shares for t in found if t.rows == found[0].rows and t.columns == found[0].columns}) > 2
    assert all(tiling(deep, tile).tile == tile for tile in found)
    for unfit in (Tile(256, 32, 1, 1), Tile(128, 32, 1, 1)):
        assert tiling(deep, unfit) == tiling(deep)
    small = Problem(rows=10, columns=10, depth=40, planes=1, itemsize=8, element=8, gathers=True)
    assert {(t.rows, t.columns) for t in tiles_to_measure(small)} == {(32, 32)}
    assert tiling(small, Tile(128, 128, 2, 1)) == tiling(small)
