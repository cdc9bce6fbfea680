"""Every registered operation, tested by existing: value, gradient, second derivative, batch sizes, dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers import LARGEST, draw, make_inputs, reference, run, uses_batch, weighted_sum

import graphc as gc
from graphc.graph.interpret import interpret
from graphc.graph.node import topological
from graphc.ops.registry import REGISTRY, Sample

CASES = [
    pytest.param(sample, id=f"{name}-{k}" + (f"-{sample.label[:40]}" if sample.label else ""))
    for name, samples in REGISTRY.items()
    for k, sample in enumerate(samples())
]


def is_smooth(sample: Sample) -> bool:
    result = sample.build(*make_inputs(sample.types))
    return sample.smooth and result.type.is_float and any(t.is_float for t in sample.types)


SMOOTH = [c for c in CASES if is_smooth(c.values[0])]  # type: ignore[arg-type]

# float32 keeps 24 bits; sums of up to a few hundred terms of size one lose a few of them.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sample", CASES)
def test_value(sample: Sample, dtype: str) -> None:
    inputs = make_inputs(sample.types)
    outputs = {"out": sample.build(*inputs)}
    for batch in (1, 3, LARGEST) if uses_batch(sample.types) else (1,):
        values = [
            v.astype(dtype).astype(np.float64) if v.dtype.kind == "f" else v for v in draw(sample, batch)
        ]
        got = run(outputs, inputs, values, dtype)["out"]
        want = reference(outputs, inputs, values, batch)["out"]
        if sample.reference is not None:
            close(want, sample.reference(*values), 1e-12)
        if got.dtype.kind == "f":
            close(got, want, TOLERANCE[dtype])
        else:
            np.testing.assert_array_equal(got, want)


@dataclass(frozen=True)
class Derivatives:
    """A sample's weighted sum with its gradient, and a weighted sum of that with its gradient again."""

    inputs: list[gc.Tensor]
    wrt: list[gc.Tensor]
    loss: gc.Tensor
    grads: list[gc.Tensor]
    penalty: gc.Tensor
    second: list[gc.Tensor]

    def outputs(self) -> dict[str, gc.Tensor]:
        """Both gradients, in one module: compiling it once serves two tests."""
        return {f"{n}{k}": g for n, of in (("g", self.grads), ("h", self.second)) for k, g in enumerate(of)}


def derivatives(sample: Sample) -> Derivatives:
    inputs = make_inputs(sample.types)
    loss = weighted_sum(sample.build(*inputs))
    wrt = [i for i in inputs if i.type.is_float]
    grads = gc.grad(loss, wrt)
    penalty = sum((weighted_sum(g) for g in grads[1:]), weighted_sum(grads[0]))
    return Derivatives(inputs, wrt, loss, grads, penalty, gc.grad(penalty, wrt))


def unmoved(
    loss: gc.Tensor, moving: gc.Tensor, values: dict[gc.Tensor, np.ndarray], batch: int
) -> dict[gc.Tensor, np.ndarray]:
    """Return the values of the loss's nodes that do not depend on the one that moves."""
    moved = {moving}
    order = topological([loss])
    for node in order:
        if not moved.isdisjoint(node.inputs):
            moved.add(node)
    fixed = [node for node in order if node not in moved]
    return dict(zip(fixed, interpret(fixed, values, batch=batch), strict=True))


def central_differences(
    loss: gc.Tensor, inputs: list[gc.Tensor], values: list[np.ndarray], which: int, batch: int
) -> np.ndarray:
    """Return the gradient of the interpreted loss by central differences with Richardson extrapolation.

    What does not depend on the input is computed once: about half of the nodes.
    """
    known = unmoved(loss, inputs[which], dict(zip(inputs, values, strict=True)), batch)

    def at(position: tuple[int, ...], step: float) -> float:
        changed = [v.copy() for v in values]
        changed[which][position] += step
        return float(interpret([loss], known | dict(zip(inputs, changed, strict=True)), batch=batch)[0])

    out = np.zeros_like(values[which])
    for position in np.ndindex(out.shape):
        h = 1e-3
        coarse = (at(position, h) - at(position, -h)) / (2 * h)
        fine = (at(position, h / 2) - at(position, -h / 2)) / h
        out[position] = (4 * fine - coarse) / 3
    return out


@pytest.mark.parametrize("sample", SMOOTH)
def test_gradient(sample: Sample) -> None:
    """Compiled gradients in f64 agree with central differences to 1e-6 of the largest entry."""
    d = derivatives(sample)
    batch = 2 if uses_batch(sample.types) else 1
    values = draw(sample, batch, seed=3)
    got = run(d.outputs(), d.inputs, values, "float64")
    for k, tensor in enumerate(d.wrt):
        want = central_differences(d.loss, d.inputs, values, d.inputs.index(tensor), batch)
        scale = max(1e-3, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(got[f"g{k}"], want, atol=1e-6 * scale, rtol=1e-6)


@pytest.mark.parametrize("sample", SMOOTH)
def test_second_derivative(sample: Sample) -> None:
    """The gradient of a weighted gradient agrees with central differences of the interpreted gradient."""
    d = derivatives(sample)
    batch = 1
    values = draw(sample, batch, seed=4)
    got = run(d.outputs(), d.inputs, values, "float64")
    for k, tensor in enumerate(d.wrt):
        want = central_differences(d.penalty, d.inputs, values, d.inputs.index(tensor), batch)
        scale = max(1e-3, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(got[f"h{k}"], want, atol=1e-5 * scale, rtol=1e-5)
