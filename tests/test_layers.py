"""The table of layers: what a layer is, what it counts, and that the totals are the published numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import graphc as gc
from graphc import models
from graphc.errors import GraphError, UnknownNameError
from graphc.layers import LayerRow, layers, layers_table

IMAGE = (3, 224, 224)


def seen(outputs: gc.Tensor | dict[str, gc.Tensor]) -> list[tuple[str, str, str, int, int]]:
    """Return the rows without the bytes."""
    return [
        (r.name, r.kind, f"({', '.join(map(str, r.shape))})", r.parameters, r.macs) for r in layers(outputs)
    ]


@pytest.mark.parametrize(
    ("net", "shape", "parameters", "macs"),
    [
        (models.lenet, (1, 32, 32), 61_706, 416_520),
        (models.alexnet, IMAGE, 61_100_840, 714_188_480),
        (models.vgg16, IMAGE, 138_357_544, 15_470_264_320),
        (models.googlenet, IMAGE, 7_005_832, 1_582_671_872),
        (models.resnet18, IMAGE, 11_689_512, 1_814_073_344),
        (models.resnet50, IMAGE, 25_557_032, 4_089_184_256),
    ],
)
def test_the_totals_are_the_published_numbers(
    net: Callable[[gc.Tensor], gc.Tensor], shape: tuple[int, ...], parameters: int, macs: int
) -> None:
    rows = layers(net(gc.input("x", ("N", *shape))))
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.macs for row in rows) == macs
    assert len({row.name for row in rows}) == len(rows)
    total = layers_table(rows).splitlines()[-4].split()
    assert total[:5] == ["total", str(len(rows)), "layers", f"{parameters:,}", f"{macs:,}"]


def test_the_rows_of_lenet() -> None:
    """Counted by hand: an image of 32 x 32 floats, 5 x 5 kernels, and so on."""
    rows = layers(models.lenet(gc.input("x", ("N", 1, 32, 32))))
    n = rows[0].shape[0]
    assert rows[0] == LayerRow(
        "conv1", "conv2d 5x5", (n, 6, 28, 28), 156, 117_600, 4 * (32 * 32 + 156), 4 * 6 * 28 * 28
    )
    assert rows[1] == LayerRow("relu_0", "relu", (n, 6, 28, 28), 0, 0, 4 * 4704, 4 * 4704)
    assert rows[2] == LayerRow("max_pool2d_0", "max_pool2d 2x2/2", (n, 6, 14, 14), 0, 0, 4 * 4704, 4 * 1176)
    assert [row.name for row in rows[3:]] == [
        "conv2", "relu_1", "max_pool2d_1", "fc1", "relu_2", "fc2", "relu_3", "fc3",
    ]  # fmt: skip
    assert rows[-1] == LayerRow("fc3", "linear", (n, 10), 850, 840, 4 * (84 + 850), 40)
    assert rows[0].intensity == pytest.approx(2 * 117_600 / (4720 + 18_816))


def test_a_residual_block_with_its_projection() -> None:
    x = gc.input("x", ("N", 64, 8, 8))
    rows = seen(models._basic(x, 128, 2, "b"))
    assert rows == [
        ("b.conv1", "conv2d 3x3/2", "(N, 128, 4, 4)", 73_728, 1_179_648),
        ("b.bn1", "batch_norm", "(N, 128, 4, 4)", 256, 0),
        ("relu_0", "relu", "(N, 128, 4, 4)", 0, 0),
        ("b.conv2", "conv2d 3x3", "(N, 128, 4, 4)", 147_456, 2_359_296),
        ("b.bn2", "batch_norm", "(N, 128, 4, 4)", 256, 0),
        ("b.downsample.0", "conv2d 1x1/2", "(N, 128, 4, 4)", 8_192, 131_072),
        ("b.downsample.1", "batch_norm", "(N, 128, 4, 4)", 256, 0),
        ("add_0", "add", "(N, 128, 4, 4)", 0, 0),
        ("relu_1", "relu", "(N, 128, 4, 4)", 0, 0),
    ]


def test_a_batch_norm_reads_its_statistics_too() -> None:
    (row,) = layers(gc.nn.batch_norm(gc.input("x", ("N", 3, 2, 2)), name="bn"))
    assert (row.parameters, row.bytes_read, row.bytes_written) == (6, 4 * (12 + 4 * 3), 4 * 12)


def test_what_is_many_nodes_is_one_layer() -> None:
    x = gc.input("x", ("N", 6, 4, 4))
    h = gc.nn.local_response_norm(x, 3)
    h = gc.nn.layer_norm(gc.flatten(gc.nn.global_avg_pool2d(h)), name="ln")
    h = gc.nn.batch_norm(gc.nn.layer_norm(h, affine=False), track=False)
    assert seen(gc.log_softmax(gc.softmax(h))) == [
        ("lrn_0", "lrn", "(N, 6, 4, 4)", 0, 0),
        ("global_avg_pool2d_0", "global_avg_pool2d", "(N, 6, 1, 1)", 0, 0),
        ("ln", "layer_norm", "(N, 6)", 12, 0),
        ("normalise_0", "normalise", "(N, 6)", 0, 0),
        ("batch_norm_0", "batch_norm", "(N, 6)", 12, 0),
        ("softmax_0", "softmax", "(N, 6)", 0, 0),
        ("log_softmax_0", "log_softmax", "(N, 6)", 0, 0),
    ]
    lrn = layers(h)[0]
    assert lrn.bytes_read == lrn.bytes_written == 4 * 6 * 4 * 4


def test_a_softmax_whose_inside_is_used_elsewhere_stays_apart() -> None:
    x = gc.input("x", ("N", 5))
    whole = gc.softmax(x)
    inside = gc.exp(x - gc.max(x, 1, keepdims=True))
    assert [row.kind for row in layers(whole)] == ["softmax"]
    kinds = [row.kind for row in layers({"out": whole, "also": inside})]
    assert kinds == ["max", "sub", "exp", "sum", "div"]


def test_a_sum_before_a_norm_is_no_part_of_it() -> None:
    x, y = gc.input("x", ("N", 6)), gc.input("y", ("N", 6))
    rows = layers(gc.nn.layer_norm(gc.relu(x) + gc.square(y), affine=False))
    assert [row.kind for row in rows] == ["relu", "square", "add", "normalise"]


def test_views_and_dropout_are_no_layers_and_copies_are() -> None:
    x = gc.input("x", ("N", 4, 6))
    first, second = gc.split(gc.transpose(x, (0, 2, 1)), 2, axis=1)
    h = gc.concat([first, gc.nn.dropout(second)], 1)
    rows = layers(gc.flatten(gc.pad(h[:, ::2], ((0, 0), (1, 0), (0, 0)))))
    assert [(row.kind, row.bytes_read, row.bytes_written) for row in rows] == [
        ("concat", 4 * 24, 4 * 24),
        ("pad", 4 * 12, 4 * 16),  # every second row is read
    ]


def test_shared_parameters_count_once_and_are_read_twice() -> None:
    x = gc.input("x", ("N", 4))
    w, b = gc.parameter("w", (4, 4)), gc.parameter("b", (4,))
    h = gc.nn.linear(gc.relu(gc.nn.linear(x, 4, weight=w, bias=b)), 4, weight=w, bias=b, name="again")
    rows = layers(h)
    assert [(r.name, r.kind, r.parameters, r.macs) for r in rows] == [
        ("w", "linear", 16, 16),
        ("b", "add", 4, 0),
        ("relu_0", "relu", 0, 0),
        ("again", "linear", 0, 16),
        ("add_0", "add", 0, 0),
    ]
    assert [r.bytes_read for r in rows] == [80, 32, 16, 80, 32]


def test_a_penalty_on_weights_is_no_second_layer() -> None:
    x = gc.input("x", ("N", 4))
    w = gc.parameter("w", (2, 4))
    h = gc.nn.linear(x, 2, weight=w, bias=False, name="fc")
    rows = layers(gc.sum(h) + gc.sum(gc.square(w)))
    assert [(r.name, r.parameters) for r in rows] == [("fc", 8), ("sum_0", 0), ("add_0", 0)]
    alone = layers({"penalty": gc.sum(gc.square(w))})
    assert [(r.name, r.kind, r.parameters) for r in alone] == [("w", "parameter", 8)]


def test_sequences() -> None:
    """Linear layers keep the leading axes; an embedding reads the rows that it looks up."""
    tokens = gc.input("tokens", ("N", 7), dtype="int32")
    h = gc.nn.linear(gc.nn.embedding(tokens, 1000, 8), 5, name="fc")
    scores = gc.matmul(h, gc.transpose(h, (0, 2, 1)))
    assert seen(scores) == [
        ("embedding_0", "embedding", "(N, 7, 8)", 8000, 0),
        ("fc", "linear", "(N, 7, 5)", 45, 7 * 8 * 5),
        ("matmul_0", "matmul", "(N, 7, 7)", 0, 7 * 5 * 7),
    ]
    assert layers(scores)[0].bytes_read == 4 * 7 + 4 * 7 * 8


def test_kinds_say_what_differs_from_the_usual() -> None:
    x = gc.input("x", ("N", 4, 9, 9))
    h = gc.nn.conv2d(x, 8, (3, 1), stride=(2, 1), groups=2, dilation=2, name="c")
    h = gc.nn.avg_pool2d(gc.nn.max_pool2d(h, 2, 1), (1, 2))
    assert [row.kind for row in layers(gc.elementwise("mish", "x*tanh(log(1 + exp(x)))", h))] == [
        "conv2d 3x1/2x1, dilation 2x2, groups 2",
        "max_pool2d 2x2",
        "avg_pool2d 1x2/1x2",
        "mish",
    ]


def test_deep_nets_have_a_table_too() -> None:
    nets = {
        "alexnet_2012": (models.alexnet_2012, (3, 227, 227)),
        "lenet_1998": (models.lenet_1998, (1, 32, 32)),
        "resnet152": (models.resnet152, IMAGE),
        "resnet_cifar": (models.resnet_cifar, (3, 32, 32)),
    }
    for net, shape in nets.values():
        outputs = net(gc.input("x", ("N", *shape)))
        assert layers_table(layers(outputs)).count("\n") > 10


def test_what_is_no_net_is_refused() -> None:
    with pytest.raises(GraphError, match="'out' must be a tensor, got int"):
        layers({"out": 3})  # type: ignore[dict-item]
    with pytest.raises(GraphError, match="a dict of tensors, got list"):
        layers([3])  # type: ignore[arg-type]
    x = gc.input("x", ("N", 4))
    with pytest.raises(UnknownNameError, match="used twice"):
        layers(gc.nn.linear(gc.nn.linear(x, 4, name="a"), 4, name="a"))


def test_the_table_of_nothing_has_totals() -> None:
    assert layers_table(()).splitlines()[-4].split() == ["total", "0", "layers", "-", "-", "0", "0", "-"]
    assert layers_table(layers(gc.input("x", ("N", 4)))).splitlines()[3].startswith("total")
