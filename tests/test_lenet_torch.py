"""LeNet trained by generated C follows PyTorch step by step from the same weights on the same data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

STEPS, BATCH = 50, 16


def lenet(seed: int, dtype: str) -> gc.Module:
    x = gc.input("x", ("N", 1, 32, 32))
    y = gc.input("y", ("N",), dtype="int32")
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 6, kernel=5, name="conv1")), 2)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 16, kernel=5, name="conv2")), 2)
    h = gc.relu(gc.nn.linear(gc.flatten(h), 120, name="fc1"))
    h = gc.relu(gc.nn.linear(h, 84, name="fc2"))
    logits = gc.nn.linear(h, 10, name="fc3")
    return gc.compile(
        {"logits": logits},
        loss=gc.losses.cross_entropy(logits, y),
        optimizer=gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
        batch=BATCH,
        seed=seed,
        dtype=dtype,
        name="lenet",
    )


def peer() -> Any:
    net = nn.Sequential()
    for name, layer in {
        "conv1": nn.Conv2d(1, 6, 5), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2), "flat": nn.Flatten(),
        "fc1": nn.Linear(400, 120), "relu3": nn.ReLU(), "fc2": nn.Linear(120, 84), "relu4": nn.ReLU(),
        "fc3": nn.Linear(84, 10),
    }.items():  # fmt: skip
        net.add_module(name, layer)
    return net


def images(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images of ten noisy patterns, so that the loss falls while it is compared."""
    rng = np.random.default_rng(11)
    patterns = rng.standard_normal((10, 1, 32, 32))
    labels = rng.integers(0, 10, 256).astype(np.int32)
    return (patterns[labels] + 0.3 * rng.standard_normal((256, 1, 32, 32))).astype(dtype), labels


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_fifty_steps(dtype: str, tolerance: float) -> None:
    """Losses agree to 1e-9 in double and 1e-4 in single precision, whose roundings fifty steps magnify."""
    module = lenet(seed=1, dtype=dtype)
    net = peer().to(getattr(torch, dtype))
    assert sorted(module.params) == sorted(name for name, _ in net.named_parameters())
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.tensor(np.array(module.params[name])))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    x, y = images(dtype)
    rng = np.random.default_rng(12)
    losses = []
    for step in range(STEPS):
        # Some batches are partial, as the last of an epoch is.
        chosen = rng.permutation(len(x))[: BATCH if step % 7 else BATCH - 5]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            net(torch.tensor(x[chosen])), torch.tensor(y[chosen], dtype=torch.int64)
        )
        loss.backward()
        optimizer.step()
        got = module.train_step(lr=0.03, x=x[chosen], y=y[chosen])
        losses.append(float(got))
        assert got == pytest.approx(float(loss.detach()), rel=tolerance), f"step {step}"
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), "the net must have learned while it was compared"
    with torch.no_grad():
        for name, value in net.named_parameters():
            want = value.numpy()
            scale = np.abs(want).max()
            np.testing.assert_allclose(
                module.params[name], want, atol=10 * tolerance * scale, rtol=0, err_msg=name
            )
        want = net(torch.tensor(x[:BATCH])).numpy()
    logits = module.predict(x=x[:BATCH])["logits"]
    np.testing.assert_allclose(logits, want, atol=10 * tolerance * np.abs(want).max(), rtol=0)
    np.testing.assert_array_equal(logits.argmax(1), want.argmax(1))
    evaluated = module.evaluate(x=x[:3], y=y[:3])
    wanted = nn.functional.cross_entropy(torch.tensor(want[:3]), torch.tensor(y[:3], dtype=torch.int64))
    # A loss near zero is a difference of logits: it keeps their absolute error.
    assert evaluated == pytest.approx(
        float(wanted), rel=10 * tolerance, abs=10 * tolerance * float(np.abs(want).max())
    )
