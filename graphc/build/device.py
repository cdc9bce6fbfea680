"""Compilers of CUDA source: nvcc, or a C++ compiler where the emulator takes the device's place."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass

from graphc.build.compiler import ask_version
from graphc.errors import BuildError

ARCHITECTURES = ("sm_80", "sm_90")
"""What nvcc compiles for, beside PTX of the last, from which a newer device's driver makes its own code."""

_CANDIDATES = ("g++", "clang++", "c++")
_HINT = "Install NVIDIA's CUDA toolkit, name its compiler in NVCC, or use target='cuda-emulated', which needs no GPU."


@dataclass(frozen=True)
class DeviceCompiler:
    """The command that compiles a .cu file, its flags and version; and whether it links, or the C compiler does."""

    command: tuple[str, ...]
    flags: tuple[str, ...]
    version: str
    libraries: tuple[str, ...] = ()
    links: bool = False


def device_compiler(target: str, optimisation: tuple[str, ...]) -> DeviceCompiler:
    """Return the compiler for a target, ``"cuda"`` or ``"cuda-emulated"``.

    Raises:
        BuildError: there is none.
    """
    return _nvcc() if target == "cuda" else _emulated(optimisation)


def _nvcc() -> DeviceCompiler:
    words = shlex.split(os.environ.get("NVCC", "nvcc"))
    path = shutil.which(words[0]) if words else None
    if path is None:
        raise BuildError(f"the CUDA compiler {' '.join(words) or 'nvcc'!r} was not found. {_HINT}")
    command = (os.path.abspath(path), *words[1:])
    numbers = [arch.removeprefix("sm_") for arch in ARCHITECTURES]
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    for number in numbers:
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    flags += ["-gencode", f"arch=compute_{numbers[-1]},code=compute_{numbers[-1]}"]
    return DeviceCompiler(command, tuple(flags), ask_version(command).version, links=True)


def _emulated(optimisation: tuple[str, ...]) -> DeviceCompiler:
    named = os.environ.get("CXX")
    words = shlex.split(named) if named else []
    for name in [words[0]] if words else _CANDIDATES:
        path = shutil.which(name)
        if path is not None:
            command = (os.path.abspath(path), *words[1:])
            flags = (
                "-x",
                "c++",
                "-std=c++17",
                "-fPIC",
                "-fvisibility=hidden",
                "-ffp-contract=off",
                *optimisation,
            )
            return DeviceCompiler(command, flags, ask_version(command).version, ("-lstdc++",))
    raise BuildError(
        f"no C++ compiler was found for target 'cuda-emulated': {named or ', '.join(_CANDIDATES)} "
        f"(PATH={os.environ.get('PATH', '')!r}). Install one (Debian, Ubuntu: apt-get install g++) or name it in CXX."
    )
