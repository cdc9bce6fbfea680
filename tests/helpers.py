"""What several test modules share: compiling a sample, and comparing with references."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc.graph.interpret import interpret
from graphc.graph.node import Node
from graphc.ops.leaves import Input
from graphc.ops.reduce import iota
from graphc.ops.registry import Sample
from graphc.passes.specialise import specialise
from graphc.types import Extent, TensorType, at

full_only = pytest.mark.skipif(
    os.environ.get("GRAPHC_FULL") != "1",
    reason="takes long: runs where GRAPHC_FULL=1 is set (make test-full)",
)
LARGEST = 5  # the batch that samples are compiled for


def make_inputs(types: Sequence[TensorType]) -> list[Node]:
    """Return an input node for each type; a type may have the batch anywhere."""
    return [Input(f"in{k}", t.dtype, t.shape)(name=f"in{k}") for k, t in enumerate(types)]


def draw(sample: Sample, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Return float64 or integer values for a sample's inputs."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(at(d, batch) for d in t.shape) for t in sample.types]
    values = sample.values(rng, shapes)
    return [
        np.asarray(v, dtype=np.float64 if t.is_float else t.dtype)
        for v, t in zip(values, sample.types, strict=True)
    ]


def run(
    outputs: Mapping[str, Node],
    inputs: Sequence[Node],
    values: Sequence[np.ndarray],
    dtype: str,
    **options: object,
) -> dict[str, np.ndarray]:
    """Compile outputs and return what predict gives for the values."""
    module = gc.compile(outputs, batch=LARGEST, dtype=dtype, **options)  # type: ignore[arg-type]
    given = {}
    for node, value in zip(inputs, values, strict=True):
        name = node.op.name  # type: ignore[attr-defined]
        if name in module.input_types:
            given[name] = value.astype(dtype if node.type.is_float else node.dtype)
    return module.predict(**given)


def reference(
    outputs: Mapping[str, Node], inputs: Sequence[Node], values: Sequence[np.ndarray], batch: int
) -> dict[str, np.ndarray]:
    """Return the outputs by the float64 interpreter, in inference mode."""
    graph = specialise(outputs, training=False).outputs
    results = interpret(list(graph.values()), dict(zip(inputs, values, strict=True)), batch=batch)
    return dict(zip(outputs, results, strict=True))


def uses_batch(types: Sequence[TensorType]) -> bool:
    """Whether any input has the run-time batch in its shape."""
    return any(isinstance(d, Extent) for t in types for d in t.shape)


def weighted_sum(node: Node) -> Node:
    """Return a scalar that depends on every element differently, and not linearly: sum((v + v^2/4) * cos(index))."""
    total = node + gc.square(node) * 0.25
    for axis in range(node.rank):
        total = total * gc.cos(gc.cast(iota(node.shape, axis), node.dtype) * 0.7 + 0.3 * axis + 0.1)
    return gc.sum(total)


def arena_checker() -> Path | None:
    """Return the independent checker of arena plans, which is not part of the repository, or None."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "tools"
    folders = [os.environ.get("GRAPHC_SHARED_TOOLS"), str(beside)]
    candidates = [Path(folder) / "arena_check.py" for folder in folders if folder]
    return next((path for path in candidates if path.is_file()), None)
