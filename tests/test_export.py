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
from bundles import (
    ADDRESSES,
    BARE,
    MATHEMATICS,
    MEMORY_SYMBOLS,
    MESSAGES,
    RACES,
    STRICT,
    program,
    run,
    run_sanitized,
    sources,
    undefined_symbols,
)

import graphc as gc
from graphc.cli.main import main
from graphc.errors import GraphcError
from graphc.export import TARGETS
from graphc_runtime.errors import CheckpointError
from graphc_runtime.weights import unpack_weights

BATCH = 4


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
    assert undefined_symbols(folder) <= MEMORY_SYMBOLS
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
        needed = undefined_symbols(folder)
        assert needed <= MEMORY_SYMBOLS | MATHEMATICS | MESSAGES, needed


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
    if path is None or subprocess.run([path, "--version"], capture_output=True).returncode != 0:
        pytest.skip(f"{tool} is not installed, or not for this user")
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


# Loads the weights cut short and with two words exchanged, and tells what came of it.
DAMAGED = """\
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
    """From C: the end missing, two words exchanged. From Python: one byte changed, the end missing."""
    folder = modules["lenet"].export(tmp_path / "out")
    program(folder, DAMAGED, "-O1", *ADDRESSES)
    short, exchanged, untouched, whole = run(folder, "./tested").splitlines()
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
    program(folder, TRAINERS, "-O1", "-pthread", *RACES)
    run_sanitized(folder, "./tested")


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
