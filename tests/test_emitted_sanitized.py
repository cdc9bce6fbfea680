"""The emitted C under AddressSanitizer and UndefinedBehaviorSanitizer.

Every array has exactly the stated size, and the arena is laid out with a poisoned gap between any two
buffers, so that a kernel that reads or writes one byte outside its buffers is reported.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from emitted import NETS, Emission, driver, emission, sample_modules
from helpers import full_only

import graphc as gc
from graphc.build import BuildOptions, build_program
from graphc.errors import BuildError
from graphc.types import DType

# Line numbers for the reports, and no more: gcc takes twice as long to follow variables through optimised code.
SANITIZERS = ("-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module", autouse=True)
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the compiler has no sanitizers."""
    folder = tmp_path_factory.mktemp("probe")
    options = BuildOptions(optimisation=("-O1",), extra_flags=SANITIZERS, openmp=False, cache_dir=folder)
    try:
        build_program({"empty.c": "extern int none;\n"}, "int main(void) { return 0; }\n", options)
    except BuildError:
        pytest.skip("the compiler has no sanitizers")


def run_sanitized(
    modules: Sequence[Emission], openmp: bool, main: str = ""
) -> subprocess.CompletedProcess[str]:
    sources = {file: text for m in modules for file, text in m.emitted.sources.items()}
    text = main or driver(modules, (1, 3, 5), (1, 2) if openmp else (1,))
    options = BuildOptions(optimisation=("-O1",), extra_flags=SANITIZERS, openmp=openmp)
    program: Path = build_program(sources, text, options)
    return subprocess.run([program], capture_output=True, text=True)


def assert_clean(modules: Sequence[Emission], openmp: bool) -> None:
    result = run_sanitized(modules, openmp)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[:6000]
    assert result.stdout.count("batch") == 3 * len(modules)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=full_only)])
def test_every_sample_is_clean(dtype: DType) -> None:
    """Forward, and training with and without commit, of all samples and of some nets, at three batches.

    On one thread and on two: every kernel of these modules is parallel that can be.
    """
    nets = [make(dtype=dtype, guarded=True) for make in NETS]
    assert_clean([*sample_modules(dtype, guarded=True), *nets], openmp=True)


@full_only
def test_nets_are_clean_without_openmp() -> None:
    """The serial build is the same text without the directives: on one thread it runs through the same addresses."""
    assert_clean([make(guarded=True) for make in NETS], openmp=False)


@pytest.mark.parametrize("place", ["arena", "output"])
def test_the_guards_report_an_overrun(place: str) -> None:
    """A kernel that writes one element too many is found, in the arena and in the caller's array."""
    x = gc.input("x", ("N", 6))
    h = gc.softmax(x) if place == "arena" else x
    module = emission(
        "over", {"out": gc.exp(gc.sum(h, 0)) if place == "arena" else gc.exp(h)}, guarded_arena=True
    )
    source = module.source
    bounds = ("i0 < N;", "i0 < N + 1;") if place == "arena" else ("i0 < 6*N;", "i0 < 6*N + 1;")
    assert bounds[0] in source
    module.emitted.sources["over.c"] = source.replace(*bounds, 1)
    result = run_sanitized([module], openmp=False)
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr
