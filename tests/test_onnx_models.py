"""Nine nets that the onnx package ships without their weights: imported, compiled, and compared with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import full_only
from onnx import TensorProto, helper, numpy_helper

import graphc as gc

SEED = 11
FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("squeezenet", "shufflenet", "inception_v1", "resnet50")
LONG = ("inception_v2", "densenet121", "bvlc_alexnet", "zfnet512", "vgg19")


def with_weights(name: str) -> onnx.ModelProto:
    """Return a model whose weights are seeded, and whose output is what its softmax gets.

    The files fill all weights with one number, so that any two channels would be equal.
    """
    proto = onnx.load(FOLDER / f"light_{name}.onnx")
    graph = proto.graph
    shapes = {
        t.name: tuple(numpy_helper.to_array(t)) for t in graph.initializer if t.data_type == TensorProto.INT64
    }
    filled = {n.output[0]: shapes[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    filled |= {t.name: tuple(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    variances = {n.input[4] for n in graph.node if n.op_type == "BatchNormalization"}
    scales = {n.input[1] for n in graph.node if n.op_type == "BatchNormalization"}
    kept = [t for t in graph.initializer if t.data_type != TensorProto.FLOAT]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    rng = np.random.default_rng(SEED)
    for weight, shape in filled.items():
        values = rng.standard_normal(shape)
        if weight in variances or weight in scales:
            values = 1 + 0.1 * np.abs(values)
        elif len(shape) > 1:
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values *= 0.1
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), weight))
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    if nodes[-1].op_type == "Softmax":
        graph.output[0].CopyFrom(helper.make_tensor_value_info(nodes.pop().input[0], TensorProto.FLOAT, None))
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=full_only) for name in LONG)])
def test_the_outputs_are_those_of_onnx_runtime(name: str) -> None:
    """The largest difference is 1e-4 of the largest output at most: float32 sums of thousands of terms, in layers."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    proto = with_weights(name)
    data = proto.SerializeToString()
    model = gc.onnx.load(data)
    (image,), (output,) = model.inputs, model.outputs
    weights = {t.name for t in proto.graph.initializer}
    (fed,) = (i.name for i in proto.graph.input if i.name not in weights)
    x = np.random.default_rng(SEED).standard_normal((1, 3, 224, 224), np.float32)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {fed: x})[0]
    module = gc.compile(model.outputs, batch=1)
    found = module.predict(**{image: x})[output]
    assert found.shape == wanted.shape
    # The classes differ by far more than the tolerance.
    assert np.std(wanted) > 0.05 * np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
