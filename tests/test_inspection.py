"""Inspection: levels as data and text, the story of a node, and what two compilations differ in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import graphc as gc
from graphc.cli.main import main
from graphc.errors import GraphcError
from graphc.inspection import describe, differences, explain

NET = """
import graphc as gc

x = gc.input("x", ("N", 1, 12, 12))
y = gc.input("y", ("N",), dtype="int32")
h = gc.tanh(gc.nn.conv2d(x, 4, 3, name="conv"), name="squashed")
h = gc.relu(gc.nn.conv2d(h, 6, 3, name="second"))
logits = gc.nn.linear(gc.flatten(h), 3, name="fc")
loss = gc.losses.cross_entropy(logits, y)
module = gc.compile({"logits": logits}, loss, gc.SGD(lr=0.1), batch=2, name="small")
wider = gc.compile({"logits": gc.nn.linear(gc.flatten(h), 5, name="fc")}, batch=2, name="small")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return file


@pytest.fixture(scope="module")
def module(place: Path) -> gc.Module:
    names: dict[str, gc.Module] = {}
    exec(compile(NET, str(place), "exec"), names)
    return names["module"]


def test_the_story_of_a_node(module: gc.Module) -> None:
    """Line, formulas, kernels, bytes; tanh's derivative is written in its output, which is what is kept."""
    story = explain(module, "squashed")
    lines = [line.strip() for line in story.splitlines()]
    assert lines[0].startswith("squashed: float32(N, 4, 10, 10) = tanh(")
    assert lines[1] == "written at net.py:6"
    assert "read by second" in lines
    assert any(line.startswith("value: tanh(x0), where x0 is add") for line in lines)
    assert any(line.startswith("derivative for x0: ") and "tanh" in line for line in lines)
    assert any(line.startswith("which is ") and "in the output alone" in line for line in lines)
    training = story[story.index("training:") :]
    plan = module.plan("train")
    interval = next(i for i in plan.intervals if i.id == "squashed")
    place = f"writes squashed: {interval.size:,} bytes at {plan.offset_of('squashed'):,} of the arena's"
    assert place in training
    assert interval.kept and "kept for the backward pass, where kernel" in training
    assert "conv (conv2d)" in training
    assert "kept" not in story[story.index("inference:") : story.index("training:")]


def test_unnamed_nodes_are_told_apart_by_their_layer(module: gc.Module) -> None:
    """Of the additions of biases, each in the kernel of its own convolution."""
    for layer, other in (("conv", "second"), ("second", "conv")):
        written = describe(module)["written"]
        bias = next(r["name"] for r in written if r["op"] == "add" and layer in r["inputs"])
        inference = explain(module, bias).split("inference:")[1].split("training:")[0]
        assert f"{layer} (conv2d)" in inference
        assert f"{other} (conv2d)" not in inference


def test_gradients_of_anchors_are_named(module: gc.Module) -> None:
    story = explain(module, "second")
    assert "gradient for squashed: conv2d_backward_data(gradient, second.weight)" in story
    assert "gradient for second.weight: conv2d_backward_weight(squashed, gradient)" in story


def test_an_unknown_node_is_refused(module: gc.Module) -> None:
    with pytest.raises(GraphcError, match="no node is called 'secnd'; there are second"):
        explain(module, "secnd")


def test_the_description_is_complete(module: gc.Module) -> None:
    """Every input of a node is a node, every buffer of a kernel in the arena is in the plan; JSON holds it all."""
    data = describe(module)
    assert json.loads(json.dumps(data)) == data
    assert set(data["entries"]) == {"predict", "evaluate", "train_step", "fold"}
    for graph in (data["written"], *(e["graph"] for e in data["entries"].values())):
        names = [row["name"] for row in graph]
        assert len(set(names)) == len(names)
        for number, row in enumerate(graph):
            assert set(row["inputs"]) <= set(names[:number])
    step = data["entries"]["train_step"]
    planned = {b["name"] for b in step["plan"]["buffers"]}
    used = {o["buffer"] for k in step["kernels"] for o in k["operands"] if o["space"] == "arena"}
    assert used == planned
    assert sum(b["bytes"] for b in step["plan"]["buffers"] if b["kept"]) <= step["plan"]["kept_bytes"]
    assert "".join(data["source"].values()) == "".join(module.source.values())


def test_the_same_net_does_not_differ(module: gc.Module) -> None:
    assert differences(describe(module), describe(module)) == []


def test_the_command_compares(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A net with itself as a file: 0. With another: 1, and the kernels and bytes that differ."""
    assert main(["inspect", f"{place}:wider", "--show", "all", "--json"]) == 0
    file = tmp_path / "wider.json"
    file.write_text(capsys.readouterr().out)
    assert main(["diff", str(file), f"{place}:wider"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["diff", str(file), f"{place}:module"]) == 1
    printed = capsys.readouterr().out
    assert "parameters: - fc.weight (5, 384)" in printed
    assert "parameters: + fc.weight (3, 384)" in printed
    assert "train_step: there is none before" in printed
    assert "predict kernels: " in printed and "bytes in all" in printed
    assert "source small.c: " in printed
    assert main(["diff", str(file), f"{place}:module", "--json"]) == 1
    assert {"where", "what"} == set(json.loads(capsys.readouterr().out)[0])
    file.write_text("{}")
    assert main(["diff", str(file), f"{place}:module"]) == 2
    assert "not what" in capsys.readouterr().err
    file.write_text("nonsense")
    assert main(["diff", f"{place}:module", str(file)]) == 2


@pytest.mark.parametrize("view", ["layers", "written", "graph", "kernels", "calls", "plan", "source"])
def test_every_view_as_text_and_as_json(place: Path, view: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["inspect", f"{place}:module", "--show", view, "--mode", "train"]
    if view == "layers":
        given = given[:4]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "conv" in text and "conv" in json.dumps(data)
    if view == "calls":
        assert len(text.splitlines()) == len(data) + 1


def test_the_command_explains(place: Path) -> None:
    """As a program of its own, whose reader may close early."""
    command = [sys.executable, "-m", "graphc", "inspect", f"{place}:module", "--explain", "fc"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.startswith("fc: float32(N, 3) = matmul(")


def test_a_file_with_one_module_needs_no_name(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several, the message tells their names."""
    file = tmp_path / "one.py"
    file.write_text(NET.rsplit("wider =", 1)[0])
    assert main(["inspect", str(file), "--show", "written"]) == 0
    assert "squashed" in capsys.readouterr().out
    assert main(["inspect", str(place)]) == 2
    assert "defines 2 modules (module, wider); name what is meant" in capsys.readouterr().err
    file.write_text("x = 1")
    assert main(["inspect", str(file)]) == 2
    assert "defines 0 modules (none)" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "missing.py")]) == 2
