"""The emitted C gives the same bits for any number of threads, without OpenMP, and from every compiler.

The same program runs every entry point of every registry sample and of LeNet (dropout and batch norm
included) and prints hashes of all results. It also compares threads and runs among themselves, and two
fillings of the arena: nothing may be read there before it is written. All NaNs count as equal. Floating-point
contraction is off, so no freedom is left to a compiler: where optimised code differs from unoptimised code, the
compiler is wrong (gcc 12 was, for pooling windows with `continue` in the loops).

Every build refuses warnings, serial and with OpenMP: what test_emitted_warnings.py does with the least instruction
set, in both precisions, these do with this machine's; to compile all samples once more for that would take a minute.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from emitted import NETS, STRICT, driver, sample_modules
from helpers import full_only

from graphc.build import BuildOptions, build_program
from graphc.types import DType

# Equal for all tests, so that they share the build: the driver holds it.
THREADS = (1, 2, 3, 4)


def hashes(dtype: DType, threads: tuple[int, ...], **options: object) -> str:
    """Return what the program prints for a build."""
    nets = [make(dtype=dtype) for make in NETS]
    modules = [*sample_modules(dtype), *nets]
    sources = {file: text for m in modules for file, text in m.emitted.sources.items()}
    build = BuildOptions(extra_flags=STRICT, **options)  # type: ignore[arg-type]  # options are its fields
    program = build_program(sources, driver(modules, (1, 3, 5), threads), build)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("batch") == 3 * len(modules)
    return result.stdout


@pytest.mark.slow
@full_only
def test_threads_and_openmp_do_not_matter() -> None:
    """1 to 4 threads among themselves, and OpenMP against the serial build.

    The next test compares OpenMP on 1 to 4 threads with a serial build, too, at another optimisation.
    """
    assert hashes("float32", THREADS, openmp=True) == hashes("float32", (1,), openmp=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=full_only)])
def test_compilers_and_optimisation_do_not_matter(dtype: DType) -> None:
    """Every optimised build against the serial one by gcc -O1, for one instruction set."""
    want = hashes(dtype, (1,), compiler="gcc", optimisation=("-O1", "-march=native"), openmp=False)
    for compiler, openmp in (("gcc", True), ("clang", dtype == "float32")):
        if shutil.which(compiler):
            threads = THREADS if openmp else (1,)
            optimised = ("-O3", "-march=native")
            got = hashes(dtype, threads, compiler=compiler, optimisation=optimised, openmp=openmp)
            assert got == want, f"{compiler}, OpenMP {openmp}"
