"""The commands that show a net, on three nets: what they print agrees with the compiler, and with each other."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from helpers import full_only

import graphc as gc
from graphc.cli import nets
from graphc.cli.main import main
from graphc.inspection import Inspected, describe

TWIN = '''
"""Two inputs that meet the same weights, and two outputs."""

import graphc as gc


def net(hidden=6, **options):
    a, b = gc.input("a", ("N", 2, 8, 8)), gc.input("b", ("N", 2, 8, 8))
    y = gc.input("y", ("N",), dtype="int32")
    weight = gc.parameter("shared", (hidden, 2, 3, 3))
    left = gc.relu(gc.nn.conv2d(a, hidden, 3, name="left", weight=weight, bias=False))
    right = gc.tanh(gc.nn.conv2d(b, hidden, 3, name="right", weight=weight, bias=False))
    features = gc.mean(left * right, (2, 3))
    logits = gc.nn.linear(features, 3, name="fc")
    outputs, loss = {"logits": logits, "features": features}, gc.losses.cross_entropy(logits, y)
    return gc.compile(outputs, loss, gc.Adam(lr=0.01), batch=4, name="twin", **options)


def wider():
    return net(8)


def profiled():
    return net(profile=True)
'''
VIEWS = ("written", "graph", "kernels", "calls", "plan", "source")
ENTRIES = {"inference": "predict", "train": "train_step"}
MACHINE = {"fma_gflops": 100.0, "bandwidth_gb_s": 10.0}
Printed = Callable[..., str]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where each net is found, and one like it that differs."""
    file = tmp_path_factory.mktemp("twin") / "twin.py"
    file.write_text(TWIN)
    return {
        "lenet": "model:lenet", "another lenet": "model:lenet,classes=12",
        "resnet50": "model:resnet50", "another resnet50": "model:resnet50,classes=10",
        "twin": f"{file}:net", "another twin": f"{file}:wider", "profiled twin": f"{file}:profiled",
    }  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[..., Inspected]]:
    """Each net is compiled once for all commands of these tests, which change none."""
    once, described = lru_cache(maxsize=None)(nets.translation_of), lru_cache(maxsize=None)(describe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphc.cli.inspect.translation_of", once)
        patch.setattr("graphc.cli.diff.translation_of", once)
        patch.setattr("graphc.cli.diff.describe", described)
        yield lambda place: once(place, None)


@pytest.fixture
def printed(shared: object, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Run a command and return what it prints; check its status."""

    def run(*arguments: str, status: int = 0) -> str:
        found, (text, errors) = main(arguments), capsys.readouterr()
        assert found == status, errors
        return text if status < 2 else errors

    return run


@pytest.mark.parametrize("mode", ENTRIES)
@pytest.mark.parametrize("net", ["lenet", "resnet50", "twin"])
def test_every_view(
    net: str, mode: str, places: dict[str, str], shared: Callable[..., Inspected], printed: Printed
) -> None:
    """As text and as data, which have the same rows; kernels and bytes are the manifest's and the plan's."""
    module, options = shared(places[net]), [places[net], "--mode", mode]
    text = {view: printed("inspect", *options, "--show", view) for view in VIEWS}
    data = {view: json.loads(printed("inspect", *options, "--show", view, "--json")) for view in VIEWS}
    for view, outputs in (("written", 3), ("graph", None)):
        lines = text[view].splitlines()
        returns = [line for line in lines if line.startswith("return ")]
        assert [line.split(": ")[0] for line in lines[: -len(returns)]] == [r["name"] for r in data[view]]
        assert len(returns) == sum(len(row["outputs"]) for row in data[view])
        assert outputs is None or len(returns) == (outputs if net == "twin" else outputs - 1)
    heads = re.findall(r"^kernel (\d+): (.+?)(?: over .*)?; gives (.*)$", text["kernels"], re.MULTILINE)
    assert heads == [(str(r["number"]), r["kind"], ", ".join(r["gives"])) for r in data["kernels"]]
    called = next(e for e in module.manifest["entries"] if e["name"] == ENTRIES[mode])["calls"]
    assert [row["function"] for row in data["calls"]] == [call["kernel"] for call in called]
    rows = [line.split(maxsplit=5) for line in text["calls"].splitlines()[1:]]
    assert [(int(r[1].replace(",", "")), int(r[2].replace(",", ""))) for r in rows] == [
        (row["flops"], row["bytes"]) for row in data["calls"]
    ]
    plan = module.plan(mode)
    assert text["plan"] == plan.table()
    assert (data["plan"]["arena_bytes"], len(data["plan"]["buffers"])) == (
        plan.arena_bytes,
        len(plan.intervals),
    )
    assert data["source"] == module.source
    assert text["source"] == "\n".join(module.source.values()) + "\n"


@pytest.mark.parametrize(
    ("net", "layers", "parameters", "macs"),
    [
        ("lenet", 11, 61_706, 416_520),
        ("resnet50", 174, 25_557_032, 4_089_184_256),  # the published counts
        ("twin", 7, 2 * 6 * 9 + 6 * 3 + 3, 2 * 2 * 6 * 9 * 36 + 6 * 3),
    ],
)
def test_the_layers(
    net: str, layers: int, parameters: int, macs: int, places: dict[str, str], printed: Printed
) -> None:
    """Weights that two layers share are counted once."""
    text = printed("inspect", places[net], "--show", "layers")
    rows = json.loads(printed("inspect", places[net], "--show", "layers", "--json"))
    assert re.search(rf"^total +{layers} layers +{parameters:,} +{macs:,} ", text, re.MULTILINE)
    assert sum(row["parameters"] for row in rows) == parameters
    assert sum(row["macs"] for row in rows) == macs


def test_everything_as_data(
    places: dict[str, str], shared: Callable[..., Inspected], printed: Printed
) -> None:
    for net in ("lenet", "resnet50", "twin"):
        data = json.loads(printed("inspect", places[net], "--show", "all", "--json"))
        assert data == json.loads(json.dumps(describe(shared(places[net]))))
    assert (data["entries"]["predict"]["inputs"], data["entries"]["predict"]["outputs"]) == (
        ["a", "b"],
        ["logits", "features"],
    )
    assert list(data["parameters"]).count("shared") == 1


@pytest.mark.parametrize(
    ("net", "node", "kernels"),
    [("lenet", "conv1", 1), ("resnet50", "layer1.0.conv1", 1), ("twin", "left", 1), ("twin", "shared", 0)],
)
def test_the_story_of_a_node(
    net: str, node: str, kernels: int, places: dict[str, str], shared: Callable[..., Inspected],
    printed: Printed,
) -> None:  # fmt: skip
    """Every place that it names is one of the plan; a parameter has readers and no kernel."""
    module, story = shared(places[net]), printed("inspect", places[net], "--explain", node)
    assert story.startswith(f"{node}: float32(")
    if not kernels:
        assert "read by left, right" in story
        return
    inference, training = story.split("inference:\n")[1].split("training:\n")
    for part, mode in ((inference, "inference"), (training, "train")):
        plan = module.plan(mode)
        found = re.findall(
            r"writes (\S+): ([\d,]+) bytes at ([\d,]+) of the arena's ([\d,]+), alive in steps (\d+) to (\d+)",
            part,
        )
        assert len(found) >= kernels
        for name, *numbers in found:
            size, begin, arena, lower, last = (int(n.replace(",", "")) for n in numbers)
            interval = next(i for i in plan.intervals if i.id == name)
            assert (size, begin, arena) == (interval.size, plan.offset_of(name), plan.arena_bytes)
            assert (lower, last + 1) == (interval.lower, interval.upper)
    assert "gradient for" in story


@pytest.mark.parametrize("net", ["lenet", "resnet50", "twin"])
def test_the_page(
    net: str, places: dict[str, str], shared: Callable[..., Inspected], printed: Printed, tmp_path: Path
) -> None:
    """Every graph with all its nodes, every kernel, the plans; no profile unless it is asked for."""
    file = tmp_path / "page.html"
    assert printed("inspect", places[net], "--html", str(file)).startswith(
        f"{file}: {file.stat().st_size:,} bytes"
    )
    data, module = page_data(file), shared(places[net])
    counts = {level["id"]: len(level["nodes"]) for level in data["levels"]}
    whole = describe(module)
    assert counts["written"] == len(whole["written"])
    for entry in ENTRIES.values():
        assert counts[entry] == len(whole["entries"][entry]["graph"])
        assert counts[f"{entry}-kernels"] == len(whole["entries"][entry]["kernels"])
        assert data["plans"][entry] == json.loads(json.dumps(whole["entries"][entry]["plan"]))
    assert data["profiles"] == []


def page_data(file: Path) -> Any:
    match = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL
    )
    assert match is not None
    return json.loads(match[1].replace("<\\/", "</"))


def test_reading_builds_nothing(monkeypatch: pytest.MonkeyPatch, printed: Printed, tmp_path: Path) -> None:
    """The C compiler is not called for what is only shown."""
    monkeypatch.setattr("graphc.api.build_extension", lambda *arguments: pytest.fail("built"))
    for view in ("layers", *VIEWS):
        assert printed("inspect", "model:lenet", "--show", view)
    assert printed("inspect", "model:lenet", "--explain", "conv1")
    assert printed("inspect", "model:lenet", "--html", str(tmp_path / "page.html"))
    assert printed("diff", "model:lenet", "model:lenet") == ""


def test_what_is_read_is_what_is_built() -> None:
    read, built = nets.translation_of("model:lenet"), nets.module_of("model:lenet")
    assert isinstance(built, gc.Module) and not isinstance(read, gc.Module)
    assert describe(read) == describe(built)


def test_a_module_with_a_kernel_for_every_node_is_described() -> None:
    """That of nan_guard: its kernels are those that run, and so are the groups of nodes."""
    x = gc.input("x", ("N", 1, 8, 8))
    out = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 4, 3, name="conv")), 2)
    module = gc.compile({"out": out}, batch=2, name="guarded", nan_guard=True)
    entry = describe(module)["entries"]["predict"]
    called = next(e for e in module.manifest["entries"] if e["name"] == "predict")["calls"]
    assert [k["function"] for k in entry["kernels"]] == [c["kernel"] for c in called]
    assert [len(group["nodes"]) for group in entry["fused"]] == [1] * len(called)


# ------------------------------------------------------------------ profile


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured but the kernels."""
    monkeypatch.setattr("graphc.cli.inspect.measure_machine", lambda threads: MACHINE)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("net", ["lenet", "twin"])
@pytest.mark.parametrize("mode", ENTRIES)
def test_the_profile(
    net: str, mode: str, places: dict[str, str], shared: Callable[..., Inspected], printed: Printed,
    tmp_path: Path,
) -> None:  # fmt: skip
    """As table, rows, trace and page; kernels are the net's with their FLOPs and bytes, and each took some time."""
    place = places["profiled twin" if net == "twin" else net]
    trace, page = tmp_path / "trace.json", tmp_path / "page.html"
    command = ["inspect", place, "--profile", "--mode", mode]
    rows = json.loads(printed(*command, "--json", "--trace", str(trace)))
    calls = next(e for e in describe(shared(places[net]))["entries"].items() if e[0] == ENTRIES[mode])[1]
    expected = [(k["function"], k["flops"], k["bytes"]) for k in calls["kernels"]]
    update = [("update", 0, 0)] if mode == "train" else []
    assert [(r["kernel"], r["flops"], r["bytes"]) for r in rows] == expected + update
    assert all(row["seconds"] > 0 for row in rows)
    for row in rows:
        least = max(row["flops"] / 100e9, row["bytes"] / 10e9)
        assert row["percent_of_peak"] == pytest.approx(100 * least / row["seconds"])
    assert [e["name"] for e in json.loads(trace.read_text())["traceEvents"]] == [r["kernel"] for r in rows]
    table = printed(*command).splitlines()
    batch = 4 if net == "twin" else 1
    assert table[0].startswith(f"{net} {ENTRIES[mode]}, batch {batch}, threads ")
    assert f" ms in {len(rows)} kernels (medians of 20)" in table[0]
    assert table[1] == "peak 100 GFLOP/s, memory 10.0 GB/s"
    assert sorted(re.findall(r"%  (\w+):", "\n".join(table))) == sorted(r["kernel"] for r in rows)
    assert "open it in a browser" in printed(*command, "--html", str(page))
    (profile,) = page_data(page)["profiles"]
    assert (profile["entry"], profile["machine"]) == (ENTRIES[mode], MACHINE)
    assert [k["kernel"] for k in profile["kernels"]] == [r["kernel"] for r in rows]


@pytest.mark.usefixtures("machine")
def test_what_has_no_profile(places: dict[str, str], printed: Printed, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("import graphc as gc\nx = gc.input('x', ('N', 4))\ny = gc.relu(x)\n")
    for arguments, message in (
        ([places["twin"], "--profile"], f"{places['twin']} was compiled without profile=True"),
        ([f"{file}:y", "--profile", "--mode", "train"], "no plan for 'train'"),
        ([f"{file}:y", "--profile", "--mode", "evaluate"], "--mode must be inference or train"),
        ([f"{file}:y", "--profile", "--explain", "x"], "two views"),
        ([f"{file}:y", "--trace", "trace.json"], "it needs --profile"),
    ):
        assert message in printed("inspect", *arguments, status=2)
    assert not Path("trace.json").exists()
    assert "net predict, batch 3" in printed("inspect", f"{file}:y", "--profile", "--batch", "3")


# ------------------------------------------------------------------ differences


@pytest.mark.parametrize(
    ("net", "kernel"), [("lenet", "fc3_matmul"), ("resnet50", "resnet50__fc_matmul"), ("twin", "fc_matmul")]
)
def test_the_differences(
    net: str, kernel: str, places: dict[str, str], shared: Callable[..., Inspected], printed: Printed
) -> None:
    """None with itself; with another, the kernel that grew or shrank, and by how many bytes."""
    assert printed("diff", places[net], places[net]) == ""
    assert printed("diff", places[net], places[net], "--json") == "[]\n"
    one, two = (describe(shared(places[k])) for k in (net, f"another {net}"))
    text = printed("diff", places[net], places[f"another {net}"], status=1)
    before, after = (
        next(k for k in data["entries"]["predict"]["kernels"] if k["function"] == kernel)["bytes"]
        for data in (one, two)
    )
    assert re.search(rf"^predict kernels: {kernel}: .*{before:,} -> {after:,} bytes$", text, re.MULTILINE)
    arenas = [data["entries"]["train_step"]["plan"]["arena_bytes"] for data in (one, two)]
    if arenas[0] != arenas[1]:
        assert f"arena_bytes {arenas[0]:,} -> {arenas[1]:,} ({arenas[1] - arenas[0]:+,})" in text
    rows = json.loads(printed("diff", places[net], places[f"another {net}"], "--json", status=1))
    assert [f"{row['where']}: {row['what']}" for row in rows] == text.splitlines()


# ------------------------------------------------------------------ bundles


def build(place: str, folder: Path, printed: Printed, *options: str) -> str:
    text = printed("build", place, "-o", str(folder), *options)
    count, size = re.search(r": (\d+) files, ([\d,]+) bytes; next: make", text).groups()  # type: ignore[union-attr]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert int(count) == len(files)
    assert int(size.replace(",", "")) == sum(path.stat().st_size for path in files)
    return text


@pytest.mark.parametrize("net", ["lenet", "twin"])
def test_a_bundle_checks_itself(net: str, places: dict[str, str], printed: Printed, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    assert f"next: make -C {folder} check" in build(places[net], folder, printed)
    done = subprocess.run(["make", "-C", str(folder), "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    header = (folder / f"{net}.h").read_text()
    for name in ("x", "logits") if net == "lenet" else ("a", "b", "logits", "features"):
        assert re.search(rf"\b{name}\b", header)


@pytest.mark.slow
@full_only
def test_a_large_net_is_exported(places: dict[str, str], printed: Printed, tmp_path: Path) -> None:
    """All weights are in the file, at least: batch norm is folded into the convolutions."""
    build(places["resnet50"], tmp_path / "bundle", printed)
    weights = next(path for path in (tmp_path / "bundle").iterdir() if path.stat().st_size > 2**26)
    assert weights.stat().st_size >= 4 * (25_557_032 - 2 * 26_560)
