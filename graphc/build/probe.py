"""Which of the flags that graphc would like the compiler accepts; asked once, noted in the cache."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import subprocess
import tempfile
from pathlib import Path

from graphc.build.cache import Cache
from graphc.build.compiler import CommandError, Compiler, cpu_identity, run_commands
from graphc.errors import BuildError

_LOG = logging.getLogger("graphc.build")

_PLAIN = "int graphc_probe(void) { return 0; }\n"
# Linked, not only compiled: clang takes -fopenmp where neither omp.h nor the library is installed.
_OPENMP = "#include <omp.h>\nint graphc_probe(void) { return omp_get_max_threads(); }\n"


def openmp_flags(compiler: Compiler, cache: Cache) -> tuple[str, ...]:
    """Return ``("-fopenmp",)`` if the compiler can build and link with it, else ``()`` after a warning."""
    if _accepts(compiler, "-fopenmp", _OPENMP, cache):
        return ("-fopenmp",)
    _warn_once(f"{compiler.headline} does not support -fopenmp here: the code will run on one thread")
    return ()


def native_flags(flags: tuple[str, ...], compiler: Compiler, cache: Cache) -> tuple[str, ...]:
    """Return the flags with ``-march=native`` in the spelling that the compiler takes, or without it.

    clang on ARM and PowerPC calls it ``-mcpu=native``; small compilers know neither.
    """
    wanted = "-march=native"
    if wanted not in flags or _accepts(compiler, wanted, _PLAIN, cache):
        return flags
    spelled: tuple[str, ...] = ()
    if _accepts(compiler, "-mcpu=native", _PLAIN, cache):
        spelled = ("-mcpu=native",)
    else:
        _warn_once(f"{compiler.headline} does not accept {wanted}: the code will be slower")
    at = flags.index(wanted)
    return flags[:at] + spelled + tuple(flag for flag in flags[at:] if flag != wanted)


def predefined_macros(flags: tuple[str, ...], compiler: Compiler, cache: Cache) -> str:
    """Return the macros that the compiler defines under the flags, as ``#define`` lines; "" if it won't say."""
    native = any(flag.endswith("=native") for flag in flags)
    identity = "\0".join([*compiler.command, compiler.version, *flags, cpu_identity() if native else ""])
    name = f"macros-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    known = cache.note(name)
    if known is not None:
        return known
    command = [*compiler.command, *flags, "-dM", "-E", "-x", "c", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if re.match(r"#define __(AVX|FMA|ARM|SSE)", line)]
    macros = "\n".join(lines) if done.returncode == 0 else ""
    cache.set_note(name, macros)
    return macros


def _accepts(compiler: Compiler, flag: str, source: str, cache: Cache) -> bool:
    """Return whether a shared object can be built with the flag."""
    identity = "\0".join([*compiler.command, compiler.version, flag, source])
    name = f"flag-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    known = cache.note(name)
    if known in ("yes", "no"):
        return known == "yes"
    accepted = _builds(compiler, (flag,), source)
    # Noted as refused only if the compiler works without the flag: a full disk must not make all later
    # builds serial.
    if accepted or _builds(compiler, (), _PLAIN):
        cache.set_note(name, "yes" if accepted else "no")
    return accepted


def _builds(compiler: Compiler, flags: tuple[str, ...], source: str) -> bool:
    try:
        with tempfile.TemporaryDirectory(prefix="graphc-probe-") as name:
            folder = Path(name)
            (folder / "probe.c").write_text(source, encoding="utf-8")
            command = [*compiler.command, "-fPIC", "-shared", *flags, "probe.c", "-o", "probe.so"]
            run_commands([command], cwd=folder, scratch=folder, jobs=1)
    except (CommandError, BuildError, OSError):
        return False
    return True


@functools.cache
def _warn_once(message: str) -> None:
    _LOG.warning("%s", message)
