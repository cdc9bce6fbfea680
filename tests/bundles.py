"""What the tests of exported bundles share: building programs from them, and running these without Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
# Without /usr/local or a virtual environment: neither Python nor graphc can take part.
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
ADDRESSES = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RACES = ("-fsanitize=thread",)

# All that a library may ask of the C library: copying and comparing memory, and what compilers add by themselves.
MEMORY_SYMBOLS = frozenset(
    {"memcpy", "memset", "memcmp", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
)
# Of the library of mathematics, in float32 and in float64.
MATHEMATICS = frozenset(
    f"{name}{suffix}"
    for name in ("exp", "log", "sqrt", "pow", "tanh", "erf", "expm1", "log1p")
    for suffix in ("", "f")
)
MESSAGES = frozenset({"snprintf"})  # not with -DGC_NO_STDIO
OPENMP = frozenset({"GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num"})


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """Run a command in a folder, without Python on the path; return what it prints."""
    done = attempt(folder, *command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without Python on the path, whatever comes of it."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**BARE, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )


def run_sanitized(folder: Path, program: str | Path, *arguments: str) -> str:
    """Run a program that was built with sanitizers; return what it prints.

    ThreadSanitizer's shadow needs addresses that are not random. Programs that end at once do not free their blocks.
    """
    fixed = ("setarch", "-R") if shutil.which("setarch") else ()
    return run(folder, *fixed, program, *arguments, ASAN_OPTIONS="detect_leaks=0")


def sources(folder: Path) -> list[str]:
    """Return the C files of a bundle that make up the library."""
    return sorted(p.name for p in folder.glob("*.c") if p.name not in ("example.c", "check.c", "test_main.c"))


def build(folder: Path, main: Path, output: str, *flags: str, compiler: str = "gcc") -> Path:
    """Build a program from the C files of a bundle, whose objects stay, and a main, without any warning."""
    command = (compiler, *STRICT, *(flags or ("-O1",)))
    run(folder, *command, "-c", *sources(folder))
    run(folder, *command, "-I.", str(main), *objects(folder), "-lm", "-o", output)
    return folder / output


def objects(folder: Path) -> list[str]:
    """Return the names of a bundle's compiled C files."""
    return [Path(file).with_suffix(".o").name for file in sources(folder)]


def program(folder: Path, main_c: str, *flags: str, compiler: str = "gcc") -> Path:
    """Build a program from the bundle and the text of a main."""
    (folder / "test_main.c").write_text(main_c)
    return build(folder, Path("test_main.c"), "tested", *flags, compiler=compiler)


def undefined_symbols(folder: Path) -> set[str]:
    """Return what the compiled C files of a bundle, linked with each other, need of others."""
    run(folder, "ld", "-r", *objects(folder), "-o", "linked.o")
    return set(re.findall(r" U (\w+)", run(folder, "nm", "-u", "linked.o")))


def require_tool(name: str) -> None:
    """Skip the test where a tool is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
