"""Peers that emit C from the ONNX file: emitted, compiled for this processor, and loaded into the process."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nets import inputs

# Those of graphc's C, which is not given -ffast-math either.
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")

_INITIALISER = re.compile(r"=\s*\{[^;]*\};")


def lines_of_code(text: str) -> int:
    """Return the lines that are left when every array's list of values is one line."""
    return _INITIALISER.sub("= {};", text).count("\n")


def _run(command: list[str], **more: Any) -> None:
    """The command has ended well, or RuntimeError gives the last line it wrote."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{Path(command[0]).name} ended with status {done.returncode}: {last}")


def _output_shape(model: str) -> tuple[int, ...]:
    """Return the extents of the only output, which an export for one batch states."""
    import onnx

    (output,) = onnx.load(model).graph.output
    return tuple(extent.dim_value for extent in output.type.tensor_type.shape.dim)


def _ready(
    case: dict[str, Any],
    model: str,
    source: Path,
    entry: str,
    load: Callable[[Any], None] = lambda library: None,
) -> tuple[Callable[[], Any], np.ndarray, dict[str, Any]]:
    """Return the call of the compiled source, its output, and its lines; ``load`` prepares the library."""
    from graphc.build.compiler import find_compiler

    compiler, shared = find_compiler(), source.with_suffix(".so")
    _run([*compiler.command, *FLAGS, str(source), "-o", str(shared), "-lm"])
    library = ctypes.CDLL(str(shared))
    load(library)
    images = inputs(case)["x"]
    output = np.empty(_output_shape(model), np.float32)
    function = getattr(library, entry)
    function.restype = None
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (images, output)]

    def infer() -> Any:
        function(*pointers)
        return images, output  # kept alive as long as the step is

    infer()
    return infer, output.copy(), {"lines": lines_of_code(source.read_text())}


def emx(case: dict[str, Any], model: str) -> tuple[Callable[[], Any], np.ndarray, dict[str, Any]]:
    """Run the C of emx-onnx-cgen, which reads its weights from a file beside it."""
    folder = Path(case["folder"]) / f"emx{case['batch']}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "emx_onnx_cgen", "compile", model, str(folder / "net.c")]
    _run([*command, "--model-name", "model", "--large-weight-threshold", "1"], stdout=subprocess.DEVNULL)

    def load(library: Any) -> None:
        library.model_load.restype = ctypes.c_bool
        if not library.model_load(str(folder / "model.bin").encode()):
            raise RuntimeError("emx-onnx-cgen's C cannot read its weights")

    return _ready(case, model, folder / "net.c", "model", load)


def onnx2c(case: dict[str, Any], model: str) -> tuple[Callable[[], Any], np.ndarray, dict[str, Any]]:
    """Run the C of onnx2c, which writes it, weights included, to standard output."""
    source = Path(case["folder"]) / f"onnx2c{case['batch']}.c"
    with source.open("w") as file:
        _run(["onnx2c", model], stdout=file)
    return _ready(case, model, source, "entry")
