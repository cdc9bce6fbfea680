"""Damaged ONNX files: one clear error each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphc as gc
from graphc.errors import GraphError


def small() -> onnx.ModelProto:
    """Return y = x + w."""
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph)


@pytest.mark.parametrize(
    "data", [b"", b"just some text\n", bytes(range(256)), small().SerializeToString()[:-40]]
)
def test_damaged_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(GraphError):
        gc.onnx.load(data)
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(GraphError, match=r"net\.onnx"):
        gc.onnx.load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(GraphError, match="cannot be read"):
            gc.onnx.load(path)


@pytest.mark.parametrize("size", [4, 100])
def test_initializer_of_wrong_size_is_refused(size: int) -> None:
    model = small()
    model.graph.initializer[0].raw_data = bytes(4 * size)
    with pytest.raises(GraphError, match=r"initializer 'w' of shape \(2, 3\)"):
        gc.onnx.load(model)


def test_newer_format_is_refused() -> None:
    model = small()
    model.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(GraphError, match="IR version"):
        gc.onnx.load(model.SerializeToString())


def test_output_that_nothing_computes_is_refused() -> None:
    model = small()
    model.graph.output[0].name = "other"
    with pytest.raises(GraphError, match="nothing computes the output 'other'"):
        gc.onnx.load(model)


@pytest.mark.parametrize("version", [0, 1000, 2**40])
def test_unknown_operator_set_is_refused(version: int) -> None:
    model = small()
    model.opset_import[0].version = version
    with pytest.raises(GraphError, match="is not known"):
        gc.onnx.load(model)


def test_bytes_do_not_read_files() -> None:
    model = small()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="pyproject.toml")
    with pytest.raises(GraphError, match="lies in another file"):
        gc.onnx.load(model.SerializeToString())


def test_input_that_nothing_computes_is_refused() -> None:
    model = small()
    model.graph.node[0].input[0] = "other"
    with pytest.raises(GraphError, match="'y' depends on a name that nothing computes"):
        gc.onnx.load(model)
