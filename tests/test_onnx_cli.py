"""ONNX files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphc.cli import main


def write(path: Path, last: int | str = 3) -> str:
    """Write a net of two layers on an input (batch, last), and return its place."""
    rng = np.random.default_rng(0)
    arrays = {"one.w": rng.random((4, 3)), "one.b": rng.random(4), "two.w": rng.random((2, 4))}
    nodes = [
        helper.make_node("Gemm", ["x", "one.w", "one.b"], ["h"], "one", transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "two.w"], ["y"], "two", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "two_layers", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", last])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return str(path)


def test_inspect_shows_what_a_file_becomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = write(tmp_path / "net.onnx")
    assert main(["inspect", net, "--show", "layers", "--json"]) == 0
    assert sum(row["parameters"] for row in json.loads(capsys.readouterr().out)) == 4 * 3 + 4 + 2 * 4
    assert main(["inspect", net, "--show", "written", "--loss", "cross_entropy"]) == 0
    assert "net.onnx:1" in capsys.readouterr().out
    assert main(["inspect", net, "--explain", "one"]) == 0
    assert "net.onnx:1" in capsys.readouterr().out
    assert main(["inspect", net, "--html", str(tmp_path / "net.html")]) == 0
    assert "net.onnx:3" in (tmp_path / "net.html").read_text()


def test_diff_of_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The extent that both leave open is given once."""
    places = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        places.append(write(tmp_path / folder / "net.onnx", "width"))
    assert main(["diff", *places, "--dim", "width=3"]) == 0
    assert main(["diff", write(tmp_path / "net.onnx"), "model:lenet"]) == 1
    assert "parameters: - one.w (4, 3)" in capsys.readouterr().out


def test_build_writes_a_bundle_that_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, out = write(tmp_path / "net.onnx"), tmp_path / "out"
    options = ["--train", "--loss", "cross_entropy", "--freeze", "one.*", "--lr", "0.5", "--momentum", "0"]
    assert main(["build", net, "-o", str(out), *options]) == 0
    assert "next: make -C" in capsys.readouterr().out
    header = next(path for path in out.rglob("net.h")).read_text()
    assert "net_train_step" in header
    assert "target" in header


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "NET", "-o", "OUT", "--train"], "has no loss; choose one with --loss: cross_entropy, nll, mse"),
        (["build", "NET", "-o", "OUT", "--freeze", "one.*"], "--freeze: for training alone, which needs --loss"),
        (["inspect", "NET", "--loss", "mse", "--freeze", "three*"], "freeze='three*' matches no parameter"),
        (["inspect", "NET", "--loss", "mse", "--output", "z"], "has no output 'z'; there are y"),
        (["inspect", "NET", "--dim", "batch"], "--dim batch: expected NAME=VALUE"),
        (["inspect", "FREE"], "the dimension 'width' has no value; give it one with --dim NAME=VALUE"),
        (["inspect", "model:lenet", "--loss", "mse"], "--loss: for FILE.onnx alone, got model:lenet"),
        (["inspect", "none.onnx"], "none.onnx cannot be read: No such file"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "NET": write(tmp_path / "net.onnx"),
        "FREE": write(tmp_path / "free.onnx", "width"),
        "OUT": str(tmp_path / "o"),
    }
    assert main([places.get(a, a) for a in arguments]) == 2
    assert message in capsys.readouterr().err
