"""The emitted C compiles without a warning: by gcc and clang, with and without OpenMP, the header as C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from emitted import (
    COMPILERS,
    NETS,
    STRICT,
    compile_objects,
    emission,
    lenet_module,
    sample_modules,
)
from helpers import full_only

import graphc as gc
from graphc.types import DType

# Some warnings come from analyses that only optimisation runs; contraction is off as in every build.
OPTIMISED = ("-O2", "-ffp-contract=off")
# Builds with the least instruction set. What is not here, test_emitted_bits.py compiles for this machine's.
LEAST: dict[str, list[tuple[str, DType, tuple[str, ...]]]] = {
    "gcc": [("serial", "float32", ()), ("parallel", "float32", ("-fopenmp",))],
    "clang": [("serial", "float32", ()), ("double", "float64", ())],
}


def assert_no_warnings(compiler: str, dtype: DType, flags: tuple[str, ...], folder: Path) -> None:
    nets = [make(dtype=dtype) for make in NETS]
    modules = [*sample_modules(dtype), *nets]
    failed = compile_objects(
        compiler, [path for m in modules for path in m.write(folder)], (*STRICT, *OPTIMISED, *flags)
    )
    assert not failed, "\n".join(words for _, words in failed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "dtype", "flags"),
    [
        pytest.param(
            *compiler.values,
            dtype,
            flags,
            id=f"{compiler.values[0]}-{name}",
            # test_emitted_bits.py builds what gcc makes without OpenMP.
            marks=[
                *compiler.marks,
                *([full_only] if (compiler.values[0], name) == ("gcc", "serial") else []),
            ],
        )
        for compiler in COMPILERS
        for name, dtype, flags in LEAST[compiler.values[0]]
    ],
)
def test_every_sample_compiles_without_warnings(
    compiler: str, dtype: DType, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """With the least instruction set; test_emitted_bits.py builds for this machine's, refusing the same warnings."""
    assert_no_warnings(compiler, dtype, flags, tmp_path)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_nan_guard_compiles_without_warnings(compiler: str, tmp_path: Path) -> None:
    """The guard adds code to every entry point."""
    x, y = gc.input("x", ("N", 4)), gc.input("y", ("N",), dtype="int64")
    logits = gc.nn.linear(x, 3)
    module = emission(
        "guarded", {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.Adam(lr=0.1), nan_guard=True
    )
    assert "all_finite" in module.source
    failed = compile_objects(compiler, module.write(tmp_path), (*STRICT, *OPTIMISED))
    assert not failed, failed


@pytest.mark.parametrize("compiler", COMPILERS)
def test_several_files_compile_without_warnings(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large net is divided into several files; a small one is, if the limit is lowered."""
    monkeypatch.setattr("graphc.emit.units.SPLIT_FROM", 1)
    module = lenet_module()
    paths = module.write(tmp_path)
    assert len(paths) > 1
    assert not compile_objects(compiler, paths, (*STRICT, *OPTIMISED))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_header_is_cpp(tmp_path: Path) -> None:
    """C++ code includes the header, calls the functions, and links with the C object."""
    x = gc.input("class", ("N", 4))  # a word of C++ only
    module = emission("plain", {"new": gc.relu(x)}, batch=2)
    (source,) = module.write(tmp_path)
    main = tmp_path / "main.cpp"
    main.write_text(
        '#include "plain.h"\n'
        "alignas(64) static unsigned char arena[PLAIN_ARENA_BYTES + 64];\n"
        "alignas(64) static unsigned char storage[1024];\n"
        "int main() {\n"
        "    plain_memory memory = {};\n"
        "    memory.arena = arena;\n"
        "    memory.arena_bytes = PLAIN_ARENA_BYTES;\n"
        "    plain_context *context = reinterpret_cast<plain_context *>(storage);\n"
        "    if (plain_context_bytes() > sizeof storage) return 1;\n"
        "    if (plain_init(context, sizeof storage, &memory, 0) != PLAIN_OK) return 2;\n"
        "    const float x[4] = {-1, 2, -3, 4};\n"
        "    float y[4];\n"
        "    if (plain_predict(context, 1, x, sizeof x, y, sizeof y) != PLAIN_OK) return 3;\n"
        "    return y[0] == 0 && y[1] == 2 && y[2] == 0 && y[3] == 4 ? 0 : 4;\n"
        "}\n"
    )
    strict = ["-Wall", "-Wextra", "-Wshadow", "-Werror"]
    subprocess.run(["gcc", *STRICT, "-c", source, "-o", tmp_path / "plain.o"], check=True)
    subprocess.run(
        ["g++", "-std=c++17", *strict, main, tmp_path / "plain.o", "-lm", "-o", tmp_path / "main"], check=True
    )
    assert subprocess.run([tmp_path / "main"]).returncode == 0
