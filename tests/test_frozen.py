"""Parameters that are not trained: what depends on them alone is computed once, and training does not pay for it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import graphc as gc

BATCH = 4


def net(fixed: bool, **options: bool) -> gc.Module:
    """Return convolutions with batch norm, fixed or not, below a layer that is trained; a wide one among them."""
    x, y = gc.input("x", ("N", 3, 12, 12)), gc.input("y", ("N",), dtype="int32")
    first = not fixed
    h = gc.nn.conv2d(x, 32, 3, padding=1, bias=False, name="conv1", trainable=first)
    h = gc.relu(gc.nn.batch_norm(h, name="norm1", trainable=first))
    h = gc.nn.conv2d(h, 32, 3, padding=1, name="conv2", trainable=first)  # by Winograd's algorithm
    h = gc.nn.max_pool2d(gc.relu(gc.nn.batch_norm(h, name="norm2")), 2)
    scale = gc.constant(np.linspace(0.5, 1.5, 32, dtype="f").reshape(32, 1, 1))
    h = gc.relu(gc.nn.linear(gc.flatten(h * scale), 256, name="fc1", trainable=first))  # 1.1 MiB
    logits = gc.nn.linear(h, 3, name="fc2")
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile(
        {"logits": logits}, loss, gc.SGD(lr=0.05, momentum=0.9), batch=BATCH, name="net", **options
    )


@pytest.fixture(scope="module")
def modules() -> tuple[gc.Module, gc.Module]:
    """The net with fixed parameters, and with all of them trained."""
    return net(True), net(False)


def batch_of(seed: int) -> dict[str, np.ndarray]:
    """Return a batch."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(BATCH, 3, 12, 12)).astype("f"), "y": rng.integers(0, 3, BATCH).astype("i4")}


def test_the_gradients_are_those_of_the_net_with_everything_trained(
    modules: tuple[gc.Module, gc.Module],
) -> None:
    """The same bits: values are computed at another time, not otherwise. After new weights are set, too."""
    fixed, whole = modules
    for seed in range(3):
        weights = {
            name: np.random.default_rng([seed, k]).normal(size=value.shape).astype("f") * 0.1
            for k, (name, value) in enumerate(whole.params.items())
        }
        for module in modules:
            for name, value in weights.items():
                module.params[name] = value
        given = batch_of(seed)
        assert float(fixed.backward(**given)) == float(whole.backward(**given))
        assert set(fixed.grads) == {"norm2.weight", "norm2.bias", "fc2.weight", "fc2.bias"}
        for name in fixed.grads:
            np.testing.assert_array_equal(fixed.grads[name], whole.grads[name])
        np.testing.assert_array_equal(
            fixed.predict(x=given["x"])["logits"], whole.predict(x=given["x"])["logits"]
        )


def test_training_leaves_them_as_they_are(modules: tuple[gc.Module, gc.Module]) -> None:
    """Steps change what is trained, and running statistics; what was computed ahead stays valid."""
    fixed, whole = modules
    before = {name: np.array(value) for name, value in fixed.params.items()}
    for seed in range(3):
        fixed.train_step(**batch_of(seed))
    changed = {name for name in fixed.params if not np.array_equal(before[name], fixed.params[name])}
    assert changed == {"norm2.weight", "norm2.bias", "fc2.weight", "fc2.bias"}
    whole.load_state_dict(
        {n: a for n, a in fixed.state_dict().items() if n in whole.params or n in whole.state}
    )
    given = batch_of(9)
    np.testing.assert_array_equal(
        fixed.predict(x=given["x"])["logits"], whole.predict(x=given["x"])["logits"]
    )


def test_they_take_no_gradient_no_momentum_and_no_copy_in_the_arena(
    modules: tuple[gc.Module, gc.Module],
) -> None:
    """The sizes of blocks say so; packed weights lie in a block of their own."""
    sizes, all_sizes = (module.manifest["sizes"] for module in modules)
    trained = 2 * 32 + 3 * 256 + 16  # with its padding
    assert sizes["grads"] == sizes["slots"] == trained
    assert all_sizes["grads"] == all_sizes["trainable"] > 300_000
    assert all_sizes["frozen"] == 0 < sizes["frozen"]
    difference = modules[1].plan("train").arena_bytes - modules[0].plan("train").arena_bytes
    # At least what conv2's weights take as transformed for Winograd's algorithm.
    assert difference >= 36 * 32 * 32 * 4


def test_a_training_bundle_has_them_in_its_constant_area(tmp_path: Path) -> None:
    """No parameter that is not trained is there as it was; its check passes with the bits of Python."""
    module = net(True)
    module.train_step(**batch_of(0))
    folder = module.export(tmp_path / "net", train=True)
    header = (folder / "net.h").read_text()
    stated = {n: int(v) for n, v in re.findall(r"#define NET_(\w+) (\d+)", header)}
    trained = 2 * 32 + 3 * 256 + 16
    assert stated["PARAMS"] == stated["TRAINABLE"] == trained
    assert stated["CONSTANT_BYTES"] == -(-stated["FROZEN"] * 4 // 64) * 64 > 1_000_000
    assert "freeze" not in (folder / "net.c").read_text()
    done = subprocess.run(
        ["make", "-s", "check", "CFLAGS=-O2 -march=native -ffp-contract=off -Wall -Wextra -Werror"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same bits") == 2


def test_what_was_stored_can_be_loaded_again(tmp_path: Path) -> None:
    """A C program that trains, stores, loads into another context and goes on gets the losses of one that goes on."""
    module = net(True)
    folder = module.export(tmp_path / "net", train=True, weights="c")
    (folder / "test_main.c").write_text(_STORE)
    sources = [p.name for p in folder.glob("net*.c")]
    flags = [
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    command = ["gcc", *flags, "test_main.c", *sources, "-lm", "-o", "stored"]
    for call in (command, ["./stored"]):
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    kept, loaded = done.stdout.split("\n")[:2]
    assert kept == loaded and len(set(kept.split())) == 3


_STORE = """
#include "net.h"
#include <stdio.h>
#include <string.h>

extern const uint32_t net_weights[];
static _Alignas(64) unsigned char context[2][NET_CONTEXT_BYTES], arena[NET_ARENA_BYTES], file[NET_WEIGHTS_BYTES];
static _Alignas(64) float params[2][NET_PARAMS], grads[NET_GRADS], slots[2][NET_SLOTS], state[2][NET_STATE];

static net_context *make(int k, const void *weights)
{
    net_memory memory = {0};
    memory.params = params[k];
    memory.params_bytes = sizeof params[k];
    memory.grads = grads;
    memory.grads_bytes = sizeof grads;
    memory.slots = slots[k];
    memory.slots_bytes = sizeof slots[k];
    memory.state = state[k];
    memory.state_bytes = sizeof state[k];
    memory.arena = arena;
    memory.arena_bytes = sizeof arena;
    net_context *const made = (net_context *)context[k];
    if (net_init(made, sizeof context[k], &memory, 0) != 0) return NULL;
    return net_load(made, weights, NET_WEIGHTS_BYTES) == 0 ? made : NULL;
}

static int train(net_context *net, int steps, int shown)
{
    static float x[4 * 3 * 12 * 12];
    const int32_t y[4] = {0, 1, 2, 0};
    for (int k = 0; k < 4 * 3 * 12 * 12; k++) x[k] = (float)(k * 7 % 11) / 11 - 0.5f;
    for (int k = 0; k < steps; k++) {
        float loss;
        if (net_train_step(net, 4, x, sizeof x, y, sizeof y, &loss, sizeof loss, 0.05, 1) != 0) return 1;
        if (shown) printf("%a ", (double)loss);
    }
    if (shown) printf("\\n");
    return 0;
}

int main(void)
{
    net_context *const first = make(0, net_weights);
    if (first == NULL || train(first, 2, 0) || net_store(first, file, sizeof file)) return 1;
    net_context *const second = make(1, file);
    return second == NULL || train(first, 3, 1) || train(second, 3, 1);
}
"""
