"""Bundles with code for several levels of a processor, and bundles without the C library's mathematics."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc.emit.libm import library_calls
from graphc.errors import GraphError, RangeError
from graphc.export import TARGETS

LEVELS = "x86-64,x86-64-v3,x86-64-v4"
# A processor of each level, as the emulator knows them.
PROCESSORS = {"x86_64": "Nehalem", "x86_64_v3": "Haswell"}
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")


def net(batch: int = 4) -> gc.Module:
    """Return a net with convolutions of both kinds, batch norm and a hyperbolic tangent."""
    x, y = gc.input("x", ("N", 2, 12, 12)), gc.input("y", ("N",), dtype="int32")
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 32, 5, padding=2, name="conv1"), name="norm"))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 32, 3, padding=1, name="conv2")), 2)
    logits = gc.nn.linear(gc.tanh(gc.nn.linear(gc.flatten(h), 20, name="fc1")), 3, name="fc2")
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile({"logits": logits}, loss, gc.SGD(lr=0.05, momentum=0.9), batch=batch, name="net")


# Of what only folds weights and records a batch.
QUICK = gc.BuildOptions(optimisation=("-O1", "-march=native"))


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@on_x86
@pytest.mark.parametrize("train", [False, True])
def test_the_level_of_the_processor_is_chosen_when_it_runs(train: bool, tmp_path: Path) -> None:
    """A Nehalem, a Haswell and this machine each run code of their own, on the same weights, to the same results."""
    module = net()
    folder = module.export(tmp_path / "net", train=train, target=LEVELS, build=QUICK)
    flags = "CFLAGS=-O2 -ffp-contract=off -Wall -Wextra -Werror"
    passed = run(folder, "make", "-s", flags, "check")
    assert passed.count("ok   ") == (2 if train else 1)
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("needs qemu-x86_64 for the other levels")
    for processor in PROCESSORS.values():
        assert run(folder, "qemu-x86_64", "-cpu", processor, "./self-check").count("ok   ") == passed.count(
            "ok   "
        )


@on_x86
def test_an_older_processor_does_not_run_the_code_of_a_newer_one(tmp_path: Path) -> None:
    """Each level tells which it is, by a name that only its own object has; AVX2 code would stop the Nehalem."""
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("needs qemu-x86_64")
    folder = net().export(tmp_path / "net", target=LEVELS, build=QUICK)
    source = folder / "net.c"
    text = source.read_text()
    for number, name in enumerate(("net_x86_64_v4", "net_x86_64_v3", "net_x86_64")):
        text = text.replace(f"{name}_predict(", f'puts("{name}"), {name}_predict(')
        assert f'puts("{name}")' in text, number
    source.write_text("#include <stdio.h>\n" + text)
    run(folder, "make", "-s", "self-check")
    for level, processor in PROCESSORS.items():
        assert run(folder, "qemu-x86_64", "-cpu", processor, "./self-check").startswith(f"net_{level}\n")


@on_x86
def test_every_function_of_the_header_is_there_and_memory_is_enough_for_every_level(tmp_path: Path) -> None:
    """The common header is the only one that callers need."""
    folder = net().export(tmp_path / "net", train=True, target=LEVELS, build=QUICK)
    run(folder, "make", "-s", "shared")
    header = re.sub(r"/\*.*?\*/", "", (folder / "net.h").read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"\b(net_\w+)\(", header))
    defined = {
        line.split()[-1] for line in run(folder, "nm", "-D", "--defined-only", "libnet.so").splitlines()
    }
    assert len(declared) > 15 and declared <= defined
    for macro in ("ARENA_BYTES", "ARENA_TRAIN_STEP_BYTES", "STACK_BYTES"):
        stated = {
            path.stem: int(re.findall(rf"_{macro} (\d+)", path.read_text())[0])
            for path in folder.glob("net*.h")
        }
        assert len(stated) == 4 and stated["net"] == max(stated.values())


@on_x86
def test_cmake_gives_every_level_its_flags(tmp_path: Path) -> None:
    """The same library, by CMake."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = net().export(tmp_path / "net", target=LEVELS, build=QUICK)
    run(folder, "cmake", "-S", ".", "-B", "build")
    run(folder, "cmake", "--build", "build")
    assert "ok   predict logits" in run(folder, "./build/net_check")


@pytest.mark.parametrize("names", ["x86-64,aarch64", "native,x86-64", "x86-64,x86-64", "x86-64,x87"])
def test_other_targets_cannot_be_in_one_bundle(names: str, tmp_path: Path) -> None:
    """Nor can a level twice; the message tells which there are."""
    with pytest.raises(RangeError, match="x86-64-v4"):
        net().export(tmp_path / "net", target=names, build=QUICK)


def test_levels_are_not_a_single_file(tmp_path: Path) -> None:
    """Each is compiled with flags of its own."""
    with pytest.raises(GraphError, match="files of its own"):
        net().export(tmp_path / "net", target=LEVELS, single_file=True, build=QUICK)


def test_without_libm_nothing_of_it_is_linked(tmp_path: Path) -> None:
    """The tangent and the soft maximum's exponential are graphc's own; memory functions are all that is left."""
    folder = net().export(tmp_path / "net", train=True, libm=False, build=QUICK)
    assert "-lm" not in (folder / "Makefile").read_text() + (folder / "CMakeLists.txt").read_text()
    run(folder, "make", "-s", "libnet.a", "OPENMP=", "CFLAGS=-O2 -march=native -fno-math-errno -DGC_NO_STDIO")
    symbols = run(folder, "nm", "-u", "libnet.a").split()
    needed = {symbol for symbol in symbols if not symbol.endswith(("U", ".o:"))}
    assert needed <= {"memcpy", "memset", "memcmp", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert "same bits" in run(folder, "make", "-s", "clean", "check")


def test_a_net_that_needs_libm_is_refused_without_it(tmp_path: Path) -> None:
    """By the names of the functions: float64's exponential, the powers of Adam's correction."""
    x = gc.input("x", ("N", 4))
    module = gc.compile({"out": gc.exp(gc.sin(x))}, batch=2, name="net")
    with pytest.raises(GraphError, match=r"net calls sin of"):
        module.export(tmp_path / "sin", libm=False, build=QUICK)
    double = gc.compile({"out": gc.exp(x)}, batch=2, name="net", dtype="float64")
    with pytest.raises(GraphError, match=r"net calls exp of"):
        double.export(tmp_path / "exp", libm=False, build=QUICK)
    y = gc.nn.linear(x, 1)
    adam = gc.compile({"out": y}, gc.mean(y * y), gc.Adam(lr=0.01), batch=2, name="net")
    with pytest.raises(GraphError, match=r"net calls pow of"):
        adam.export(tmp_path / "adam", train=True, libm=False, build=QUICK)
    adam.export(tmp_path / "predict", libm=False, build=QUICK)


@on_x86
def test_a_static_program_is_small(tmp_path: Path) -> None:
    """The example with everything that it needs, weights apart: less than 60 KB with a C library made for that."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("needs musl-gcc")
    x = gc.input("x", ("N", 1, 32, 32))
    module = gc.compile({"logits": gc.models.lenet(x)}, name="lenet")
    folder = module.export(tmp_path / "lenet", target="x86-64-v3", build=QUICK)
    flags = ("-static", "-O3", "-march=x86-64-v3", "-ffp-contract=off", "-s")
    run(folder, "musl-gcc", *flags, "example.c", "lenet.c", "-lm", "-o", "small")
    assert (folder / "small").stat().st_size < 60_000
    if "avx2" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        assert run(folder, "./small").startswith("logits: ")


def test_calls_are_told_from_other_names() -> None:
    """Comments, graphc's own functions, members and longer names are no calls."""
    assert library_calls(["y = gc_expf(x) + a.exp(x) + b->exp(x) + my_exp(x) + sqrtf(x); /* exp(x) */"]) == []
    assert library_calls(["y = expf(x) * pow(a, 2)", "z = atan2f(y, x) + log1p(x) + floor(x)"]) == [
        "atan2", "exp", "floor", "log1p", "pow",
    ]  # fmt: skip


def test_features_of_levels_grow() -> None:
    """A processor of a level has what every lower one needs."""
    assert np.all(np.diff([len(t.features) for t in TARGETS.values() if t.features is not None]) > 0)


def test_precision_and_threads_are_chosen_when_exporting(tmp_path: Path) -> None:
    """A module in float32 becomes one in float64, whose self-check has the bits of Python in float64."""
    folder = net().export(tmp_path / "net", train=True, dtype="float64", threads=3)
    header, source = (folder / "net.h").read_text(), (folder / "net.c").read_text()
    assert "const double *x" in header and "float *" not in header
    assert "context->threads = 3;" in source
    assert run(folder, "make", "-s", "check").count("the same bits") == 2
    with pytest.raises(RangeError, match=r"threads must be an int in 1\.\.1024"):
        net().export(tmp_path / "none", threads=0, build=QUICK)
    with pytest.raises(RangeError, match="dtype must be 'float32' or 'float64', got 'int32'"):
        net().export(tmp_path / "none", dtype="int32")
    assert not (tmp_path / "none").exists()
