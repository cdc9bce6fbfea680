"""A bundle as a Python wheel that depends on NumPy and cffi alone, for any Python on this platform."""

from __future__ import annotations

import os
import pprint
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from graphc.errors import BuildError, GraphcError, GraphError
from graphc.export.bundle import Bundle
from graphc.export.write import VERSION, render, write_bundle
from graphc.program.ir import Argument
from graphc.types import Extent

_TIMEOUT = 600  # seconds for the compiler, and for pip


def write_wheel(bundle: Bundle, folder: str | Path) -> Path:
    """Build the library of an inference bundle, wrap it as a wheel in a folder, and return the wheel's path.

    pip builds the wheel in an isolated environment, for which it installs hatchling.

    Raises:
        GraphcError: the bundle trains, or is for another processor; the compiler or pip fail.
    """
    if bundle.trains:
        raise GraphError("export: a wheel holds inference alone; leave out the training step")
    if bundle.target.compiler or bundle.target.device:
        raise GraphError(
            f"export: a wheel is for this machine's processor, and target {bundle.target.name!r} is another"
        )
    name = bundle.program.name
    with tempfile.TemporaryDirectory(prefix="graphc-wheel-") as work:
        source = write_bundle(bundle, Path(work) / "source")
        _run("the C compiler", ["make", "-s", "shared"], source)
        project = Path(work) / "project"
        package = project / name
        package.mkdir(parents=True)
        for file in (f"lib{name}.so", f"{name}.weights"):
            shutil.copy(source / file, package)
        context = _context(bundle)
        (package / "__init__.py").write_text(render("package.py", context), encoding="utf-8")
        (project / "pyproject.toml").write_text(render("package.toml", context), encoding="utf-8")
        (project / "tag.py").write_text(render("tag.py", context), encoding="utf-8")
        made = Path(work) / "made"
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(made),
            ".",
        ]
        _run("pip", command, project)
        (wheel,) = made.glob("*.whl")
        try:
            target = Path(folder)
            target.mkdir(parents=True, exist_ok=True)
            # First beside it, so that a wheel is there whole or not at all.
            partial = target / f".{wheel.name}.part"
            shutil.copy(wheel, partial)
            os.replace(partial, target / wheel.name)
        except OSError as error:
            raise GraphcError(f"export: {error.filename or folder}: {error.strerror or error}") from error
    return target / wheel.name


def _run(what: str, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"export: {what} could not be run: {error}") from error
    if done.returncode != 0:
        raise BuildError(
            f"export: {what} failed ({' '.join(command)}):\n{(done.stderr or done.stdout)[-3000:]}"
        )


def _context(bundle: Bundle) -> dict[str, Any]:
    (entry,) = (e for e in bundle.program.entries if e.name == "predict")
    inputs, outputs = (
        {a.name: _described(a) for a in arguments} for arguments in (entry.inputs, entry.outputs)
    )
    return {
        "name": bundle.program.name, "version": VERSION, "batch": bundle.program.batch,
        "inputs": pprint.pformat(inputs, sort_dicts=False), "outputs": pprint.pformat(outputs, sort_dicts=False),
        "cdef": bundle.emitted.cdef, "call_text": ", ".join(f"{name}=..." for name in inputs),
    }  # fmt: skip


def _described(argument: Argument) -> tuple[str, tuple[int | None, ...]]:
    return argument.dtype, tuple(None if isinstance(d, Extent) else d for d in argument.shape)
