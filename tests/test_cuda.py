"""CUDA source, compiled for the emulated device: every registered operation, training, errors."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import LARGEST, draw, reference, uses_batch, weighted_sum

import graphc as gc
from graphc.cli.tasks import digits
from graphc.ops.leaves import Input
from graphc.ops.registry import REGISTRY, Sample

SAMPLES = [(f"{name}-{k}", sample) for name, of in REGISTRY.items() for k, sample in enumerate(of())]
TOGETHER = 24  # samples in a module: a compiler starts once for all of them
GROUPS = [SAMPLES[k : k + TOGETHER] for k in range(0, len(SAMPLES), TOGETHER)]
FLAGS = gc.BuildOptions(optimisation=("-O1",))
# float32 keeps 24 bits; sums of up to a few hundred terms of size one lose a few of them.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


class Case:
    """A sample among others in one module: its inputs, its value, and its gradients where it has them."""

    def __init__(self, number: int, name: str, sample: Sample):
        """Build the graph."""
        self.name, self.sample = name, sample
        self.inputs = [
            Input(f"s{number}_{k}", t.dtype, t.shape)(name=f"s{number}_{k}")
            for k, t in enumerate(sample.types)
        ]
        value = sample.build(*self.inputs)
        self.outputs = {f"s{number}_value": value}
        wrt = [i for i in self.inputs if i.type.is_float]
        if sample.smooth and value.type.is_float and wrt:
            grads = gc.grad(weighted_sum(value), wrt)
            second = gc.grad(sum((weighted_sum(g) for g in grads[1:]), weighted_sum(grads[0])), wrt)
            self.outputs |= {f"s{number}_g{k}": g for k, g in enumerate(grads)}
            self.outputs |= {f"s{number}_h{k}": h for k, h in enumerate(second)}

    def values(self, batch: int, dtype: str) -> dict[str, np.ndarray]:
        """Return values for the inputs, which the dtype can hold."""
        drawn = draw(self.sample, batch, seed=3)
        drawn = [v.astype(dtype).astype(np.float64) if v.dtype.kind == "f" else v for v in drawn]
        return {i.op.name: v for i, v in zip(self.inputs, drawn, strict=True)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_every_operation_has_its_value_and_its_gradients(group: int, dtype: str) -> None:
    """Values, gradients and second derivatives are those of the float64 reference, at three batches."""
    cases = [Case(k, name, sample) for k, (name, sample) in enumerate(GROUPS[group])]
    outputs = {name: node for case in cases for name, node in case.outputs.items()}
    module = gc.compile(
        outputs, batch=LARGEST, dtype=dtype, target="cuda-emulated", name=f"group{group}", build=FLAGS
    )
    for batch in (1, 3, LARGEST):
        drawn = [case.values(batch, dtype) for case in cases]
        given = {
            n: v.astype(module.input_types[n][0]) for values in drawn for n, v in values.items()
            if n in module.input_types
        }  # fmt: skip
        got = module.predict(**given)
        for case, values in zip(cases, drawn, strict=True):
            if batch > 1 and not uses_batch(case.sample.types):
                continue
            want = reference(case.outputs, case.inputs, list(values.values()), batch)
            for name in case.outputs:
                what = f"{case.name} {name} batch {batch}"
                if got[name].dtype.kind != "f":
                    np.testing.assert_array_equal(got[name], want[name], err_msg=what)
                    continue
                scale = max(1.0, float(np.abs(want[name][np.isfinite(want[name])]).max(initial=0.0)))
                np.testing.assert_allclose(
                    got[name].astype(np.float64), want[name], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale,
                    err_msg=what,
                )  # fmt: skip


def lenet(target: str, batch: int, **options: object) -> gc.Module:
    """Return LeNet with momentum, weight decay and a metric."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)}, batch=batch, name="lenet", target=target,
        **options,
    )  # type: ignore[arg-type]  # fmt: skip


def test_lenet_learns_the_digits_as_in_c() -> None:
    """Losses and accuracies of 20 steps on the digits, the last one a smaller batch; then its weights and logits."""
    task, order = digits(), np.random.default_rng(0).permutation(7000)
    device, host = lenet("cuda-emulated", 16, build=FLAGS), lenet("c", 16)
    batches = [*task.train.batches(16, order[: 16 * 19]), next(task.train.batches(5, order[-5:]))]
    losses = []
    for number, batch in enumerate(batches):
        got, want = device.train_step(**batch, lr=0.02), host.train_step(**batch, lr=0.02)
        losses.append(float(want))
        # Sums in another order, and what has been learned from them: the losses of 20 steps stay together.
        assert got == pytest.approx(float(want), rel=1e-4), number
        assert got.metrics == want.metrics
    assert len(losses) == 20 and losses[-2] < 0.8 * losses[0]
    for name in host.params:
        np.testing.assert_allclose(device.params[name], host.params[name], rtol=1e-3, atol=1e-5)
    images = batches[0]["x"]
    np.testing.assert_allclose(
        device.predict(x=images)["logits"], host.predict(x=images)["logits"], rtol=1e-3, atol=1e-4
    )
    assert device.step == 20


def test_a_step_that_is_not_committed_changes_nothing_but_gradients() -> None:
    """``backward`` and a step with another learning rate replay other launches than the step before."""
    device, host = lenet("cuda-emulated", 4, build=FLAGS), lenet("c", 4)
    rng = np.random.default_rng(1)
    given = {"x": rng.standard_normal((4, 1, 32, 32)).astype("f"), "y": rng.integers(0, 10, 4).astype("i4")}
    for module in (device, host):
        module.train_step(**given)
    before = {name: np.array(value) for name, value in device.params.items()}
    assert float(device.backward(**given)) == pytest.approx(float(host.backward(**given)), rel=1e-5)
    for name, value in before.items():
        np.testing.assert_array_equal(device.params[name], value)
        np.testing.assert_allclose(device.grads[name], host.grads[name], rtol=1e-3, atol=1e-6)
    for lr in (0.5, 0.0):
        for module in (device, host):
            module.train_step(**given, lr=lr)
        for name in host.params:
            np.testing.assert_allclose(device.params[name], host.params[name], rtol=1e-3, atol=1e-5)
