"""Elementwise operators of ONNX, compared with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import graphc as gc


@pytest.mark.parametrize("operator", ["Cast", "CastLike"])
def test_casts_truncate_at_every_batch(operator: str) -> None:
    """Float to int32, exactly: every value is a small multiple of 0.5."""
    like = helper.make_tensor("like", TensorProto.INT32, [1], [0])
    node = (
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32)
        if operator == "Cast"
        else helper.make_node("CastLike", ["x", "like"], ["y"])
    )
    graph = helper.make_graph(
        [node], "casts", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["N", 3])], [like],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    found = gc.onnx.load(model)
    module = gc.compile(found.outputs, batch=4)
    x = np.array([[-2.5, -0.5, 0.0], [0.5, 1.5, 7.0]], np.float32)
    result = module.predict(x=x)["y"]
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, x.astype(np.int32))


def test_a_cast_between_float_types_needs_mixed_precision() -> None:
    """Compiled so, the result has the dtype that the model says, exactly: a float32 is a float64."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], "casts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["N", 3])],
    )  # fmt: skip
    found = gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    x = np.array([[0.1, 2.5, -3.0]], np.float32)
    result = gc.compile(found.outputs, dtype="mixed").predict(x=x)["y"]
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, x.astype(np.float64))
