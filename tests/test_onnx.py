"""A model of the ONNX format, read, compiled and trained."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphc as gc
from graphc.errors import GraphError, UnknownNameError

SEED = 7


def lenet_proto() -> onnx.ModelProto:
    """Return a small convolutional net with seeded weights, whose batch is symbolic."""
    rng = np.random.default_rng(SEED)

    def weight(name: str, *shape: int) -> TensorProto:
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], "conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["p", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [weight("conv.weight", 4, 1, 3, 3), weight("conv.bias", 4), weight("fc.weight", 5, 36), weight("fc.bias", 5),
         numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array([-1]), "rest")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_it_predicts_what_the_reference_does_at_every_batch() -> None:
    from onnx.reference import ReferenceEvaluator

    proto = lenet_proto()
    module = gc.compile(gc.onnx.load(proto).outputs, batch=6)
    x = np.random.default_rng(1).standard_normal((6, 1, 8, 8)).astype(np.float32)
    for batch in (1, 6):
        expected = ReferenceEvaluator(proto).run(None, {"x": x[:batch]})[0]
        # float32 sums of at most 36 terms
        np.testing.assert_allclose(module.predict(x=x[:batch])["logits"], expected, rtol=1e-5, atol=1e-6)


def test_it_trains_as_the_same_net_written_by_hand() -> None:
    """The same graph gives the same C, so the losses are equal to the bit."""
    proto = lenet_proto()
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}

    def trained(logits: gc.Tensor) -> list[float]:
        y = gc.input("y", ("N",), dtype="int32")
        module = gc.compile(
            {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(0.1, momentum=0.9), batch=8
        )
        rng = np.random.default_rng(2)
        x, labels = (
            rng.standard_normal((8, 1, 8, 8)).astype(np.float32),
            rng.integers(0, 5, 8, dtype=np.int32),
        )
        return [float(module.train_step(x=x, y=labels)) for _ in range(5)]

    x = gc.input("x", ("N", 1, 8, 8))
    h = gc.nn.conv2d(x, 4, 3, name="conv", weight=weights["conv.weight"], initial_bias=weights["conv.bias"])
    h = gc.flatten(gc.nn.max_pool2d(gc.relu(h), 2))
    by_hand = gc.nn.linear(h, 5, name="fc", weight=weights["fc.weight"], initial_bias=weights["fc.bias"])
    losses = trained(gc.onnx.load(proto).outputs["logits"])
    assert losses == trained(by_hand)
    assert losses[-1] < losses[0] / 2


def test_weights_are_parameters_and_can_be_frozen() -> None:
    model = gc.onnx.load(lenet_proto(), freeze="conv*")
    trainable = {name: node.op.trainable for name, node in model.parameters.items()}  # type: ignore[attr-defined]
    assert trainable == {"conv.weight": False, "conv.bias": False, "fc.weight": True, "fc.bias": True}


def test_what_cannot_be_imported_is_one_error() -> None:
    proto = lenet_proto()
    proto.graph.node.insert(1, helper.make_node("Nonsense", ["c"], ["d"], "first"))
    proto.graph.node[2].input[0] = "d"
    proto.graph.node.append(helper.make_node("StringConcat", ["x", "x"], ["e"], "second"))
    proto.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, None))
    with pytest.raises(GraphError) as caught:
        gc.onnx.load(proto)
    lines = str(caught.value).splitlines()
    assert lines[0] == "small: 2 nodes cannot be imported:"
    assert lines[1] == "  Nonsense (opset 17) 'first': there is no rule for this operator"
    assert lines[2].startswith("  StringConcat (opset 17) 'second': there is no rule for this operator")


def test_symbolic_dimensions_need_a_value() -> None:
    proto = lenet_proto()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(GraphError, match=r"the dimension 'height' has no value; give it one with dims="):
        gc.onnx.load(proto)
    assert gc.onnx.load(proto, dims={"height": 8}).inputs["x"].shape[1:] == (1, 8, 8)
    with pytest.raises(UnknownNameError, match="has no input 'z'"):
        gc.onnx.load(proto, constants={"z": np.zeros(3)})


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
def test_lenet_exported_by_pytorch(dynamo: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    nn = torch.nn
    torch.manual_seed(SEED)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).eval()  # fmt: skip
    x = torch.randn(4, 1, 32, 32)
    model = gc.onnx.load(exported(torch, net, x, dynamo))
    (name,), (output,) = model.inputs, model.outputs
    found = gc.compile(model.outputs, batch=4).predict(**{name: x.numpy()})[output]
    # float32 sums of at most 400 terms, in another order
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def exported(torch: Any, net: Any, x: Any, dynamo: bool) -> bytes:
    """Return a net as PyTorch exports it, for any batch."""
    file = io.BytesIO()
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False).save(file)
    else:
        torch.onnx.export(net, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    return file.getvalue()
