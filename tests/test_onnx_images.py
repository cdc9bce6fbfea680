"""ONNX's convolutions, pools, resizes and samplers with the run-time batch, and their gradients, against PyTorch.

Graphs are interpreted in float64, so that a tolerance of 1e-9 leaves room for the order of sums alone; what the C of
the same operators computes is compared by ONNX's own suite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.graph.interpret import interpret
from graphc.ops.pool2d import MaxPool2d

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
BATCH = 2
_RNG = np.random.default_rng(5)
LINE, IMAGE, VOLUME = ("N", 4, 9), ("N", 4, 7, 8), ("N", 4, 5, 6, 4)
_W = {
    "w1": _RNG.standard_normal((6, 2, 3)), "w2": _RNG.standard_normal((6, 2, 3, 2)),
    "w3": _RNG.standard_normal((6, 2, 2, 3, 2)), "t1": _RNG.standard_normal((4, 3, 3)),
    "t3": _RNG.standard_normal((4, 3, 2, 3, 2)), "b": _RNG.standard_normal(6),
    "grid": _RNG.uniform(-1.3, 1.3, (BATCH, 3, 5, 2)),
}  # fmt: skip
_T = {name: torch.tensor(array) for name, array in _W.items()}


def _node(op: str, *inputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(op, ["x", *inputs], ["y"], **attributes)


def _loaded(node: Any, shape: tuple[Any, ...], version: int = 22, **known: np.ndarray) -> Any:
    """Import a model of one node; its input x has this shape."""
    helper, tensor = onnx.helper, onnx.TensorProto
    arrays = {n: a for n, a in {**_W, **known}.items() if n in node.input}
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", tensor.DOUBLE, list(shape))],
        [helper.make_tensor_value_info(name, tensor.DOUBLE, None) for name in node.output],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )  # fmt: skip
    return gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)]))


def _check(loaded: Any, reference: Callable[[Any], Any], shape: tuple[Any, ...]) -> None:
    """Compare values, and the gradient for x of the sum of their squares."""
    array = np.random.default_rng(3).standard_normal((BATCH, *shape[1:]))
    x, y = loaded.inputs["x"], loaded.outputs["y"]
    (slope,) = gc.grad(gc.sum(y * y), [x])
    weights = {p: p.op.initial.values for p in loaded.parameters.values()}
    value, gradient = interpret([y, slope], {x: array, **weights}, batch=BATCH)
    given = torch.tensor(array, requires_grad=True)
    wanted = reference(given)
    (wanted * wanted).sum().backward()
    np.testing.assert_allclose(value, wanted.detach().numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gradient, given.grad.numpy(), rtol=1e-9, atol=1e-9)


def _padded(x: Any, *widths: int, value: float = 0.0) -> Any:
    return F.pad(x, widths, value=value)


CONVOLUTIONS = [
    (LINE, _node("Conv", "w1", "b", group=2, strides=[2], dilations=[2], pads=[1, 3]),
     lambda x: F.conv1d(_padded(x, 1, 3), _T["w1"], _T["b"], 2, 0, 2, 2)),
    (IMAGE, _node("Conv", "w2", group=2, strides=[2, 3], auto_pad="SAME_UPPER"),
     lambda x: F.conv2d(_padded(x, 0, 0, 1, 1), _T["w2"], None, (2, 3), groups=2)),
    (IMAGE, _node("Conv", "w2", group=2, auto_pad="SAME_LOWER"),
     lambda x: F.conv2d(_padded(x, 1, 0, 1, 1), _T["w2"], groups=2)),
    (VOLUME, _node("Conv", "w3", "b", group=2, strides=[2, 1, 1], dilations=[2, 1, 1], pads=[2, 1, 0, 1, 0, 1]),
     lambda x: F.conv3d(_padded(x, 0, 1, 1, 0, 2, 1), _T["w3"], _T["b"], (2, 1, 1), 0, (2, 1, 1), 2)),
    (LINE, _node("ConvTranspose", "t1", group=2, strides=[3], dilations=[2], pads=[1, 1], output_padding=[2]),
     lambda x: F.conv_transpose1d(x, _T["t1"], None, 3, 1, 2, 2, 2)),
    (VOLUME, _node("ConvTranspose", "t3", "b", group=2, strides=[2, 1, 2], dilations=[1, 2, 1],
                   pads=[1, 0, 1, 1, 0, 1], output_padding=[1, 0, 0]),
     lambda x: F.conv_transpose3d(x, _T["t3"], _T["b"], (2, 1, 2), (1, 0, 1), (1, 0, 0), 2, (1, 2, 1))),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "node", "reference"), CONVOLUTIONS)
def test_convolutions(shape: Any, node: Any, reference: Any) -> None:
    _check(_loaded(node, shape), reference, shape)


POOLS = [
    (LINE, _node("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1], ceil_mode=1),
     lambda x: F.max_pool1d(x, 3, 2, 1, ceil_mode=True)),
    (IMAGE, _node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], dilations=[2, 1], pads=[0, 2, 1, 3]),
     lambda x: F.max_pool2d(_padded(x, 2, 3, 0, 1, value=-np.inf), (3, 2), 2, 0, (2, 1))),
    (VOLUME, _node("MaxPool", kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[1, 1, 0, 1, 1, 0]),
     lambda x: F.max_pool3d(x, (2, 3, 2), (1, 2, 1), (1, 1, 0))),
    (IMAGE, _node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0], count_include_pad=1),
     lambda x: F.avg_pool2d(_padded(x, 1, 0, 0, 1), 3, 2)),
    (IMAGE, _node("AveragePool", kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
     lambda x: F.avg_pool2d(x, 3, 3, 1, ceil_mode=True, count_include_pad=False)),
    (VOLUME, _node("AveragePool", kernel_shape=[2, 3, 2], pads=[1, 1, 1, 1, 1, 1]),
     lambda x: F.avg_pool3d(x, (2, 3, 2), 1, 1, count_include_pad=False)),
    (VOLUME, _node("LpPool", kernel_shape=[2, 3, 2], strides=[2, 2, 2], p=3),
     lambda x: F.avg_pool3d(x.abs() ** 3, (2, 3, 2), 2, divisor_override=1) ** (1 / 3)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "node", "reference"), POOLS)
def test_pools(shape: Any, node: Any, reference: Any) -> None:
    _check(_loaded(node, shape), reference, shape)


def test_a_pool_with_padding_at_the_end_stays_one_op() -> None:
    node = _node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    loaded = _loaded(node, IMAGE)
    assert isinstance(loaded.outputs["y"].op, MaxPool2d)
    assert loaded.outputs["y"].inputs == (loaded.inputs["x"],)


def test_indices_of_a_pool_with_depth() -> None:
    node = onnx.helper.make_node("MaxPool", ["x"], ["v", "y"], kernel_shape=[2, 3, 2], strides=[2, 1, 2])
    loaded = _loaded(node, VOLUME)
    array = np.random.default_rng(3).standard_normal((BATCH, *VOLUME[1:]))
    (found,) = interpret([loaded.outputs["y"]], {loaded.inputs["x"]: array}, batch=BATCH)
    _, wanted = F.max_pool3d(torch.tensor(array), (2, 3, 2), (2, 1, 2), return_indices=True)
    planes = np.arange(BATCH * 4).reshape(BATCH, 4, 1, 1, 1) * (
        5 * 6 * 4
    )  # ONNX counts them, PyTorch does not
    np.testing.assert_array_equal(found, wanted.numpy() + planes)


def _resized(sizes: list[int], **attributes: Any) -> Any:
    return _node("Resize", "", "", "sizes", axes=[2, 3], **attributes), {"sizes": np.array(sizes)}


RESIZES = [
    (_resized([14, 24], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
     lambda x: F.interpolate(x, (14, 24))),
    (_resized([14, 16], mode="linear"), lambda x: F.interpolate(x, (14, 16), mode="bilinear")),
    (_resized([11, 5], mode="linear", coordinate_transformation_mode="align_corners"),
     lambda x: F.interpolate(x, (11, 5), mode="bilinear", align_corners=True)),
    (_resized([10, 13], mode="cubic"), lambda x: F.interpolate(x, (10, 13), mode="bicubic")),
    (_resized([3, 5], mode="linear", antialias=1, exclude_outside=1),
     lambda x: F.interpolate(x, (3, 5), mode="bilinear", antialias=True)),
]  # fmt: skip


@pytest.mark.parametrize(("resize", "reference"), RESIZES)
def test_resizes(resize: Any, reference: Any) -> None:
    node, known = resize
    _check(_loaded(node, IMAGE, **known), reference, IMAGE)


def test_resize_of_volume_by_old_scales() -> None:
    node = onnx.helper.make_node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 1.0, 3.0])
    _check(_loaded(node, VOLUME, 7), lambda x: F.interpolate(x, (10, 6, 12)), VOLUME)


GRIDS = [
    ("nearest", "nearest", "border", True), ("linear", "bilinear", "zeros", False),
    ("linear", "bilinear", "reflection", True), ("cubic", "bicubic", "zeros", True),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "theirs", "padding", "align"), GRIDS)
def test_grids(mode: str, theirs: str, padding: str, align: bool) -> None:
    shape = (BATCH, *IMAGE[1:])  # the grid is a weight here, whose batch is fixed
    node = _node("GridSample", "grid", mode=mode, padding_mode=padding, align_corners=int(align))
    _check(_loaded(node, shape), lambda x: F.grid_sample(x, _T["grid"], theirs, padding, align), shape)


def test_downsampling_of_version_10_is_refused_where_it_is_not_defined() -> None:
    node = _node("Resize", "scales", mode="nearest")
    with pytest.raises(gc.GraphcError, match="does not say which neighbour"):
        _loaded(node, IMAGE, 10, scales=np.array([1, 1, 0.6, 0.6], np.float32))


def test_a_deformable_convolution_moved_by_whole_pixels_is_a_convolution() -> None:
    shape = (BATCH, *IMAGE[1:])
    offset = np.zeros((BATCH, 6, 2, 7, 8))
    offset[:, :, 1] = 1  # every tap one pixel to the right
    moved = offset.reshape(BATCH, 12, 7, 8)
    node = _node("DeformConv", "w2", "offset", group=2, pads=[1, 0, 1, 1])
    wanted = lambda x: F.conv2d(_padded(x[..., 1:], 0, 2, 1, 1), _T["w2"], groups=2)  # noqa: E731  # as the others
    _check(_loaded(node, shape, offset=moved), wanted, shape)


def test_unpooling_puts_maxima_back_where_they_were() -> None:
    helper, tensor = onnx.helper, onnx.TensorProto
    windows = {"kernel_shape": [3, 2], "strides": [3, 2]}
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["p", "i"], **windows),
         helper.make_node("MaxUnpool", ["p", "i"], ["y"], **windows)],
        "g", [helper.make_tensor_value_info("x", tensor.DOUBLE, ["N", 4, 6, 8])],
        [helper.make_tensor_value_info("y", tensor.DOUBLE, None)],
    )  # fmt: skip
    loaded = gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)]))

    def reference(x: Any) -> Any:
        return F.max_unpool2d(*F.max_pool2d(x, (3, 2), return_indices=True), (3, 2))

    _check(loaded, reference, ("N", 4, 6, 8))
