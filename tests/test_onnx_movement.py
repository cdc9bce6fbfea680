"""Slices and splits of ONNX models that ONNX's own suite does not cover: the run-time batch and old versions."""

import numpy as np
import pytest

import graphc as gc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


def _loaded(node, version):
    """Import a model of one node whose input x is (N, 5)."""
    helper, tensor = onnx.helper, onnx.TensorProto
    x = helper.make_tensor_value_info("x", tensor.FLOAT, ["N", 5])
    outputs = [helper.make_tensor_value_info(name, tensor.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "g", [x], outputs)
    return gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)]))


def test_parts_with_batch():
    """Values are copied, so that they are equal to the bit."""
    whole = np.iinfo(np.int64).max
    old = onnx.helper.make_node("Slice", ["x"], ["y"], axes=[0, 1], starts=[0, -3], ends=[whole, 9])
    parts = onnx.helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    nets = {**_loaded(old, 9).outputs}
    found = gc.compile(nets, batch=2).predict(x=x)
    np.testing.assert_array_equal(found["y"], x[:, -3:])
    found = gc.compile(dict(_loaded(parts, 18).outputs), batch=2).predict(x=x)
    np.testing.assert_array_equal(found["a"], x[:, :3])
    np.testing.assert_array_equal(found["b"], x[:, 3:])


def test_slice_of_batch_is_refused():
    """The run-time batch cannot be cut."""
    node = onnx.helper.make_node("Slice", ["x"], ["y"], axes=[0], starts=[1], ends=[2])
    with pytest.raises(gc.GraphcError, match="run-time batch"):
        _loaded(node, 9)
