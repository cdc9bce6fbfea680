"""Exported bundles: built and run without Python, with the bits that Python gives, and refusing what is damaged."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.cli.main import main
from graphc.errors import GraphcError
from graphc.export import TARGETS
from graphc_runtime.errors import CheckpointError
from graphc_runtime.weights import unpack_weights

BATCH = 4
STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
# Without /usr/local or a virtual environment: neither Python nor graphc can take part.
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def lenet(name: str = "lenet", **options: Any) -> gc.Module:
    """Return the LeNet, ready to train, with a metric."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    loss, sgd = gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9)
    metrics = {"accuracy": gc.metrics.accuracy(logits, y)}
    return gc.compile(
        {"logits": logits}, loss, sgd, metrics=metrics, batch=BATCH, name=name, seed=3, **options
    )


def two_inputs() -> gc.Module:
    """Return a net with two inputs, two outputs, a shared layer, a constant, batch norm, dropout; it can train."""
    a, b = gc.input("a", ("N", 2, 8, 8)), gc.input("b", ("N", 2, 8, 8))
    y = gc.input("y", ("N",), dtype="int32")
    weight = gc.parameter("shared.weight", (6, 2, 3, 3), gc.initialisers.HeUniform())
    left, right = (gc.nn.conv2d(h, 6, 3, weight=weight, padding=1, bias=False) for h in (a, b))
    scale = gc.constant(np.linspace(0.5, 1.5, 6, dtype="f").reshape(6, 1, 1))
    h = gc.nn.dropout(gc.relu(gc.nn.batch_norm(left * scale + right, name="norm")), 0.25)
    features = gc.mean(h, (2, 3))
    logits = gc.nn.linear(features, 3, name="fc")
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile(
        {"logits": logits, "features": features}, loss, gc.Adam(lr=0.01), batch=BATCH, name="twin", seed=4
    )


def resnet() -> gc.Module:
    """Return a small ResNet, whose kernels are in files of their own."""
    x, y = gc.input("x", ("N", 3, 16, 16)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.resnet_cifar(x)
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile({"logits": logits}, loss, gc.SGD(lr=0.05, momentum=0.9), batch=BATCH, name="resnet")


MODULES = {"lenet": lenet, "twin": two_inputs, "resnet": resnet}


@pytest.fixture(scope="module")
def modules() -> dict[str, gc.Module]:
    """The modules, compiled once; each after a step, so that momentum and statistics are not zero."""
    made = {name: make() for name, make in MODULES.items()}
    for module in made.values():
        module.train_step(**batch_for(module))
    return made


def batch_for(module: gc.Module) -> dict[str, np.ndarray]:
    """Return a batch for the module's inputs."""
    rng = np.random.default_rng(7)
    found = {}
    for name, (dtype, shape) in module.input_types.items():
        extents = [BATCH if extent is None else extent for extent in shape]
        found[name] = (
            rng.integers(0, 3, extents).astype(dtype) if dtype == "int32" else rng.normal(size=extents)
        )
    return {name: value.astype("f") if value.dtype == np.float64 else value for name, value in found.items()}


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a command in a folder, without Python on the path; return what it prints."""
    done = subprocess.run(
        command, cwd=folder, env={**BARE, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources(folder: Path) -> list[str]:
    """Return the C files of a bundle that make up the library."""
    return sorted(p.name for p in folder.glob("*.c") if p.name not in ("example.c", "check.c", "test_main.c"))


def program(folder: Path, main_c: str, *flags: str, compiler: str = "gcc") -> Path:
    """Build a program from the bundle and a main of the test's."""
    (folder / "test_main.c").write_text(main_c)
    run(
        folder,
        compiler,
        *STRICT,
        *(flags or ("-O1",)),
        "test_main.c",
        *sources(folder),
        "-lm",
        "-o",
        "tested",
    )
    return folder / "tested"


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("net", MODULES)
def test_a_bundle_gives_the_bits_of_python(
    net: str, train: bool, modules: dict[str, gc.Module], tmp_path: Path
) -> None:
    """make check compares with what was recorded; the records are those of the module that was exported."""
    module = modules[net]
    folder = module.export(tmp_path / "out", train=train)
    printed = run(folder, "make", "-s", "check")
    lines = printed.splitlines()
    assert len(lines) == (
        len(module.predict(**predicted(module, folder))) + (1 + (net == "lenet") if train else 0)
    )
    assert all(line.startswith("ok") and line.endswith("the same bits") for line in lines), printed
    for name, value in module.predict(**predicted(module, folder)).items():
        recorded = np.fromfile(folder / f"check/predict.out.{name}.bin", value.dtype)
        # Folded weights are those of the module; its predict may share kernels with evaluate, in the same order.
        np.testing.assert_array_equal(recorded, value.ravel())


def predicted(module: gc.Module, folder: Path) -> dict[str, np.ndarray]:
    """Return the recorded inputs of inference."""
    found = {}
    for name, (dtype, shape) in module.input_types.items():
        file = folder / f"check/predict.in.{name}.bin"
        if file.exists():
            extents = [BATCH if extent is None else extent for extent in shape]
            found[name] = np.fromfile(file, dtype).reshape(extents)
    return found


@pytest.mark.parametrize("weights", ["c", "object"])
def test_weights_can_be_linked_in(weights: str, modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """The program needs no file then."""
    folder = modules["lenet"].export(tmp_path / "out", weights=weights, single_file=True)
    run(folder, "make", "-s", "all", "check")
    if weights == "c":
        (folder / "lenet.weights").unlink()
    assert run(folder, "./example").startswith("logits: ")


def test_one_command_builds_the_example(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """With a C compiler alone. Its numbers are those of Python, printed with six digits."""
    folder = modules["lenet"].export(tmp_path / "out")
    flags = ("-O3", "-march=native", "-ffp-contract=off")
    run(folder, "cc", *flags, "example.c", "lenet.c", "-lm", "-o", "example")
    shown = [float(v) for v in run(folder, "./example").split()[1:-1]]
    want = modules["lenet"].predict(**predicted(modules["lenet"], folder))["logits"].ravel()[: len(shown)]
    np.testing.assert_allclose(shown, want, rtol=1e-5)


def test_without_stdio(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """Messages are bare formats then, and the library needs no function of stdio; its stack is bounded."""
    folder = modules["lenet"].export(tmp_path / "out")
    main_c = """\
#include "lenet.h"
#include <stdio.h>
static _Alignas(64) unsigned char context_memory[LENET_CONTEXT_BYTES];
int main(void)
{
    lenet_memory memory = {0};
    lenet_context *const context = (lenet_context *)context_memory;
    lenet_init(context, sizeof context_memory, &memory, 0);
    const int error = lenet_predict(context, 4, NULL, 0, NULL, 0);
    printf("%d %s", error, lenet_message(context));
    return 0;
}
"""
    program(folder, main_c, "-O1", "-DGC_NO_STDIO")
    assert run(folder, "./tested") == "4 memory block '%s' needs %zu bytes, got %zu"
    run(folder, "gcc", "-O2", "-DGC_NO_STDIO", "-fno-math-errno", "-c", "lenet.c")
    # Neither stdio nor the library of mathematics.
    needed = set(re.findall(r" U (\w+)", run(folder, "nm", "-u", "lenet.o")))
    assert needed <= {"memcpy", "memset", "memcmp", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    stack = re.fullmatch(r"at most (\d+) bytes of stack\n", run(folder, "make", "-s", "stack"))
    assert stack is not None
    # A tile of sums, and room for the rows of an image that are pooled; nothing grows with the batch.
    assert 100 < int(stack[1]) < 64 * 1024
    assert not list(folder.glob("*.su"))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("train", [False, True])
def test_everything_compiles_without_warnings(
    compiler: str, train: bool, modules: dict[str, gc.Module], tmp_path: Path
) -> None:
    """Library, example and check; the library needs nothing but the C library."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for net in MODULES:
        folder = modules[net].export(tmp_path / net, train=train)
        for file in (*sources(folder), "example.c", "check.c"):
            run(folder, compiler, *STRICT, "-O1", "-c", file)
        objects = [Path(f).with_suffix(".o").name for f in sources(folder)]
        needed = set(re.findall(r" U (\w+)", run(folder, "nm", "-u", *objects)))
        inside = {name for name in needed if name.startswith(modules[net].name)}
        known = {
            "memset",
            "memcpy",
            "memcmp",
            "snprintf",
            "__stack_chk_fail",
            "_GLOBAL_OFFSET_TABLE_",
            "memmove",
        }
        known |= {
            f"{f}{s}"
            for f in ("exp", "log", "sqrt", "pow", "tanh", "erf", "expm1", "log1p")
            for s in ("", "f")
        }
        assert needed - inside <= known, needed - inside - known


def test_a_cpp_program_uses_the_wrapper(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """It predicts what Python does, and an error is an exception with the message."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    for train in (False, True):
        folder = modules["twin"].export(tmp_path / str(train), train=train)
        (folder / "use.cpp").write_text(CPP)
        run(folder, "make", "-s", "OPENMP=")
        run(
            folder,
            "g++",
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "use.cpp",
            "libtwin.a",
            "-lm",
            "-o",
            "use",
        )
        shown, message = run(folder, "./use").splitlines()
        want = modules["twin"].predict(**predicted(modules["twin"], folder))["logits"].ravel()
        np.testing.assert_allclose([float(v) for v in shown.split()], want, rtol=1e-6)
        assert message == "batch 5 is not in 1..4"


CPP = """\
#include "twin.hpp"
#include <cstdio>
#include <fstream>
#include <vector>

template <class T> static std::vector<T> read(const char *path)
{
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    std::vector<T> values(bytes.size() / sizeof(T));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char *>(values.data()));
    return values;
}

alignas(64) static unsigned char weights[TWIN_WEIGHTS_BYTES];

int main()
{
    std::ifstream("twin.weights", std::ios::binary).read(reinterpret_cast<char *>(weights), sizeof weights);
    twin_net::model model(weights, sizeof weights);
    const auto a = read<float>("check/predict.in.a.bin"), b = read<float>("check/predict.in.b.bin");
    float logits[12], features[24];
    model.predict(4, a.data(), b.data(), logits, features);
    for (float value : logits) std::printf("%.9g ", value);
    try {
        model.predict(5, a.data(), b.data(), logits, features);
    } catch (const std::runtime_error &error) {
        std::printf("\\n%s\\n", error.what());
    }
}
"""


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("g++", "g++ -std=c++17 -Wall -Wextra -Werror -I. predict.cpp liblenet.a -lm -o predict"),
        ("rustc", "rustc --edition 2021 -D warnings -O predict.rs -L . -o predict"),
    ],
)
def test_the_examples_of_other_languages(
    tool: str, command: str, modules: dict[str, gc.Module], tmp_path: Path
) -> None:
    """examples/deploy: what they print are the recorded logits."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    folder = modules["lenet"].export(tmp_path / "out", weights="object")
    run(folder, "make", "-s", "OPENMP=")
    for file in (Path(__file__).parents[1] / "examples" / "deploy").glob("predict.*"):
        shutil.copy(file, folder)
    rust = {"RUSTUP_HOME": os.environ.get("RUSTUP_HOME", ""), "HOME": os.environ.get("HOME", "")}
    run(
        folder,
        path,
        *command.split()[1:],
        **({k: v for k, v in rust.items() if v} if tool == "rustc" else {}),
    )
    shown = [float(line) for line in run(folder, "./predict", ".").splitlines()]
    want = np.fromfile(folder / "check/predict.out.logits.bin", "f")
    np.testing.assert_allclose(shown, want, rtol=1e-6)


# Loads the weights with one byte changed at a time, cut short, and exchanged; prints how many were refused.
FLIPS = """\
#include "lenet.h"
#include <stdio.h>
#include <string.h>
static _Alignas(64) unsigned char context_memory[LENET_CONTEXT_BYTES], file[LENET_WEIGHTS_BYTES];
static _Alignas(64) unsigned char before[LENET_CONTEXT_BYTES];
int main(void)
{
    FILE *const f = fopen("lenet.weights", "rb");
    if (fread(file, 1, sizeof file, f) != sizeof file) return 1;
    fclose(f);
    lenet_memory memory = {0};
    lenet_context *const context = (lenet_context *)context_memory;
    lenet_init(context, sizeof context_memory, &memory, 0);
    memcpy(before, context_memory, sizeof before);
    int refused = 0;
    uint64_t random = 88172645463325252u;
    for (int k = 0; k < 1000; k++) {
        random ^= random << 13; random ^= random >> 7; random ^= random << 17;
        const size_t place = k < 128 ? (size_t)k : random % sizeof file;
        const unsigned char change = (unsigned char)(1 + random / sizeof file % 255);
        file[place] ^= change;
        refused += lenet_load(context, file, sizeof file) == LENET_BAD_WEIGHTS;
        file[place] ^= change;
    }
    printf("%d\\n", refused);
    printf("%d %s\\n", lenet_load(context, file, sizeof file - 64), lenet_message(context));
    unsigned char word[4];
    memcpy(word, file + 256, 4); memcpy(file + 256, file + 1024, 4); memcpy(file + 1024, word, 4);
    printf("%d %s\\n", lenet_load(context, file, sizeof file), lenet_message(context));
    memcpy(word, file + 256, 4); memcpy(file + 256, file + 1024, 4); memcpy(file + 1024, word, 4);
    printf("%d\\n", memcmp(before, context_memory, sizeof memory));
    printf("%d\\n", lenet_load(context, file, sizeof file));
    return 0;
}
"""


def test_damaged_weights_are_refused(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """From C and from Python: any of 1,000 bytes changed, the end missing, two words exchanged."""
    folder = modules["lenet"].export(tmp_path / "out")
    program(folder, FLIPS, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    flipped, short, exchanged, untouched, whole = run(folder, "./tested").splitlines()
    assert flipped == "1000"
    assert short == "6 weights file: has another size than these weights have"
    assert exchanged == "6 weights file: is damaged: the checksum is wrong"
    assert (untouched, whole) == ("0", "0")
    data = (folder / "lenet.weights").read_bytes()
    graph = re.search(r'LENET_GRAPH "(\w+)"', (folder / "lenet.h").read_text())
    assert graph is not None
    assert unpack_weights(data, graph[1]).blocks["folded"].nbytes == len(data) - 128
    rng = np.random.default_rng(0)
    for place in (*range(128), *rng.integers(0, len(data), 100)):
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        with pytest.raises(CheckpointError, match="weights file: "):
            unpack_weights(bytes(changed), graph[1])
    with pytest.raises(CheckpointError, match="there are"):
        unpack_weights(data[:-64], graph[1])


FUZZ = """\
#include "line.h"
#include <stdlib.h>
#include <string.h>
static _Alignas(64) unsigned char context_memory[LINE_CONTEXT_BYTES], file[4096], arena[64];
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > sizeof file) return 0;
    memcpy(file, data, size);
    line_memory memory = {.arena = arena, .arena_bytes = sizeof arena};
    line_context *const context = (line_context *)context_memory;
    line_init(context, sizeof context_memory, &memory, 0);
    const float x[4] = {1, 2, 3, 4};
    float out[2];
    const int error = line_load(context, file, size);
    if (strlen(line_message(context)) >= 256 || (error && line_message(context)[0] == 0)) abort();
    if (!error && line_predict(context, 1, x, sizeof x, out, sizeof out) != 0) abort();
    return 0;
}
"""


@pytest.mark.slow
def test_a_million_files_of_weights_crash_nothing(tmp_path: Path) -> None:
    """libFuzzer begins with a good file; whatever it makes of it is taken or refused with a message."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    x = gc.input("x", ("N", 4))
    folder = gc.compile(gc.nn.linear(x, 2), name="line").export(tmp_path / "out", target="x86-64")
    (folder / "fuzz.c").write_text(FUZZ)
    flags = ("-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    done = subprocess.run(
        ["clang", *flags, "fuzz.c", "line.c", "-lm", "-o", "fuzz"],
        cwd=folder, env=BARE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode != 0 and "fuzzer" in done.stderr:
        pytest.skip("clang has no libFuzzer here")
    assert done.returncode == 0, done.stderr
    (folder / "corpus").mkdir()
    shutil.copy(folder / "line.weights", folder / "corpus")
    run(folder, "./fuzz", "-runs=1000000", "-seed=1", "-max_len=512", "corpus")


def test_weights_of_another_net_are_refused(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """The header's digest is that of the graph."""
    one = modules["lenet"].export(tmp_path / "one")
    other = lenet(winograd=False, isa="sse2").export(tmp_path / "other")
    shutil.copy(other / "lenet.weights", one)
    run(one, "make", "-s")
    done = subprocess.run(["./example"], cwd=one, env=BARE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        "belongs to another graph" in done.stderr or "more than" in done.stderr or "less than" in done.stderr
    )


# Trains for two steps, writes the weights again, and tells whether an arena with a byte less is refused.
TRAINS = """\
#include "lenet.h"
#include <stdio.h>
static _Alignas(64) unsigned char context_memory[LENET_CONTEXT_BYTES], file[LENET_WEIGHTS_BYTES];
static _Alignas(64) unsigned char arena[LENET_ARENA_BYTES];
static _Alignas(64) float params[LENET_PARAMS], grads[LENET_GRADS], slots[LENET_SLOTS], folded[LENET_FOLDED];
static float x[4 * 1024], loss[1], accuracy[1];
static int32_t y[4];
#define STEP lenet_train_step( \\
    context, 4, x, sizeof x, y, sizeof y, loss, sizeof loss, accuracy, sizeof accuracy, 0.1, 1)
int main(void)
{
    FILE *f = fopen("lenet.weights", "rb");
    if (fread(file, 1, sizeof file, f) != sizeof file) return 1;
    fclose(f);
    f = fopen("check/train_step.in.x.bin", "rb");
    if (fread(x, 1, sizeof x, f) != sizeof x) return 1;
    fclose(f);
    f = fopen("check/train_step.in.y.bin", "rb");
    if (fread(y, 1, sizeof y, f) != sizeof y) return 1;
    fclose(f);
    lenet_memory memory = {
        .params = params, .params_bytes = sizeof params, .grads = grads, .grads_bytes = sizeof grads, .slots = slots,
        .slots_bytes = sizeof slots, .folded = folded, .folded_bytes = sizeof folded, .arena = arena,
        .arena_bytes = lenet_arena_train_step_bytes() - 1};
    lenet_context *const context = (lenet_context *)context_memory;
    lenet_init(context, sizeof context_memory, &memory, 0);
    int error = lenet_load(context, file, sizeof file);
    printf("%d ", error);
    error = STEP;
    printf("%d %s\\n", error, lenet_message(context));
    memory.arena_bytes++;
    lenet_init(context, sizeof context_memory, &memory, 0);
    lenet_load(context, file, sizeof file);
    for (int step = 0; step < 2; step++)
        STEP;
    printf("%d\\n", lenet_store(context, file, sizeof file));
    f = fopen("trained.weights", "wb");
    fwrite(file, 1, sizeof file, f);
    fclose(f);
    printf("%zu %zu %zu %zu %zu\\n", lenet_weights_bytes(), lenet_constant_bytes(), lenet_mutable_bytes(),
        lenet_scratch_bytes(), lenet_arena_predict_bytes());
    printf("%zu %zu %zu %zu %zu\\n", (size_t)LENET_WEIGHTS_BYTES, (size_t)LENET_CONSTANT_BYTES,
        (size_t)LENET_MUTABLE_BYTES, (size_t)LENET_SCRATCH_BYTES, (size_t)LENET_ARENA_PREDICT_BYTES);
    return 0;
}
"""


@pytest.mark.parametrize("flags", ["plain", "sanitized"])
def test_training_goes_on_in_c(flags: str, modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """Two steps in C leave the weights and the momentum that two steps in Python leave, bit for bit."""
    module = lenet("lenet")
    module.load_state_dict(modules["lenet"].state_dict())
    folder = module.export(tmp_path / "out", train=True)
    plain = ("-O3", "-march=native", "-ffp-contract=off")
    program(folder, TRAINS, *(plain if flags == "plain" else ("-O1", "-fsanitize=address,undefined")))
    small, stored, functions, macros = run(folder, "./tested").splitlines()
    assert re.fullmatch(r"0 4 memory block 'arena' needs (\d+) bytes, got \d+", small), small
    assert stored == "0"
    assert functions == macros
    assert int(functions.split()[3]) == module.plan("train").arena_bytes
    inputs = {
        "x": np.fromfile(folder / "check/train_step.in.x.bin", "f").reshape(4, 1, 32, 32),
        "y": np.fromfile(folder / "check/train_step.in.y.bin", "i4"),
    }
    for _ in range(2):
        module.train_step(**inputs, lr=0.1)
    graph = module.manifest["fingerprint"]
    trained = unpack_weights((folder / "trained.weights").read_bytes(), graph)
    assert trained.step == module.step
    for name, block in module.weight_blocks(("params", "slots")).items():
        if flags == "plain":
            assert trained.blocks[name][: block.nbytes].tobytes() == block.tobytes()
        else:  # without multiply-add instructions: rounded otherwise
            got = trained.blocks[name][: block.nbytes].view("f")
            np.testing.assert_allclose(got, block, rtol=1e-4, atol=1e-6)


THREADS = """\
#include "lenet.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
static _Alignas(64) unsigned char file[LENET_WEIGHTS_BYTES], contexts[8][LENET_CONTEXT_BYTES];
static _Alignas(64) unsigned char arenas[8][LENET_ARENA_BYTES];
static float x[4 * 1024], logits[8][40];
static void *work(void *argument)
{
    const size_t k = (size_t)argument;
    lenet_memory memory = {.arena = arenas[k], .arena_bytes = LENET_ARENA_BYTES};
    lenet_context *const context = (lenet_context *)contexts[k];
    int error = lenet_init(context, LENET_CONTEXT_BYTES, &memory, 0);
    if (!error) error = lenet_load(context, file, sizeof file);
    for (int turn = 0; turn < 5 && !error; turn++)
        error = lenet_predict(context, 4, x, sizeof x, logits[k], sizeof logits[k]);
    return (void *)(size_t)error;
}
int main(void)
{
    FILE *const f = fopen("lenet.weights", "rb");
    if (fread(file, 1, sizeof file, f) != sizeof file) return 1;
    fclose(f);
    for (int k = 0; k < 4 * 1024; k++) x[k] = (float)(k % 17) / 17;
    pthread_t threads[8];
    for (size_t k = 0; k < 8; k++) pthread_create(&threads[k], NULL, work, (void *)k);
    int failed = 0;
    for (int k = 0; k < 8; k++) {
        void *error;
        pthread_join(threads[k], &error);
        failed |= error != NULL || memcmp(logits[k], logits[0], sizeof logits[0]) != 0;
    }
    return failed;
}
"""


def test_eight_threads_share_the_weights(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """Each with a context and an arena of its own; ThreadSanitizer sees no race."""
    folder = modules["lenet"].export(tmp_path / "out")
    program(folder, THREADS, "-O1", "-pthread", "-fsanitize=thread")
    command = (
        ["setarch", "-R", "./tested"] if shutil.which("setarch") else ["./tested"]
    )  # TSan's shadow needs it
    run(folder, *command)


TRAINERS = """\
#include "twin.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
static _Alignas(64) unsigned char file[TWIN_WEIGHTS_BYTES];
typedef struct {
    _Alignas(64) unsigned char context[TWIN_CONTEXT_BYTES];
    _Alignas(64) unsigned char arena[TWIN_ARENA_BYTES];
    _Alignas(64) float params[TWIN_PARAMS], grads[TWIN_GRADS], slots[TWIN_SLOTS], state[TWIN_STATE];
    _Alignas(64) float folded[TWIN_FOLDED];
    _Alignas(64) unsigned char trained[TWIN_WEIGHTS_BYTES];
} worker;
static worker workers[8];
static float a[4 * 128], b[4 * 128];
static const int32_t y[4] = {0, 1, 2, 1};
static void *work(void *argument)
{
    worker *const w = argument;
    const twin_memory memory = {
        .params = w->params, .params_bytes = sizeof w->params, .grads = w->grads, .grads_bytes = sizeof w->grads,
        .slots = w->slots, .slots_bytes = sizeof w->slots, .state = w->state, .state_bytes = sizeof w->state,
        .folded = w->folded, .folded_bytes = sizeof w->folded, .arena = w->arena, .arena_bytes = sizeof w->arena};
    twin_context *const context = (twin_context *)w->context;
    float loss[1];
    int error = twin_init(context, sizeof w->context, &memory, 0);
    if (!error) error = twin_load(context, file, sizeof file);
    for (int step = 0; step < 5 && !error; step++)
        error = twin_train_step(context, 4, a, sizeof a, b, sizeof b, y, sizeof y, loss, sizeof loss, 0.01, 1);
    if (!error) error = twin_store(context, w->trained, sizeof w->trained);
    return (void *)(size_t)error;
}
int main(void)
{
    FILE *const f = fopen("twin.weights", "rb");
    if (fread(file, 1, sizeof file, f) != sizeof file) return 1;
    fclose(f);
    for (int k = 0; k < 4 * 128; k++) a[k] = (float)(k % 17) / 17, b[k] = (float)(k % 13) / 13;
    pthread_t threads[8];
    for (int k = 0; k < 8; k++) pthread_create(&threads[k], NULL, work, &workers[k]);
    int failed = 0;
    for (int k = 0; k < 8; k++) {
        void *error;
        pthread_join(threads[k], &error);
        failed |= error != NULL || memcmp(workers[k].trained, workers[0].trained, sizeof file) != 0;
    }
    return failed | (memcmp(workers[0].trained, file, sizeof file) == 0);
}
"""


def test_eight_threads_train_their_own(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """Batch norm, dropout and Adam: blocks of their own, and the same bits in all of them."""
    folder = modules["twin"].export(tmp_path / "out", train=True)
    program(folder, TRAINERS, "-O1", "-pthread", "-fsanitize=thread")
    run(folder, *(["setarch", "-R", "./tested"] if shutil.which("setarch") else ["./tested"]))


def test_valgrind_sees_no_error_and_no_allocation(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """The library and a main that opens no file: weights linked in."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    main_c = """\
#include "lenet.h"
extern const uint32_t lenet_weights[];
static _Alignas(64) unsigned char context_memory[LENET_CONTEXT_BYTES], arena[LENET_ARENA_BYTES];
static float x[4 * 1024], logits[40];
int main(void)
{
    lenet_memory memory = {.arena = arena, .arena_bytes = sizeof arena};
    lenet_context *const context = (lenet_context *)context_memory;
    int error = lenet_init(context, sizeof context_memory, &memory, 0);
    if (!error) error = lenet_load(context, lenet_weights, LENET_WEIGHTS_BYTES);
    return error ? error : lenet_predict(context, 4, x, sizeof x, logits, sizeof logits);
}
"""
    folder = modules["lenet"].export(tmp_path / "out", weights="c", target="x86-64")
    program(folder, main_c, "-O1", "-g")
    done = subprocess.run(
        ["valgrind", "--error-exitcode=9", "./tested"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "total heap usage: 0 allocs" in done.stderr


@pytest.mark.parametrize("target", ["aarch64", "armv7", "riscv64", "wasm32"])
@pytest.mark.parametrize("train", [False, True])
def test_other_processors_agree(
    target: str, train: bool, modules: dict[str, gc.Module], tmp_path: Path
) -> None:
    """Cross-compiled and run by an emulator: within rounding of what this machine computes with the same layout."""
    needed = [
        part.split()[0]
        for part in (TARGETS[target].compiler, TARGETS[target].runner, TARGETS[target].archiver)
    ]
    for tool in needed:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if target == "wasm32" and not Path("/usr/lib/wasm32-wasi/libc.a").exists():
        pytest.skip("wasi-libc is not installed")
    folder = modules["lenet"].export(tmp_path / "out", target=target, train=train)
    places = {str(Path(found).parent) for tool in needed if (found := shutil.which(tool))}
    printed = run(folder, "make", "-s", "check", "CFLAGS=-O2", PATH=":".join([BARE["PATH"], *sorted(places)]))
    assert printed.count("ok ") == (3 if train else 1), printed


def test_cmake_finds_the_package(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """Installed, found by another project, and its own test passes."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = modules["lenet"].export(tmp_path / "out")
    run(folder, "cmake", "-B", "made", "-DLENET_THREADS=OFF", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'prefix'}")
    run(folder, "cmake", "--build", "made")
    assert "100% tests passed" in run(folder / "made", "ctest")
    run(folder, "cmake", "--install", "made")
    user = tmp_path / "user"
    user.mkdir()
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(user C)\nfind_package(lenet REQUIRED)\n"
        "add_executable(user main.c)\ntarget_link_libraries(user PRIVATE lenet::lenet)\n"
    )
    (user / "main.c").write_text("#include <lenet.h>\nint main(void) { return lenet_abi() != LENET_ABI; }\n")
    run(user, "cmake", "-B", "made", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    run(user, "cmake", "--build", "made")
    run(user, "made/user")


def test_the_same_export_gives_the_same_bytes(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """No path, no date: whoever exports the net gets the same files."""
    folders = [modules["twin"].export(tmp_path / name, train=True) for name in ("one", "two")]
    files = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*") if p.is_file())
    assert len(files) > 10
    for file in files:
        one, two = ((folder / file).read_bytes() for folder in folders)
        assert one == two, file
        assert str(tmp_path).encode() not in one
        assert str(Path(__file__).parent).encode() not in one


def test_a_folder_appears_whole_or_not_at_all(
    modules: dict[str, gc.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is not touched without overwrite, and nothing is left behind by an error."""
    module = modules["lenet"]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    with pytest.raises(GraphcError, match="is there and not empty; overwrite=True replaces a bundle"):
        module.export(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (folder / "precious").read_text() == "mine"

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(GraphcError, match="No space left on device"):
        module.export(tmp_path / "other")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(GraphcError, match="is no bundle of graphc's; what is in it is not removed"):
        module.export(folder, overwrite=True)
    assert (folder / "precious").read_text() == "mine"
    bundle = module.export(tmp_path / "bundle")
    (bundle / "stale.o").write_text("")
    module.export(bundle, overwrite=True)
    assert (bundle / "Makefile").exists() and not (bundle / "stale.o").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "vax"}, "target 'vax' is unknown; there are native, x86-64"),
        ({"weights": "tape"}, "weights must be one of file, c, object, got 'tape'"),
        ({"batch": 0}, "batch must be an int in 1"),
        ({"name": "Le Net"}, "must be a short lower-case identifier"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    options: dict[str, Any], message: str, modules: dict[str, gc.Module], tmp_path: Path
) -> None:
    with pytest.raises(GraphcError, match=message):
        modules["lenet"].export(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


WHEEL = """\
import sys, threading
import numpy as np
import lenet
assert not [m for m in sys.modules if m.startswith(("graphc", "sympy", "jinja2"))]
x = np.load("x.npy")
np.save("logits.npy", lenet.predict(x=x)["logits"])
other = []
thread = threading.Thread(target=lambda: other.append(lenet.predict(x=x.astype("f8"))["logits"]))
thread.start()
thread.join()
assert (other[0] == np.load("logits.npy")).all()
for given, message in (
    ({"y": x}, "expected the inputs x, got y"),
    ({"x": x[:, :, :5]}, "input 'x' must have shape (None, 1, 32, 32)"),
    ({"x": x.astype("c8")}, "input 'x' must be float32, got complex64"),
    ({"x": np.zeros((5, 1, 32, 32), "f")}, "batch 5 is not in 1..4"),
):
    try:
        lenet.predict(**given)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise SystemExit(f"{given} was accepted")
"""


@pytest.mark.slow
def test_a_wheel_needs_numpy_and_cffi_alone(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    """Built in isolation, installed into a fresh environment; its numbers are the module's."""
    wheel = modules["lenet"].export(tmp_path / "dist", wheel=True)
    assert [p.name for p in (tmp_path / "dist").iterdir()] == [wheel.name]
    assert re.fullmatch(r"lenet-1\.0\.0-py3-none-\w+\.whl", wheel.name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    x = np.random.default_rng(5).normal(size=(BATCH, 1, 32, 32)).astype("f")
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "use.py").write_text(WHEEL)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    want = modules["lenet"].predict(x=x)["logits"]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), want)


def test_a_wheel_is_for_inference_on_this_machine(modules: dict[str, gc.Module], tmp_path: Path) -> None:
    for options, message in (
        ({"train": True}, "holds inference alone"),
        ({"target": "riscv64"}, "for this machine"),
    ):
        with pytest.raises(GraphcError, match=message):
            modules["lenet"].export(tmp_path / "dist", wheel=True, **options)
    assert not list(tmp_path.iterdir())


def test_inference_alone_cannot_be_trained(tmp_path: Path) -> None:
    x = gc.input("x", ("N", 4))
    module = gc.compile(gc.nn.linear(x, 2), name="line")
    with pytest.raises(GraphcError, match="compiled without an optimizer, so that it cannot train"):
        module.export(tmp_path / "out", train=True)


def test_the_command_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """graphc build, with weights from a file and another name, for one image at a time."""
    module = lenet()
    module.save(tmp_path / "trained.safetensors")
    folder = tmp_path / "out"
    given = [
        "build",
        "model:lenet",
        "-o",
        str(folder),
        "--weights-from",
        str(tmp_path / "trained.safetensors"),
    ]
    assert main([*given, "--name", "digits", "--single-file"]) == 0
    assert "make -C" in capsys.readouterr().out
    assert os.path.exists(folder / "digits.h")
    assert "#define DIGITS_BATCH 1 " in (folder / "digits.h").read_text()
    run(folder, "make", "-s", "check")
    x = np.fromfile(folder / "check/predict.in.x.bin", "f").reshape(1, 1, 32, 32)
    got = np.fromfile(folder / "check/predict.out.logits.bin", "f")
    # Compiled for another batch: sums may be taken in another order.
    np.testing.assert_allclose(got, module.predict(x=x)["logits"][0], rtol=1e-5, atol=1e-6)
    assert main(["build", "model:lenet", "-o", str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err
