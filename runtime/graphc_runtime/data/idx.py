"""MNIST's IDX files, plain or gzipped, read with every number in them checked first.

The format: two zero bytes, a byte for the type, a byte for the number of dimensions, each dimension as a
big-endian uint32, then the values, big-endian, the last dimension running fastest.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from graphc_runtime.data.dataset import Split
from graphc_runtime.errors import DataError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 32  # NumPy's limit before version 2
_CHUNK = 1 << 20
# DEFLATE's best ratio is 1032 to 1, so a header that announces more than that is known to lie.
_MAX_RATIO = 1032


def read_idx(path: str | os.PathLike[str], *, limit: int = 1 << 32) -> npt.NDArray[Any]:
    """Return the array in the IDX file ``path``: read-only and memory-mapped, or unpacked if gzipped.

    Values of several bytes keep the file's big-endian dtype, so that a mapping stays a mapping.

    Units: ``limit`` is the most bytes that a gzipped file may unpack to; memory grows only with what has
    really been unpacked, never with what a header promises.

    Raises: DataError where the file is missing, no IDX, truncated, or longer than its header announces.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            # The content decides, not the suffix: browsers unpack downloads and keep the name.
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _read_packed(unpacked, name, size * _MAX_RATIO, limit)
            return _map_plain(file, name, size)
    except (OSError, EOFError, zlib.error) as error:
        # gzip reports a truncated file as EOFError, a wrong checksum as an OSError, garbage as zlib.error.
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error


def load_idx_folder(folder: str | os.PathLike[str]) -> Split:
    """Return MNIST (or a set of the same shape, such as Fashion-MNIST) from its four files in ``folder``.

    Each may be called ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, with or without ``.gz``.
    Images stay uint8, memory-mapped where the file is plain; labels become int32.

    Raises: DataError naming every missing file, or where images and labels do not belong together.
    """
    base = Path(folder)
    if not base.is_dir():
        raise DataError(f"{base} is not a folder")
    found, missing = [], []
    for stem, rank in (("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1)):
        candidates = [base / f"{stem}{dot}idx{rank}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
        existing = [candidate for candidate in candidates if candidate.is_file()]
        found += existing[:1]
        if not existing:
            missing.append(f"{stem}-idx{rank}-ubyte[.gz]")
    if missing:
        raise DataError(f"{base} lacks {', '.join(missing)}")
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in found)
    for path, images in ((found[0], train_images), (found[2], test_images)):
        if images.ndim != 3 or images.dtype != np.uint8:
            raise DataError(f"{path}: expected uint8 images (n, h, w), got {images.dtype} {images.shape}")
    pairs = ((found[1], train_labels, train_images), (found[3], test_labels, test_images))
    for path, labels, images in pairs:
        if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
            raise DataError(
                f"{path}: expected {len(images)} uint8 labels, got {labels.dtype} of shape {labels.shape}"
            )
    return Split(train_images, train_labels.astype(np.int32), test_images, test_labels.astype(np.int32))


def _read_header(stream: IO[bytes] | gzip.GzipFile, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return dtype, shape and the length in bytes of the header at the start of ``stream``."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(f"{name} is truncated: expected a magic number of 4 bytes, found {len(magic)}")
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not 1 <= magic[3] <= _MAX_DIMENSIONS:
        raise DataError(
            f"{name} is not an IDX file: expected two zero bytes, a type from 08 to 0e and "
            f"1 to {_MAX_DIMENSIONS} dimensions, found the bytes {magic.hex(' ')}"
        )
    dimensions = stream.read(4 * magic[3])
    if len(dimensions) < 4 * magic[3]:
        raise DataError(
            f"{name} is truncated: expected a header of {4 + 4 * magic[3]} bytes, found {4 + len(dimensions)}"
        )
    shape = tuple(np.frombuffer(dimensions, ">u4").tolist())
    return np.dtype(_DTYPES[magic[2]]), shape, 4 + 4 * magic[3]


def _map_plain(file: IO[bytes], name: str, size: int) -> npt.NDArray[Any]:
    dtype, shape, offset = _read_header(file, name)
    # Python's integers do not overflow, so 2^40 elements are a number like any other here.
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise _wrong_length(name, dtype, shape, expected, str(size))
    if 0 in shape:
        return _empty(name, dtype, shape)  # there is nothing to map, and mmap refuses that
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)


def _read_packed(stream: gzip.GzipFile, name: str, most: int, limit: int) -> npt.NDArray[Any]:
    dtype, shape, offset = _read_header(stream, name)
    length = math.prod(shape) * dtype.itemsize
    if offset + length > most:
        raise _wrong_length(name, dtype, shape, offset + length, f"at most {most}")
    if offset + length > limit:
        raise DataError(f"{name} unpacks to {offset + length} bytes, more than the limit of {limit}")
    content = bytearray()
    while len(content) < length:
        chunk = stream.read(min(_CHUNK, length - len(content)))
        if not chunk:
            raise _wrong_length(name, dtype, shape, offset + length, str(offset + len(content)))
        content += chunk
    # Reading on to the end is also what makes gzip compare its checksum.
    if stream.read(1):
        raise _wrong_length(name, dtype, shape, offset + length, "more")
    if 0 in shape:
        return _empty(name, dtype, shape)
    array = np.frombuffer(content, dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _empty(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        return np.empty(shape, dtype)
    except ValueError as error:  # NumPy leaves the zeros out when it judges whether a shape is too big
        raise DataError(f"{name}: cannot hold an array of shape {shape}: {error}") from error


def _wrong_length(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], expected: int, found: str
) -> DataError:
    sizes = " x ".join(map(str, shape))
    return DataError(
        f"{name}: its header announces {sizes} values of type {dtype.name}, so {expected} bytes in all; "
        f"expected {expected} bytes, found {found}"
    )
