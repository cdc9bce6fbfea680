"""Exported bundles without an operating system: LeNet on a Cortex-M4, in an emulator that has but its memory.

The linker refuses what does not fit 256 KiB of flash and 64 KiB of RAM; the stack lies below all data at the start of
the RAM, so that one that is too deep is a fault.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc.cli.tasks import Task, digits
from graphc.errors import RangeError
from graphc_runtime.data import Array

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-system-arm") is None,
    reason="needs arm-none-eabi-gcc and qemu-system-arm",
)
# float32 sums in the same order, with or without a rounding between product and sum, over layers of up to 400 terms.
TOLERANCE = 1e-5
_STEPS = 12


@pytest.fixture(scope="module")
def task() -> Task:
    """Return the embedded digits."""
    return digits()


def lenet(*, fixed: bool, batch: int, **options: bool) -> gc.Module:
    """Return LeNet with cross-entropy and plain gradient descent, all but its last two layers fixed or none."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    trained = not fixed
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 6, 5, name="conv1", trainable=trained)), 2)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 16, 5, name="conv2", trainable=trained)), 2)
    h = gc.relu(gc.nn.linear(gc.flatten(h), 120, name="fc1", trainable=trained))
    logits = gc.nn.linear(gc.relu(gc.nn.linear(h, 84, name="fc2")), 10, name="fc3")
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile({"logits": logits}, loss, gc.SGD(lr=0.05), batch=batch, name="lenet", **options)


@pytest.fixture(scope="module")
def weights(task: Task) -> dict[str, np.ndarray]:
    """Return the weights after 200 steps on the digits, from which more can be learned."""
    module = lenet(fixed=False, batch=64)
    order = np.random.default_rng(0).permutation(len(task.train.arrays["y"]))
    for _ in range(2):
        for batch in task.train.batches(64, order[: 64 * 100]):
            module.train_step(**batch, lr=0.1)
    return {name: np.array(value) for name, value in module.params.items()}


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def single(task: Task, count: int) -> list[dict[str, Array]]:
    """Return training images one by one; the arrays of a data set's batches are its own, and used again."""
    return [{k: v.copy() for k, v in batch.items()} for batch in task.train.batches(1, np.arange(count))]


def firmware(folder: Path, body: str, images: np.ndarray, labels: np.ndarray, *sizes: str) -> list[float]:
    """Link a program with images in flash to the bundle's library, run it, and return the numbers that it prints."""
    images.astype("f").tofile(folder / "images.bin")
    labels.astype("i4").tofile(folder / "labels.bin")
    source = (folder / "check.c").read_text().split("static int complain")[0]
    source += 'IN_FLASH(images, float, "images.bin");\nIN_FLASH(labels, int32_t, "labels.bin");\n'
    source += "static void print_bits(float value)\n{\n    uint32_t bits;\n    memcpy(&bits, &value, sizeof bits);\n"
    source += '    semihosting_print_number(bits);\n    semihosting_print("\\n");\n}\n' + body
    (folder / "check.c").write_text(source)
    numbers = run(folder, "make", "-s", *sizes, "check").split()
    return [float(v) for v in np.array(numbers, np.uint32).view(np.float32)]


_BEGIN = """
int main(void)
{
    lenet_context *const context = (lenet_context *)context_memory;
    lenet_memory memory = {0};
    memory.arena = arena;
    memory.arena_bytes = sizeof arena;
    %s
    if (lenet_init(context, sizeof context_memory, &memory, 0) != 0) return 1;
    if (lenet_load(context, lenet_weights, LENET_WEIGHTS_BYTES) != 0) return 1;
"""


def test_lenet_predicts_in_256_kib_of_flash_and_64_kib_of_ram(
    task: Task, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Weights stay in flash; logits and chosen digits are the host's; with less memory it does not link."""
    module = lenet(fixed=False, batch=4)
    module.load_state_dict(weights)
    folder = module.export(tmp_path / "lenet", target="cortex-m4", batch=1)
    assert run(folder, "make", "-s", "check").startswith("ok   predict logits: largest difference")
    for less in ("FLASH=240K", "RAM=8K"):
        (folder / "check.elf").unlink(missing_ok=True)
        done = subprocess.run(["make", "-s", less, "check.elf"], cwd=folder, capture_output=True, text=True)
        assert done.returncode != 0 and "overflowed" in done.stderr
    chosen = next(task.test.batches(8, np.arange(8)))
    images, labels = chosen["x"], chosen["y"]
    body = _BEGIN % "" + "    float out[10];\n    for (int k = 0; k < 8; k++) {\n"
    body += (
        "        if (lenet_predict(context, 1, images + 1024 * k, 4096, out, sizeof out) != 0) return 1;\n"
    )
    body += "        for (int j = 0; j < 10; j++) print_bits(out[j]);\n    }\n    return 0;\n}\n"
    got = np.array(firmware(folder, body, images, labels, "FLASH=288K")).reshape(8, 10)
    want = np.concatenate([module.predict(x=images[k : k + 1])["logits"] for k in range(8)])
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
    assert (got.argmax(1) == labels).sum() >= 6  # it has learned something, so that this compares a real net


def test_the_last_two_layers_are_fine_tuned_in_64_kib_of_ram(
    task: Task, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The fixed layers lie in flash, packed; losses are the host's, and fall."""
    module = lenet(fixed=True, batch=1, keep_gradients=False)
    module.load_state_dict(weights)
    folder = module.export(tmp_path / "lenet", train=True, target="cortex-m4")
    checked = run(folder, "make", "-s", "FLASH=320K", "check")
    assert checked.count("ok   train_step loss") == 3 and "FAIL" not in checked
    batches = single(task, _STEPS) * 2
    images, labels = (np.concatenate([b[key] for b in batches[:_STEPS]]) for key in "xy")
    blocks = "memory.params = params;\n    memory.params_bytes = sizeof params;\n"
    blocks += "    memory.grads = grads;\n    memory.grads_bytes = sizeof grads;"
    body = _BEGIN % blocks + f"    for (int k = 0; k < {2 * _STEPS}; k++) {{\n        float loss;\n"
    body += f"        const int at = k % {_STEPS};\n"
    body += "        const float *const x = images + 1024 * at;\n"
    body += "        if (lenet_train_step(context, 1, x, 4096, labels + at, 4, &loss, 4, 0.05, 1) != 0) return 1;\n"
    body += "        print_bits(loss);\n    }\n    return 0;\n}\n"
    got = firmware(folder, body, images, labels, "FLASH=320K")
    want = [float(module.train_step(**batch, lr=0.05)) for batch in batches]
    # Every step starts from the last one's weights: differences add up.
    np.testing.assert_allclose(got, want, rtol=100 * TOLERANCE, atol=100 * TOLERANCE)
    assert sum(got[_STEPS:]) < 0.8 * sum(got[:_STEPS])


def test_the_stack_of_a_call_is_below_what_the_header_says(tmp_path: Path) -> None:
    """The compiler's own count of the frames, inference and training."""
    module = lenet(fixed=True, batch=1, keep_gradients=False)
    for train in (False, True):
        folder = module.export(tmp_path / f"train-{train}", train=train, target="cortex-m4")
        measured = re.fullmatch(r"at most (\d+) bytes of stack\n", run(folder, "make", "-s", "stack"))
        stated = re.search(r"LENET_STACK_BYTES (\d+)", (folder / "lenet.h").read_text())
        assert measured is not None and stated is not None
        assert 500 < int(measured[1]) <= int(stated[1]) <= 4096


def test_there_are_no_files_to_read_weights_from(tmp_path: Path) -> None:
    """Weights as a file are refused, with what is possible."""
    with pytest.raises(RangeError, match=r"cortex-m4.*no files; weights must be 'object' or 'c'"):
        lenet(fixed=False, batch=1).export(tmp_path / "out", target="cortex-m4", weights="file")
    assert not (tmp_path / "out").exists()
