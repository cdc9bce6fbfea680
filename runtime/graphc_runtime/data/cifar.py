"""CIFAR-10's binary files, plain or gzipped, read with every size and label checked first.

The format: records of 3073 bytes without a header, a label from 0 to 9, then 32 x 32 pixels in red, as many
in green and in blue, row by row.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the file layout that
its data set describes as "binary version".
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphc_runtime.data.dataset import Split
from graphc_runtime.errors import DataError

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_CLASSES = 10
_TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_CHUNK = 1 << 20


def read_cifar10(
    path: str | os.PathLike[str], *, limit: int = 1 << 28
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return the images in the file ``path``, read-only and memory-mapped or unpacked if gzipped, and labels.

    Shapes: images uint8 (n, 3, 32, 32), labels int32 (n,).

    Units: ``limit`` is the most bytes that a gzipped file may unpack to; the published files have 30,730,000.

    Raises: DataError where the file is missing, no whole number of records, or a label is not 0 to 9.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            # The content decides, not the suffix. A plain file may begin with the bytes 1f 8b only where its
            # first label is 31, which is none.
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            records: npt.NDArray[np.uint8]
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    content = _unpack(unpacked, name, limit)
                records = np.frombuffer(content, np.uint8).reshape(_count(name, len(content)), _RECORD)
                records.flags.writeable = False
            else:
                count = _count(name, os.fstat(file.fileno()).st_size)
                records = np.memmap(file, dtype=np.uint8, mode="r", shape=(count, _RECORD))
    except (OSError, EOFError, zlib.error) as error:
        # gzip reports a truncated file as EOFError, a wrong checksum as an OSError, garbage as zlib.error.
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    labels = records[:, 0].astype(np.int32)
    wrong = np.flatnonzero(labels >= _CLASSES)
    if wrong.size:
        raise DataError(
            f"{name}: expected labels from 0 to {_CLASSES - 1}, found {labels[wrong[0]]} in record {wrong[0]} "
            f"and {wrong.size} such labels in all; is it CIFAR-10's binary version?"
        )
    return records[:, 1:].reshape(-1, *_SHAPE), np.asarray(labels)


def load_cifar10_folder(folder: str | os.PathLike[str]) -> Split:
    """Return CIFAR-10 from its six files in ``folder``, with or without ``.gz``: five to train with, one to test.

    Images stay uint8 (n, 3, 32, 32); the five files become one array in memory. Labels are int32.

    Raises: DataError naming every missing file, or as ``read_cifar10``.
    """
    base = Path(folder)
    if not base.is_dir():
        raise DataError(f"{base} is not a folder")
    found, missing = [], []
    for name in (*_TRAINING, _TEST):
        existing = [path for path in (base / name, base / f"{name}.gz") if path.is_file()]
        found += existing[:1]
        if not existing:
            missing.append(f"{name}[.gz]")
    if missing:
        raise DataError(f"{base} lacks {', '.join(missing)}")
    *training, (test_images, test_labels) = (read_cifar10(path) for path in found)
    return Split(
        np.concatenate([images for images, _ in training]),
        np.concatenate([labels for _, labels in training]),
        test_images,
        test_labels,
    )


def _count(name: str, size: int) -> int:
    """Return the number of records in ``size`` bytes."""
    count, rest = divmod(size, _RECORD)
    if rest or not count:
        raise DataError(
            f"{name} is truncated or no CIFAR-10 file: expected records of {_RECORD} bytes (a label and "
            f"3 x 32 x 32 pixels), found {size} bytes, which are {count} records and {rest} bytes"
        )
    return count


def _unpack(stream: gzip.GzipFile, name: str, limit: int) -> bytearray:
    """Return what the stream holds, read to its end, where gzip compares its checksum."""
    content = bytearray()
    while chunk := stream.read(_CHUNK):
        content += chunk
        if len(content) > limit:
            raise DataError(f"{name} unpacks to more than the limit of {limit} bytes")
    return content
