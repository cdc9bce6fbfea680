"""What is written as ONNX computes what the graph does: every op and its gradient, whole nets, and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import draw, full_only, make_inputs, uses_batch, weighted_sum

import graphc as gc
from graphc.cli import main
from graphc.errors import FormulaError, GraphError
from graphc.graph.interpret import interpret
from graphc.graph.node import Node, topological
from graphc.onnx import writing as onnx_file
from graphc.onnx.export import Given, write_onnx
from graphc.ops.leaves import RandomUniform
from graphc.ops.registry import REGISTRY, Sample
from graphc.passes.specialise import specialise, without_gradient_rules
from graphc.philox import uniform
from graphc.pipeline import Request
from graphc.types import at

ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'graphc[test]'")
onnx = pytest.importorskip("onnx", reason="the onnx package is not installed: pip install 'graphc[onnx]'")

# float32 keeps 24 bits; sums of up to a few hundred terms of size one lose a few of them.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

# What ONNX Runtime has in float32 alone. The reference takes float64 too (and computes Erf in float32 all the same).
SINGLE = {"Erf", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"}
REFUSED = {"whole_power"}  # wraps around
# What is written in another way in float64; everything else is tried in it in the full run.
DOUBLE = {"conv2d", "conv2d_backward_data", "conv2d_backward_weight", "avg_pool2d", "avg_pool2d_backward", "softplus",
          "matmul", "scatter_add"}  # fmt: skip
SAMPLES = [
    pytest.param(sample, dtype, id=f"{name}-{k}-{dtype}",
                 marks=[full_only] if dtype == "float64" and name not in DOUBLE else [])
    for dtype in TOLERANCE for name, samples in REGISTRY.items() if name not in REFUSED
    for k, sample in enumerate(samples())
]  # fmt: skip


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the results of ONNX Runtime, which gets what the file has inputs for."""
    model = onnx.load(path)
    double = any(o.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE for o in model.graph.output)
    if double and any(node.op_type in SINGLE for node in model.graph.node):
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        feeds = {k: v for k, v in feeds.items() if k in evaluator.input_names}
        return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()} | {i.name for i in session.get_overridable_initializers()}
    results = session.run(None, {k: v for k, v in feeds.items() if k in wanted})
    return dict(zip((o.name for o in session.get_outputs()), results, strict=True))


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=tolerance * scale)


def check_graph(
    path: Path,
    outputs: dict[str, Node],
    inputs: Sequence[Node],
    values: Sequence[np.ndarray],
    batch: int,
    dtype: str,
) -> None:
    """Write outputs, run the file and compare with the interpreter."""
    request = Request("sample", outputs, None, {}, None, batch, dtype)  # type: ignore[arg-type]
    write_onnx(path, request, Given({}, {}, 0, None), train=False)
    graph = specialise(outputs, training=False).outputs
    drawn = {
        n: uniform(int(np.prod(shape)), 0, 0, n.op.stream).reshape(shape)
        for n in topological(graph.values())
        if isinstance(n.op, RandomUniform) and (shape := [at(d, batch) for d in n.shape])
    }
    known = {**dict(zip(inputs, values, strict=True)), **drawn}
    feeds = {n.op.name if n in inputs else f"random.{n.op.stream}": v.astype(dtype if n.type.is_float else n.dtype)
             for n, v in known.items()}  # type: ignore[attr-defined]  # inputs and random numbers  # fmt: skip
    got = run(path, feeds)
    single = "Erf" in {node.op_type for node in onnx.load(path).graph.node}  # in whatever dtype
    tolerance = TOLERANCE["float32" if single else dtype]
    for name, want in zip(graph, interpret(list(graph.values()), known, batch=batch), strict=True):
        assert got[name].shape == want.shape
        close(got[name], want, tolerance)


@pytest.mark.parametrize(("sample", "dtype"), SAMPLES)
def test_every_op_and_its_gradient(sample: Sample, dtype: str, tmp_path: Path) -> None:
    batch = 3 if uses_batch(sample.types) else 1
    inputs = make_inputs(sample.types)
    out = sample.build(*inputs)
    outputs = {"out": out}
    if sample.smooth and out.type.is_float and any(i.type.is_float for i in inputs):
        wrt = [i for i in inputs if i.type.is_float]
        outputs |= {f"g{k}": g for k, g in enumerate(gc.grad(weighted_sum(out), wrt))}
        outputs = without_gradient_rules(outputs)
    values = [v.astype(dtype).astype(np.float64) if v.dtype.kind == "f" else v for v in draw(sample, batch)]
    check_graph(tmp_path / "sample.onnx", outputs, inputs, values, batch, dtype)


def compiled(
    net: Callable[[Node], Node],
    shape: tuple[int, ...],
    optimizer: gc.optim.Optimizer | None = None,
    **options: Any,
) -> gc.Module:
    x, labels = gc.input("x", ("N", *shape)), gc.input("labels", ("N",), "int32")
    logits = net(x)
    loss = gc.losses.cross_entropy(logits, labels) if optimizer is not None else None
    return gc.compile({"logits": logits}, loss=loss, optimizer=optimizer, batch=6, seed=3, **options)


def batches(shape: tuple[int, ...], count: int, classes: int = 10) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [
        {"x": rng.standard_normal((6, *shape)).astype(np.float32),
         "labels": rng.integers(0, classes, 6).astype(np.int32)} for _ in range(count)
    ]  # fmt: skip


def test_operators_that_onnx_has_are_written_whole(tmp_path: Path) -> None:
    x = gc.input("x", ("N", 3, 8, 8))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 4, 3), name="bn"))
    h = gc.nn.layer_norm(gc.nn.linear(gc.nn.flatten(gc.nn.avg_pool2d(h, 2)), 6), weight=1.5, bias=0.25)
    h = gc.nn.linear(gc.gelu(h), 5)
    outputs = {"softmax": gc.softmax(h), "log": gc.log_softmax(gc.mean(x, (2, 3)))}
    module = gc.compile(outputs, batch=4)
    rng = np.random.default_rng(2)
    for arrays in (module.params, module.state):
        for name, array in arrays.items():
            arrays[name] = (array + rng.uniform(0.1, 0.6, array.shape)).astype(np.float32)
    path = module.to_onnx(tmp_path / "net.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert sorted(kinds) == sorted([
        "Conv", "BatchNormalization", "Relu", "AveragePool", "Reshape", "Gemm", "LayerNormalization", "Gelu", "Gemm",
        "Softmax", "ReduceMean", "Reshape", "LogSoftmax",
    ])  # fmt: skip
    given = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    got = run(path, {"x": given})
    for name, want in module.predict(x=given).items():
        np.testing.assert_allclose(got[name], want, rtol=2e-5, atol=2e-5, err_msg=name)


def test_what_is_read_elsewhere_is_no_part_of_an_operator(tmp_path: Path) -> None:
    x = gc.input("x", ("N", 3))
    product = gc.matmul(x, gc.parameter("w", (3, 2), np.arange(6.0).reshape(3, 2)))
    outputs = {"product": product, "sum": product + gc.parameter("b", (2,), np.array([1.0, 2.0]))}
    path = gc.compile(outputs, batch=2).to_onnx(tmp_path / "net.onnx")
    assert [node.op_type for node in onnx.load(path).graph.node] == ["MatMul", "Add"]
    got = run(path, {"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(got["product"], [[6, 9]])
    np.testing.assert_array_equal(got["sum"], [[7, 11]])


LENET = (1, 32, 32)


@pytest.fixture(scope="module")
def lenet() -> gc.Module:
    return compiled(
        gc.models.lenet, LENET, gc.optim.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3, decay="matrices")
    )


@pytest.fixture(scope="module")
def normed() -> gc.Module:
    """Return a small residual net with batch norm and dropout that Adam trains."""

    def net(x: Node) -> Node:
        return gc.nn.linear(
            gc.nn.dropout(gc.models.resnet_cifar(x, 16, depth=8, width=4), 0.3), 10, name="head"
        )

    return compiled(net, (3, 16, 16), gc.optim.AdamW(lr=0.01))


@pytest.mark.parametrize("name", ["lenet", "normed"])
def test_a_file_predicts_what_the_module_does(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    module: gc.Module = request.getfixturevalue(name)
    shape = (1, 32, 32) if name == "lenet" else (3, 16, 16)
    step, test = batches(shape, 2)
    module.train_step(**step)  # running statistics and weights that are no first values
    path = module.to_onnx(tmp_path / "net.onnx")
    model = onnx.load(path)
    assert model.producer_name == "graphc" and list(tmp_path.iterdir()) == [path]
    learned = {t.name for t in model.graph.initializer}
    assert {*module.params, *module.state} <= learned
    for batch in (1, 6):
        given = test["x"][:batch]
        # float32, and batch norm's scale folded into the weights here
        np.testing.assert_allclose(
            run(path, {"x": given})["logits"], module.predict(x=given)["logits"], rtol=2e-5, atol=2e-5
        )


def test_a_file_is_read_back(lenet: gc.Module, tmp_path: Path) -> None:
    again = gc.compile(gc.onnx.load(lenet.to_onnx(tmp_path / "net.onnx")).outputs, batch=6)
    x = batches(LENET, 1)[0]["x"]
    # The same graph but for its order of sums.
    np.testing.assert_allclose(
        again.predict(x=x)["logits"], lenet.predict(x=x)["logits"], rtol=1e-5, atol=1e-6
    )


def loop(
    module: gc.Module, path: Path, shape: tuple[int, ...], random: Mapping[str, tuple[int, ...]]
) -> None:
    """Train the file and the module side by side, from the same state, and compare after each of three steps."""
    held: dict[str, np.ndarray] = {}
    for data in batches(shape, 3):
        drawn = {
            name: uniform(int(np.prod(size)), module.seed, module.step, int(name.split(".")[1])).reshape(size)
            for name, size in random.items()
        }
        got = run(path, {**data, **held, **{k: v.astype(np.float32) for k, v in drawn.items()}})
        loss = module.train_step(**data)
        held = {name.removeprefix("new."): value for name, value in got.items() if name.startswith("new.")}
        np.testing.assert_allclose(got["loss"], float(loss), rtol=1e-5)
        state = module.state_dict()
        assert held.keys() == state.keys() - {"graphc.seed"}
        for name, value in held.items():
            # float32; Adam divides gradients near 0 by their own size
            np.testing.assert_allclose(
                value, state[name].reshape(value.shape), rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_a_step_trains_as_the_module_does(lenet: gc.Module, tmp_path: Path) -> None:
    path = lenet.to_onnx(tmp_path / "step.onnx", train=True)
    data = batches(LENET, 1)[0]
    got = run(path, data)
    lenet.backward(**data)
    for name, gradient in lenet.grads.items():
        np.testing.assert_allclose(got[f"grad.{name}"], gradient, rtol=1e-4, atol=1e-6, err_msg=name)
    loop(lenet, path, LENET, {})


def test_a_step_with_statistics_random_numbers_and_a_decoupled_decay(
    normed: gc.Module, tmp_path: Path
) -> None:
    path = normed.to_onnx(tmp_path / "step.onnx", train=True)
    loop(normed, path, (3, 16, 16), {"random.0": (6, 16)})


def test_large_weights_go_into_a_file_beside_it(
    lenet: gc.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "INLINE", 1000)
    path = lenet.to_onnx(tmp_path / "net.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    x = batches(LENET, 1)[0]["x"]
    np.testing.assert_allclose(
        run(path, {"x": x})["logits"], lenet.predict(x=x)["logits"], rtol=2e-5, atol=2e-5
    )


def test_what_cannot_be_written_is_refused_and_leaves_nothing(lenet: gc.Module, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot write"):
        lenet.to_onnx(tmp_path / "no" / "net.onnx")
    whole = REGISTRY["whole_power"]()[0]
    with pytest.raises(FormulaError, match="wraps around"):
        check_graph(tmp_path / "no.onnx", {"y": whole.build(*make_inputs(whole.types))}, [], [], 1, "float32")
    x = gc.input("x", ("N", 3))
    module = gc.compile({"y": gc.nn.linear(x, 2)}, batch=2)
    with pytest.raises(GraphError, match="without a loss"):
        module.to_onnx(tmp_path / "step.onnx", train=True)
    clash = gc.compile({"y": x * gc.parameter("x", (3,), 2.0)}, batch=2)
    with pytest.raises(GraphError, match=r"'x'.*names of their own"):
        clash.to_onnx(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_what_says_nothing_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"mine")
    for options, message in (([], "is there already"), (["--wheel"], "--wheel says nothing")):
        assert main(["build", "model:lenet", "-o", str(path), *options]) == 2
        assert message in capsys.readouterr().err
    assert path.read_bytes() == b"mine"
