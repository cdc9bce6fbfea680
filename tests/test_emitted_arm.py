"""The code laid out for NEON, cross-compiled and run by an emulator, gives the values that this machine computes.

One net has every packed kernel with odd shapes; the other is a LeNet with batch norm and a 3x3 convolution that
Winograd's transforms are for. A C program reads parameters and inputs, calls the entry points, and writes all that
they compute.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from assembly import multiply_add_loops
from emitted import Emission, compile_objects, emission
from test_isa import logits

import graphc as gc
from graphc.program.ir import Argument, Program, Slot
from graphc.types import at

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MISSING = [command for command in (CROSS, EMULATOR) if shutil.which(command) is None]
FLAGS = ("-std=gnu11", "-ffp-contract=off", "-fopenmp", "-O3")
BATCH = 5
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed")


def net() -> tuple[dict[str, gc.Tensor], gc.Tensor]:
    """Return the outputs and the loss of both nets."""
    x, y = gc.input("image", ("N", 1, 20, 20)), gc.input("y", ("N",), dtype="int32")
    h = gc.nn.batch_norm(gc.nn.conv2d(x, 8, kernel=5, name="conv1"), name="norm1")
    h = gc.nn.max_pool2d(gc.relu(h), 2)
    h = gc.relu(gc.nn.conv2d(h, 32, 3, padding=1, name="conv2"))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 40, 3, padding=1, name="winograd")), 2)
    classes = gc.nn.linear(gc.flatten(h), 10, name="fc")
    odd = logits()
    loss = gc.losses.cross_entropy(classes, y) + gc.mean(odd * odd)
    return {"classes": classes, "odd": odd}, loss


MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "arm.h"

static void *block(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory) exit(2);
    return memory;
}
static void get(void *to, size_t bytes)
{
    if (fread(to, 1, bytes, stdin) != bytes) exit(3);
}
static void put(const void *from, size_t bytes)
{
    if (fwrite(from, 1, bytes, stdout) != bytes) exit(4);
}
static void check(int status)
{
    if (status) exit(5);
}

int main(int count, char **words)
{
    const int64_t N = @BATCH@;
    arm_memory memory = {0};
@BLOCKS@
    arm_context *context = block(arm_context_bytes());
    check(arm_init(context, arm_context_bytes(), &memory, 7));
    arm_set_threads(context, count > 1 ? atoi(words[1]) : 1);
    get(memory.params, memory.params_bytes);
    get(memory.state, memory.state_bytes);
@BODY@
    return 0;
}
"""


def c_type(a: Argument) -> str:
    return {"float32": "float", "float64": "double", "int32": "int32_t"}[a.dtype]


def main_text(module: Emission) -> str:
    """Return a program that folds, predicts, takes gradients once, then trains two steps."""
    p = module.program
    arguments = {a.name: a for e in p.entries for a in (*e.inputs, *e.outputs)}
    sizes = {name: f"sizeof({c_type(a)}) * (size_t)({a.buffer.size})" for name, a in arguments.items()}
    body = [f"{c_type(a)} *v_{name} = block({sizes[name]});" for name, a in arguments.items()]
    given = {a.name for e in p.entries for a in e.inputs}
    body += [f"get(v_{name}, {sizes[name]});" for name in sorted(given)]

    def call(name: str, more: str = "") -> list[str]:
        entry = next(e for e in p.entries if e.name == name)
        passed = "".join(f", v_{a.name}, {sizes[a.name]}" for a in (*entry.inputs, *entry.outputs))
        batch = "" if name == "fold" else ", N"
        return [
            f"check(arm_{name}(context{batch}{passed}{more}));",
            *(f"put(v_{a.name}, {sizes[a.name]});" for a in entry.outputs),
        ]

    body += call("fold") + call("predict") + call("train_step", ", 0.01, 0")
    body += ["put(memory.grads, memory.grads_bytes);"]
    body += 2 * call("train_step", ", 0.01, 1")
    body += ["put(memory.params, memory.params_bytes);", "put(memory.state, memory.state_bytes);"]
    real = {"float32": "float", "float64": "double"}[p.dtype]
    blocks = ["memory.arena_bytes = ARM_ARENA_BYTES;", "memory.arena = block(memory.arena_bytes);"]
    for name, macro in (
        ("params", "PARAMS"), ("grads", "GRADS"), ("slots", "SLOTS"), ("state", "STATE"), ("folded", "FOLDED")
    ):  # fmt: skip
        blocks += [
            f"memory.{name}_bytes = sizeof({real}) * ARM_{macro};",
            f"memory.{name} = block(memory.{name}_bytes);",
            f"for (size_t k = 0; k < ARM_{macro}; k++) memory.{name}[k] = 0;",
        ]
    text = MAIN.replace("@BATCH@", str(BATCH))
    return text.replace("@BLOCKS@", "\n".join(blocks)).replace("@BODY@", "\n".join(body))


def build(module: Emission, folder: Path) -> tuple[Path, str]:
    """Return a static program, and the assembly that it was made from."""
    (folder / "main.c").write_text(main_text(module))
    paths = [*module.write(folder), folder / "main.c"]
    assert compile_objects(CROSS, paths, [*FLAGS, "-S"]) == []
    texts = [path.with_suffix(".o").rename(path.with_suffix(".s")) for path in paths]
    command = [CROSS, *FLAGS, "-static", *map(str, texts), "-lm", "-o", str(folder / "program")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "program", "\n".join(text.read_text() for text in texts)


def block(slots: tuple[Slot, ...], size: int, values: Mapping[str, np.ndarray], dtype: str) -> bytes:
    """Return a block of memory with the values at their places."""
    found = np.zeros(size, dtype)
    for s in slots:
        found[s.offset : s.offset + math.prod(s.shape)] = values[s.name].ravel()
    return found.tobytes()


class Results:
    """What the program has written, by name."""

    def __init__(self, program: Program, data: bytes):
        self.program = program
        self.values = np.frombuffer(data, program.dtype)
        self.found: dict[str, np.ndarray] = {}

    def _take(self, count: int) -> np.ndarray:
        taken, self.values = self.values[:count], self.values[count:]
        return taken

    def outputs(self, name: str, label: str) -> None:
        """Read the outputs of an entry point."""
        for a in next(e for e in self.program.entries if e.name == name).outputs:
            shape = tuple(at(d, BATCH) for d in a.shape)
            self.found[f"{label} {a.name}"] = self._take(math.prod(shape)).reshape(shape)

    def block(self, label: str, slots: Iterable[Slot], size: int) -> None:
        """Read a block of memory."""
        values = self._take(size)
        for s in slots:
            self.found[f"{label} {s.name}"] = values[s.offset : s.offset + math.prod(s.shape)].reshape(
                s.shape
            )


def read(p: Program, data: bytes) -> dict[str, np.ndarray]:
    """Return everything that ``main_text`` writes."""
    results = Results(p, data)
    results.outputs("predict", "predict")
    results.outputs("train_step", "backward")
    results.block("gradient", (s for s in p.params if s.gradient), p.grads_size)
    results.outputs("train_step", "step 1")
    results.outputs("train_step", "step 2")
    results.block("parameter", p.params, p.params_size)
    results.block("state", p.states, p.states_size)
    assert results.values.size == 0
    return results.found


def expected(host: gc.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same from this machine."""
    images = {name: value for name, value in inputs.items() if name != "y"}
    found = {f"predict {name}": value for name, value in host.predict(**images).items()}
    found["backward loss"] = np.array(float(host.backward(**inputs)))
    found |= {f"gradient {name}": np.array(value) for name, value in host.grads.items()}
    for step in (1, 2):
        found[f"step {step} loss"] = np.array(float(host.train_step(lr=0.01, **inputs)))
    found |= {f"parameter {name}": np.array(value) for name, value in host.params.items()}
    return found | {f"state {name}": np.array(value) for name, value in host.state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arm_gives_the_same_values(dtype: str, tmp_path: Path) -> None:
    """Sums in another order: a few units in the last place, as between the layouts on one machine."""
    outputs, loss = net()
    optimizer = gc.SGD(lr=0.01, momentum=0.9)
    module = emission("arm", outputs, loss, optimizer, batch=BATCH, dtype=dtype, isa="neon")
    host = gc.compile(
        outputs, loss, optimizer, batch=BATCH, dtype=dtype, name="host",
        build=gc.BuildOptions(optimisation=("-O1", "-march=native")),
    )  # fmt: skip
    rng = np.random.default_rng(4)
    inputs = {
        "image": rng.standard_normal((BATCH, 1, 20, 20)).astype(dtype),
        "x": rng.standard_normal((BATCH, 3, 13, 11)).astype(dtype),
        "y": np.arange(BATCH, dtype=np.int32) * 2,
    }
    program, assembly = build(module, tmp_path)
    assert [loop for loop in multiply_add_loops(assembly) if loop.spills] == []
    assert ("Winograd" in module.source) == (dtype == "float32")
    p = module.program
    given = block(p.params, p.params_size, host.params, dtype) + block(
        p.states, p.states_size, host.state, dtype
    )
    given += b"".join(inputs[name].tobytes() for name in sorted(inputs))
    results = [
        subprocess.run([EMULATOR, program, threads], input=given, capture_output=True, check=True).stdout
        for threads in ("1", "2")
    ]
    assert results[0] == results[1], "threads"
    got, want = read(p, results[0]), expected(host, inputs)
    assert got.keys() == want.keys()
    for name, value in want.items():
        bound = 64 * float(np.finfo(dtype).eps) * np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=bound, err_msg=name)
