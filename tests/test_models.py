"""Ready-made nets have exactly the published numbers of parameters and of multiply-accumulates."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest

import graphc as gc
from graphc import models
from graphc.cli.places import model_outputs
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


LINES = Path(models.__file__).read_text().splitlines()


def lines_of(logits: gc.Tensor) -> list[str]:
    """Return the text of the line of graphc/models.py that each convolution and product names, from the input on."""
    products = [n for n in topological([logits]) if isinstance(n.op, (Conv2d, MatMul))]
    assert {n.source.file for n in products} == {models.__file__}
    return [LINES[n.source.line - 1].strip() for n in products]


def test_a_net_of_the_command_line_names_the_lines_of_its_layers() -> None:
    lines = lines_of(model_outputs("model:lenet")["logits"])
    assert all(
        f'name="{n}"' in t for n, t in zip(("conv1", "conv2", "fc1", "fc2", "fc3"), lines, strict=True)
    )
    # Where a helper of the file makes a layer, the line is the helper's.
    lines = lines_of(model_outputs("model:resnet18")["logits"])
    assert lines == ["h = conv2d("] * 20 + [
        'return linear(flatten(global_avg_pool2d(h)), classes, name="fc")'
    ]


def test_a_net_of_a_program_names_the_line_of_the_program() -> None:
    logits = models.lenet(gc.input("x", ("N", 1, 32, 32)))
    assert {n.source.file for n in topological([logits])} == {__file__}


def test_a_net_that_nobody_calls_names_its_own_lines() -> None:
    """Its function is the outermost frame of a thread: no line outside the compiler is on the stack."""
    made: SimpleQueue[gc.Tensor] = SimpleQueue()
    x = gc.input("x", ("N", 1, 32, 32))
    _thread.start_new_thread(all, (map(made.put, map(models.lenet, [x])),))
    assert 'name="fc3"' in lines_of(made.get(timeout=60))[-1]
