"""Writes a model as a file, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from graphc.errors import GraphError
from graphc.onnx.package import onnx_package

INLINE = 2**30  # bytes of weights; a file of more than 2 GiB cannot be read at once


def save(model: Any, path: Path) -> Path:
    """Check a model and write it; large weights go into a second file beside it, ``NAME.data``.

    Raises:
        GraphError: the file cannot be written; what was there before is as it was then.
    """
    onnx = onnx_package()
    apart = sum(len(t.raw_data) for t in model.graph.initializer) > INLINE
    if not apart:
        onnx.checker.check_model(model, full_check=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise GraphError(f"to_onnx: cannot write {path}: {error}") from None
    made, data = folder / path.name, f"{path.name}.data"
    try:
        onnx.save_model(model, made, save_as_external_data=apart, location=data if apart else None)
        if apart:
            onnx.checker.check_model(str(made), full_check=True)
            os.replace(folder / data, path.with_name(data))
        os.replace(made, path)
    except OSError as error:
        raise GraphError(f"to_onnx: cannot write {path}: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path
