"""Tensors and strings on disk in the safetensors format, written so that a reader never sees half a file.

The new content goes to a temporary file in the same folder, is flushed to the disk, and then takes the
final name in one ``os.replace``. Whatever goes wrong before that (a full disk, Ctrl-C, a lost machine)
leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphc_runtime.errors import CheckpointError, GraphcError

# What safetensors can store of NumPy's dtypes. Its own complaint does not say which tensor it means.
_DTYPES = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64"),
    }
)
_LENGTH_BYTES = 8  # the file begins with the header's length: a little-endian uint64
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_LEFTOVER_SECONDS = 3600.0  # a temporary file that nobody has written to for this long has lost its writer
_COUNTERS = ("graphc.step", "graphc.seed")  # a training state's own, beside weights and the optimizer's slots
_MISSING = "saving and loading needs safetensors, which is not installed: pip install graphc[train]"


def save_state(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """``path`` holds exactly ``tensors`` and ``metadata``, or, after an exception, what it held before.

    Equal arguments give equal bytes. Needs memory for one copy of the tensors while it runs.

    Raises: CheckpointError where a tensor cannot be stored or the file cannot be written.
    """
    # A symbolic link stays one: the file that it points to is replaced.
    target = Path(os.path.realpath(path))
    header, body = _serialise(path, tensors, metadata or {})
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
    _remove_leftovers(target)
    try:
        # "x" refuses to write through a link that somebody planted, and gives the user's usual permissions.
        with open(temporary, "xb") as file:
            file.write(header)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error
    finally:
        # After the replacement there is nothing under this name.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return the tensors, as arrays of the caller's own, and the metadata stored in ``path``.

    Raises: CheckpointError where the file is missing, truncated, longer than announced or of another format.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise GraphcError(_MISSING) from error
    _check_file(path)
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no iterator)
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        # TypeError and KeyError: dtypes that NumPy lacks, such as bfloat16.
        raise CheckpointError(f"cannot read {os.fspath(path)}: {error}") from error


def check_fit(
    what: str,
    tensors: Mapping[str, Any],
    required: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]],
    strict: bool = True,
) -> None:
    """Every tensor is an array of numbers, and of the shape that ``required`` or ``optional`` give for its name.

    ``strict`` asks for all that are required and refuses names that neither of them knows, but for PyTorch's
    counts of the batches that a batch norm has seen.

    Raises: CheckpointError that lists every missing, unexpected and wrongly shaped tensor of ``what``.
    """
    shapes = {**required, **optional}
    problems = [f"missing {name}" for name in required if strict and name not in tensors]
    problems += [
        f"unexpected {name}"
        for name in tensors
        if strict and name not in shapes and name not in _COUNTERS and not is_batch_count(name)
    ]
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            got = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            problems.append(f"{name}: expected an array of numbers, got {got}")
        elif name in _COUNTERS:
            if value.size != 1 or value.dtype.kind not in "iu" or value.min() < 0:
                problems.append(f"{name}: expected one non-negative integer, got {value.dtype} {value.shape}")
        elif name in shapes and value.shape != shapes[name]:
            problems.append(f"{name}: expected shape {shapes[name]}, got {value.shape}")
    if problems:
        raise CheckpointError("\n  ".join([f"the tensors do not fit {what}:", *problems]))


def is_batch_count(name: str) -> bool:
    """Whether a tensor is one that PyTorch's batch norms store and graphc has no use for."""
    return name.split(".")[-1] == "num_batches_tracked"


def _serialise(
    path: str | os.PathLike[str], tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]
) -> tuple[bytes, memoryview]:
    """Return the file's first part (length and header) and its second (the tensors' bytes)."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save
    except ImportError as error:
        raise GraphcError(_MISSING) from error
    contiguous = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype.name not in _DTYPES:
            raise CheckpointError(f"cannot write {os.fspath(path)}: tensor '{name}' has dtype {array.dtype}")
        # safetensors reads the bytes from the start on, whatever the strides: a transposed view would be
        # stored in the wrong order. (np.ascontiguousarray would turn a scalar into a vector.)
        contiguous[name] = np.asarray(array, order="C")
    try:
        blob = save(contiguous, metadata=dict(metadata) or None)
    except (SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {os.fspath(path)}: {error}") from error
    body_start = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
    # safetensors writes metadata in the order of a randomised hash map; sorted, equal states are equal files.
    content = json.loads(blob[_LENGTH_BYTES:body_start])
    if "__metadata__" in content:
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start on a multiple of 8 bytes
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, memoryview(blob)[body_start:]


def _check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is not as long as its header announces, saying what it is instead."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH_BYTES + 1)
            if len(start) <= _LENGTH_BYTES:
                raise CheckpointError(f"{name} is truncated: {size} bytes cannot hold a safetensors header")
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            if start[_LENGTH_BYTES:] != b"{" or length > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{name} is not a safetensors file: it begins with {start!r}")
            if length > size - _LENGTH_BYTES:
                raise CheckpointError(
                    f"{name} is truncated: its header takes {_LENGTH_BYTES + length} bytes, "
                    f"the file has {size}"
                )
            file.seek(_LENGTH_BYTES)
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {name}: {error.strerror or error}") from error
    try:
        content = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in content.items() if key != "__metadata__"]
        expected = _LENGTH_BYTES + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{name} is not a safetensors file: its header is malformed") from error
    if size != expected:
        fault = "is truncated" if size < expected else "has trailing bytes"
        raise CheckpointError(f"{name} {fault}: its header announces {expected} bytes, the file has {size}")


def _remove_leftovers(target: Path) -> None:
    """Delete the temporary files that killed writers of ``target`` left long ago."""
    prefix, now = f".{target.name}.", time.time()
    # Housekeeping only: a folder that cannot be listed is reported by the write itself.
    with contextlib.suppress(OSError):
        for entry in target.parent.iterdir():
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if now - entry.stat().st_mtime > _LEFTOVER_SECONDS:
                        entry.unlink()


def _flush_folder(folder: Path) -> None:
    """Force the folder's new entry onto the disk, where the system can do so."""
    # Windows cannot open a folder and some network file systems cannot flush one; the file itself is safe.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
