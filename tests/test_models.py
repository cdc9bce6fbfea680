"""Ready-made nets have exactly the published numbers of parameters and of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

import graphc as gc
from graphc import models
from graphc.emit.c import emit_c
from graphc.graph.node import topological
from graphc.ops.conv2d import Conv2d
from graphc.ops.leaves import Parameter
from graphc.ops.matmul import MatMul
from graphc.passes.specialise import specialise
from graphc.pipeline import Request, compile_program
from graphc.types import at

IMAGE = (3, 224, 224)
PUBLISHED = [
    ("lenet", models.lenet, (1, 32, 32), 61_706, 416_520),
    ("alexnet", models.alexnet, IMAGE, 61_100_840, 714_188_480),
    ("vgg11", models.vgg11, IMAGE, 132_863_336, None),
    ("vgg13", models.vgg13, IMAGE, 133_047_848, None),
    ("vgg16", models.vgg16, IMAGE, 138_357_544, 15_470_264_320),
    ("vgg19", models.vgg19, IMAGE, 143_667_240, None),
    ("googlenet", models.googlenet, IMAGE, 7_005_832, 1_582_671_872),
    ("googlenet-3x3", partial(models.googlenet, kernel=3), IMAGE, 6_624_904, None),
    ("resnet18", models.resnet18, IMAGE, 11_689_512, 1_814_073_344),
    ("resnet34", models.resnet34, IMAGE, 21_797_672, None),
    ("resnet50", models.resnet50, IMAGE, 25_557_032, 4_089_184_256),
    ("resnet101", models.resnet101, IMAGE, 44_549_160, None),
    ("resnet152", models.resnet152, IMAGE, 60_192_808, None),
]


@pytest.mark.parametrize(
    ("net", "shape", "parameters", "macs"), [p[1:] for p in PUBLISHED], ids=[p[0] for p in PUBLISHED]
)
def test_published_counts(
    net: Callable[[gc.Tensor], gc.Tensor], shape: tuple[int, ...], parameters: int, macs: int | None
) -> None:
    logits = net(gc.input("x", ("N", *shape)))
    nodes = topological([specialise({"logits": logits}, training=False).outputs["logits"]])
    assert sum(at(n.type.size, 1) for n in nodes if isinstance(n.op, Parameter)) == parameters
    products = [n for n in nodes if isinstance(n.op, (Conv2d, MatMul))]
    counted = sum(at(n.op.flops(n.type, *(i.type for i in n.inputs)), 1) for n in products)
    if macs is not None:
        assert counted == 2 * macs


def test_identical_layers_share_a_kernel() -> None:
    """ResNet-50, inference and training together, stays a source that can be paged through."""
    x, y = gc.input("x", ("N", *IMAGE)), gc.input("y", ("N",), dtype="int32")
    logits = models.resnet50(x)
    loss, optimizer = gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.1, momentum=0.9)
    request = Request("resnet50", {"logits": logits}, loss, {}, optimizer, 16, "float32")
    emitted = emit_c(compile_program(request).program, request.optimizer)
    assert sum(text.count("\n") for text in emitted.sources.values()) < 15_000
    step = emitted.kernel_names["train_step"]
    # 53 convolutions of 23 shapes, forward and, all but the first, backward to their input: one or four phases.
    convolutions = [name for name in step if "conv2d" in name]
    assert len(convolutions) == 53 + 52 + 3 * 3
    assert len(set(convolutions)) <= 60
