"""Tuning: who wins, what is kept for which machine, and that every variant computes the same."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.build import Cache
from graphc.cli.nets import compile_net
from graphc.errors import BuildError, RangeError
from graphc.isa import AVX512
from graphc.ops.conv2d import Conv2dBackwardWeight, ConvGeometry
from graphc.ops.matmul import MatMul
from graphc.ops.packed import Border, PackedConv2d
from graphc.ops.pool2d import MaxPool2d, PoolGeometry
from graphc.passes.variants import Task, Variant
from graphc.pipeline import Request
from graphc.tuning import Store, tuner
from graphc.tuning.bench import Bench
from graphc.tuning.candidates import trials
from graphc.tuning.contest import contest
from graphc.types import N, TensorType


def fed(*series: list[float]) -> Callable[[int], float]:
    """Times that are given beforehand, the last of each variant for ever after."""
    rest: list[Iterator[float]] = [iter(times) for times in series]
    last = [0.0] * len(series)

    def seconds(k: int) -> float:
        last[k] = next(rest[k], last[k])
        return last[k]

    return seconds


def test_the_fastest_wins() -> None:
    outcome = contest(4, fed([1.0], [0.9], [0.6], [0.7]))
    assert outcome.winner == 2
    assert (outcome.before, outcome.after) == (1.0, 0.6)


@pytest.mark.parametrize("time", [0.971, 0.99, 1.0, 1.5])
def test_within_three_percent_nothing_changes(time: float) -> None:
    assert contest(2, fed([1.0], [time])).winner == 0


def test_three_percent_are_enough() -> None:
    assert contest(2, fed([1.0], [0.969])).winner == 1


def test_a_lucky_timing_is_no_victory() -> None:
    """What is fast once is chosen to challenge, and then must be fast again."""
    assert contest(3, fed([1.0], [0.5, 1.0], [0.99])).winner == 0


def test_the_minimum_alone_is_not_enough() -> None:
    """In the duel the challenger is faster once, and slower as a rule."""
    assert contest(2, fed([1.0], [0.9, 0.9, *[0.9, 1.1, 1.1] * 9])).winner == 0


def conv_task(c: int, o: int, size: int, kernel: int, **more: Any) -> Task:
    pad = kernel // 2
    lanes = AVX512.lanes(o, "float32")
    op = PackedConv2d(o, (1, 1), (1, 1), lanes, AVX512.room(lanes, "float32"), Border(((pad, pad),) * 2))
    operands = TensorType("float32", (N, c, size, size)), TensorType("float32", (o, c, kernel, kernel))
    return Task(**{
        "op": op, "operands": operands, "pools": (), "batch": 4, "trained": False, "winograd": True, **more
    })  # fmt: skip


TASK = conv_task(32, 32, 12, 3)


def test_tasks_that_may_have_other_winners_have_other_names() -> None:
    pooled = replace(TASK, pools=(MaxPool2d(PoolGeometry((2, 2), (2, 2), (0, 0), (1, 1), (6, 6))),))
    tasks = [
        TASK, replace(TASK, batch=8), replace(TASK, trained=True), replace(TASK, winograd=False), pooled,
        conv_task(32, 32, 13, 3), conv_task(32, 32, 12, 1), conv_task(48, 32, 12, 3),
    ]  # fmt: skip
    assert len({str(task) for task in tasks}) == len(tasks)


def test_variants_are_read_as_they_were_written() -> None:
    for variant in (Variant(), Variant(winograd=False, served=4), Variant(lanes=8, sums=12, shares=2)):
        assert Variant.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant


@pytest.mark.parametrize(
    "junk", [None, [], {"speed": 3}, {"lanes": "8"}, {"winograd": 1}, {"served": True}, {"sums": -1}, {"sums": 2**40}]
)  # fmt: skip
def test_junk_is_no_variant(junk: object) -> None:
    assert Variant.from_dict(junk) is None


MACHINE = {"cpu": "one", "threads": 1}
FOUND = {TASK: (Variant(served=2), {"candidates": 5})}


def test_winners_are_kept_and_added_to(tmp_path: Path) -> None:
    Store(Cache(tmp_path), MACHINE).add(FOUND)
    other = conv_task(16, 16, 9, 3)
    Store(Cache(tmp_path), MACHINE).add({other: (Variant(), {"candidates": 3})})
    assert Store(Cache(tmp_path), MACHINE).read() == {str(TASK): Variant(served=2), str(other): Variant()}


@pytest.mark.parametrize("machine", [{"cpu": "two", "threads": 1}, {"cpu": "one", "threads": 2}])
def test_another_machines_winners_are_not_read(tmp_path: Path, machine: dict[str, Any]) -> None:
    Store(Cache(tmp_path), MACHINE).add(FOUND)
    other = Store(Cache(tmp_path), machine)
    assert other.read() == {}
    # Not even from a note that was copied under this machine's name.
    notes = tmp_path / "notes"
    (written,) = notes.iterdir()
    (notes / f"tuned-{other.digest}.json").write_text(written.read_text())
    assert other.read() == {}


def damaged(text: str) -> list[str]:
    data = json.loads(text)
    (task,) = data["kernels"]
    return [
        "", text[: len(text) // 2], "[]", "null", '{"kernels": {}}',
        *(json.dumps({**data, "kernels": kernels})
          for kernels in ([1], {task: {}}, {task: []}, {task: {"variant": {"sums": "x"}}})),
    ]  # fmt: skip


def test_damaged_winners_are_as_good_as_none(tmp_path: Path) -> None:
    store = Store(Cache(tmp_path), MACHINE)
    store.add(FOUND)
    (note,) = (tmp_path / "notes").iterdir()
    sound = note.read_text()
    for text in damaged(sound):
        note.write_text(text)
        assert store.read() == {}, text
        store.add(FOUND)
        assert store.read() == {str(TASK): Variant(served=2)}, text


class FedBench:
    """A bench without C, on which every candidate but the cost model's takes half the time."""

    modules: int = 0

    def __init__(self, program: Any, options: Any, threads: int) -> None:
        FedBench.modules += 1

    def timer(self, batch: int, moved: int) -> Callable[[str], float]:
        assert moved > 0
        return lambda entry: 1.0 if entry.endswith("_0") else 0.4 if entry.endswith("_1") else 0.5


def net(name: str = "tuned", trained: bool = False, **options: Any) -> gc.Module:
    """A net with padded, strided and single-pixel convolutions, one that is pooled, and products."""
    x = gc.input("x", ("N", 3, 18, 18))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 24, 3, padding=1, name="a")), 2)
    h = gc.relu(gc.nn.conv2d(h, 40, 1, name="b"))
    h = gc.relu(gc.nn.conv2d(h, 36, 3, padding=1, name="c"))
    h = gc.nn.conv2d(h, 17, 3, stride=2, padding=1, name="d")
    logits = gc.nn.linear(gc.flatten(h), 19, name="e")
    loss = gc.mean(logits * logits) if trained else None
    return gc.compile({"logits": logits}, loss, batch=5, name=name, **options)


IMAGES = np.random.default_rng(3).standard_normal((5, 3, 18, 18)).astype(np.float32)


def values(module: gc.Module) -> dict[str, np.ndarray]:
    images = IMAGES.astype(module.dtype)
    results = {"logits": module.predict(x=images)["logits"]}
    module.backward(x=images)
    return results | {name: np.array(g) for name, g in module.grads.items()}


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Sums in another order, and Winograd's transforms, whose error a test holds below 5e-5 for one layer."""
    for name, expected in want.items():
        np.testing.assert_allclose(
            got[name], expected, rtol=0, atol=2e-4 * np.abs(expected).max(), err_msg=name
        )


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gc.BuildOptions:
    """Builds in a cache of the test's own, on a bench that is fed."""
    monkeypatch.setattr(tuner, "Bench", FedBench)
    FedBench.modules = 0
    return gc.BuildOptions(optimisation=("-O1", "-march=native"), cache_dir=tmp_path)


def test_winners_are_compiled_and_found_again(
    options: gc.BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = net(trained=True, tune=True, build=options)
    assert FedBench.modules > 0
    tuned = module.manifest["tuned"]
    assert any(text.startswith("PackedConv2d") for text in tuned)
    assert any(text.startswith("Conv2dBackwardWeight") for text in tuned)
    assert any(text.startswith("MatMul") for text in tuned)
    plain = net(trained=True, build=options)
    assert "tuned" not in plain.manifest
    assert module.source != plain.source
    assert_close(values(module), values(plain))
    # The same bits for every number of threads, as without tuning.
    once = values(module)
    module.threads = 3
    for name, value in values(module).items():
        np.testing.assert_array_equal(value, once[name], err_msg=name)
    # Neither the net itself nor another with the same kernels is measured again.
    monkeypatch.setattr(tuner, "Bench", None)
    again = net(trained=True, tune=True, build=options)
    assert again.source == module.source
    other = net("other", trained=True, tune=True, build=options)
    assert other.manifest["tuned"] == tuned
    # What inspection runs anew is the tuned net.
    kernels = [call.kernel for entry in again.compiled.program.entries for call in entry.calls]
    assert kernels != [call.kernel for entry in plain.compiled.program.entries for call in entry.calls]


def test_other_threads_are_measured_anew(options: gc.BuildOptions) -> None:
    assert net(tune=True, build=options, threads=1).threads == 1
    measured = FedBench.modules
    assert net(tune=True, build=options, threads=2).threads == 2
    assert FedBench.modules == 2 * measured


def test_a_damaged_cache_does_not_break_compiling(options: gc.BuildOptions, tmp_path: Path) -> None:
    first = net(tune=True, build=options)
    measured = FedBench.modules
    for note in (tmp_path / "notes").glob("tuned-*"):
        note.write_bytes(b"\xff\x00{")
    assert net("other", tune=True, build=options).manifest["tuned"] == first.manifest["tuned"]
    assert FedBench.modules == 2 * measured


def test_a_cache_that_cannot_be_used_is_the_builds_error(options: gc.BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="GRAPHC_CACHE_DIR"):
        net(tune=True, build=replace(options, cache_dir=tmp_path / "file"))


def test_without_time_the_cost_model_chooses(
    options: gc.BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "SECONDS", -1.0)
    module = net(tune=True, build=options)
    assert FedBench.modules == 0
    assert module.manifest["tuned"] == {}
    assert module.source == net(build=options).source


def test_winograd_stays_forbidden(options: gc.BuildOptions) -> None:
    module = net(tune=True, build=options, winograd=False)
    assert not any("Winograd" in text for text in module.source.values())
    assert not any("winograd" in variant for variant in module.manifest["tuned"].values())


def test_double_precision_is_tuned_as_well(options: gc.BuildOptions) -> None:
    module, plain = (
        net(trained=True, tune=True, build=options, dtype="float64"),
        net(trained=True, build=options, dtype="float64"),
    )
    assert module.manifest["tuned"]
    assert not any("winograd" in variant for variant in module.manifest["tuned"].values())
    want = values(plain)
    for name, value in values(module).items():  # sums in another order
        np.testing.assert_allclose(
            value, want[name], rtol=0, atol=1e-13 * np.abs(want[name]).max(), err_msg=name
        )


def test_the_command_line_tunes(options: gc.BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(options.cache_dir))
    module = compile_net("mlp", batch=8, tune=True, threads=2)
    assert module.threads == 2
    assert FedBench.modules > 0
    assert module.manifest["tuned"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_bar_shows_on_a_terminal_where_tqdm_is(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if installed:
        pytest.importorskip("tqdm", reason="tqdm is not installed")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    for is_terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda answer=is_terminal: answer)
        monkeypatch.setattr(sys, "stderr", screen)
        with tuner._Progress(2) as progress:
            progress.advance()
        assert ("tuning" in screen.getvalue()) == (installed and is_terminal)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 2000])
def test_bad_threads(threads: Any) -> None:
    with pytest.raises(RangeError, match="threads"):
        gc.compile(gc.input("x", ("N", 2)) * 2.0, threads=threads)


def test_kernels_are_really_measured(tmp_path: Path) -> None:
    """Whoever wins: the note has both times of every kernel, and the values are those of the plain module."""
    x = gc.input("x", ("N", 8, 12, 12))
    logits = gc.nn.linear(gc.flatten(gc.relu(gc.nn.conv2d(x, 24, 3, padding=1, name="a"))), 10, name="b")
    build = gc.BuildOptions(optimisation=("-O1", "-march=native"), cache_dir=tmp_path)
    tuned = gc.compile({"logits": logits}, batch=5, name="real", tune=True, build=build)
    plain = gc.compile({"logits": logits}, batch=5, name="real", build=build)
    (note,) = (tmp_path / "notes").glob("tuned-*")
    kernels = json.loads(note.read_text())["kernels"].values()
    assert len(kernels) == 2
    assert all(k["before_us"] >= k["after_us"] > 0 and k["candidates"] > 1 for k in kernels)
    images = np.random.default_rng(4).standard_normal((5, 8, 12, 12)).astype(np.float32)
    results = [{"logits": module.predict(x=images)["logits"]} for module in (tuned, plain)]
    assert_close(*results)


def task_of(op: Any, *shapes: tuple[Any, ...], trained: bool = True) -> Task:
    return Task(op, tuple(TensorType("float32", shape) for shape in shapes), (), 4, trained, True)


TASKS = [
    TASK,
    conv_task(16, 48, 10, 3, trained=True),
    conv_task(64, 80, 14, 1),
    conv_task(6, 20, 12, 5, pools=(MaxPool2d(PoolGeometry((2, 2), (2, 2), (0, 0), (1, 1), (6, 6))),)),
    conv_task(40, 36, 16, 3, pools=(MaxPool2d(PoolGeometry((3, 3), (2, 2), (1, 1), (1, 1), (8, 8))),)),
    conv_task(5, 36, 12, 5, pools=(MaxPool2d(PoolGeometry((3, 3), (2, 2), (0, 0), (1, 1), (5, 5))),)),
    task_of(
        Conv2dBackwardWeight(ConvGeometry((2, 2), ((1, 1), (1, 1))), (40, 12, 3, 3)), (N, 12, 9, 9), (N, 40, 5, 5)
    ),
    task_of(Conv2dBackwardWeight(ConvGeometry(), (24, 32, 1, 1)), (N, 32, 6, 6), (N, 24, 6, 6)),
    task_of(MatMul(False, True), (N, 50), (70, 50), trained=False),
    task_of(MatMul(True, False), (N, 50), (N, 70)),
]  # fmt: skip


def test_every_variant_computes_the_same(tmp_path: Path) -> None:
    """Direct sums differ by their order, 64 units in the last place; Winograd's within what its own test holds."""
    request = Request("net", {}, None, {}, None, 4, "float32", isa=AVX512)
    found, program = trials(request, TASKS)
    bench = Bench(
        program, gc.BuildOptions(optimisation=("-O1", "-march=native"), cache_dir=tmp_path), threads=1
    )
    rng = np.random.default_rng(5)
    for trial in found:
        assert len(trial.variants) > 1, trial.task
        given, results = {}, []
        for argument in bench._entries[trial.entries[0]].inputs:
            given[argument.name] = rng.standard_normal(argument.at(3).shape).astype(np.float32)
        for entry in trial.entries:
            results.append(bench._call(bench._entries[entry], given, None))
        for variant, result in zip(trial.variants, results, strict=True):
            for name, expected in results[0].items():
                winograd = any(v.winograd for v in trial.variants) or any(v.workspace for v in trial.variants)
                tolerance = 5e-5 if winograd else 64 * float(np.finfo(np.float32).eps)
                np.testing.assert_allclose(
                    result[name], expected, rtol=0, atol=tolerance * np.abs(expected).max(),
                    err_msg=f"{trial.task}: {variant}",
                )  # fmt: skip
        timer = bench.timer(4, 2**16)
        assert all(timer(entry) >= 0 for entry in trial.entries)
