"""MNIST's IDX format: round trips, and every way in which a file can be damaged."""

from __future__ import annotations

import gzip
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphc_runtime.data import load_idx_folder, read_idx
from graphc_runtime.errors import DataError

_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: npt.NDArray[Any]) -> bytes:
    header = struct.pack(">HBB", 0, _CODES[array.dtype.str[1:]], array.ndim)
    dimensions = struct.pack(f">{array.ndim}I", *array.shape)
    return header + dimensions + array.astype(array.dtype.newbyteorder(">")).tobytes()


def sample(dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.random.default_rng(7).integers(0, 120, shape).astype(dtype)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", list(_CODES))
@pytest.mark.parametrize("shape", [(5,), (3, 4, 6), (2, 1, 3, 2), (0,), (0, 28, 28)])
def test_what_was_written_is_read(tmp_path: Path, dtype: str, shape: tuple[int, ...], packed: bool) -> None:
    array = sample(dtype, shape)
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    found = read_idx(path)
    assert found.dtype.newbyteorder("=") == array.dtype
    np.testing.assert_array_equal(found, array)
    assert isinstance(found, np.memmap) == (not packed and 0 not in shape)
    if 0 not in shape:
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, packed: bool) -> None:
    whole = idx_bytes(sample("i2", (3, 2, 2)))
    path = tmp_path / "cut-ubyte"
    for length in range(len(whole)):
        path.write_bytes(gzip.compress(whole[:length]) if packed else whole[:length])
        with pytest.raises(DataError, match="cut-ubyte") as caught:
            read_idx(path)
        message = str(caught.value)
        if length >= 16:
            assert f"expected {len(whole)} bytes, found {length}" in message
            assert "3 x 2 x 2 values of type int16" in message
        else:
            assert "truncated" in message


def test_a_gzip_stream_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    stream = gzip.compress(idx_bytes(sample("u1", (3, 5, 5))))
    path = tmp_path / "cut.gz"
    for length in range(len(stream)):
        path.write_bytes(stream[:length])
        with pytest.raises(DataError, match=r"cut\.gz"):
            read_idx(path)


@pytest.mark.parametrize("packed", [False, True])
def test_trailing_bytes_are_refused(tmp_path: Path, packed: bool) -> None:
    content = idx_bytes(sample("u1", (3, 2))) + b"\0"
    path = tmp_path / "long"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=r"expected 18 bytes, found (19|more)"):
        read_idx(path)


def test_a_damaged_gzip_stream_is_refused(tmp_path: Path) -> None:
    stream = bytearray(gzip.compress(idx_bytes(sample("u1", (9, 8, 8)))))
    path = tmp_path / "damaged.gz"
    for position in (len(stream) // 2, len(stream) - 8, len(stream) - 1):  # content, checksum, length
        damaged = bytearray(stream)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.gz"):
            read_idx(path)
    path.write_bytes(stream + b"rubbish")
    with pytest.raises(DataError, match=r"damaged\.gz"):
        read_idx(path)


@pytest.mark.parametrize("magic", [b"\x01\0\x08\x01", b"\0\x01\x08\x01", b"\0\0\x0a\x01", b"\0\0\x08\0"])
def test_a_wrong_magic_number_is_refused_and_shown(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "odd"
    path.write_bytes(magic + struct.pack(">I", 3) + b"abc")
    with pytest.raises(DataError, match=f"not an IDX file.*{magic.hex(' ')}"):
        read_idx(path)
    path.write_bytes(b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"a")
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(2**20, 2**20), (2**32 - 1,) * 4, (2**31, 2**31, 4)])
def test_a_header_that_claims_the_world_allocates_nothing(
    tmp_path: Path, shape: tuple[int, ...], packed: bool
) -> None:
    content = struct.pack(f">HBB{len(shape)}I", 0, 0x08, len(shape), *shape) + b"abc"
    path = tmp_path / "huge"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=f"expected {4 + 4 * len(shape) + math.prod(shape)} bytes"):
        read_idx(path)


def test_an_empty_array_too_big_for_numpy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(struct.pack(">HBB4I", 0, 0x08, 4, 0, *[2**32 - 1] * 3))
    with pytest.raises(DataError, match="cannot hold"):
        read_idx(path)


def test_a_zip_bomb_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">HBBI", 0, 0x08, 1, 10))
        for _ in range(16):
            file.write(bytes(1 << 24))  # 256 MiB unpacked, 1 MiB on disk
    tracemalloc.start()
    with pytest.raises(DataError, match="expected 18 bytes, found more"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 0x08, 1, 1 << 24) + bytes(1 << 24)))
    with pytest.raises(DataError, match="more than the limit of 1000000"):
        read_idx(path, limit=1_000_000)
    assert len(read_idx(path)) == 1 << 24


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_idx(path)


def write_folder(folder: Path, separator: str = "-", suffix: str = "") -> dict[str, npt.NDArray[Any]]:
    arrays = {
        f"train-images{separator}idx3-ubyte": sample("u1", (7, 4, 4)),
        f"train-labels{separator}idx1-ubyte": sample("u1", (7,)),
        f"t10k-images{separator}idx3-ubyte": sample("u1", (3, 4, 4)),
        f"t10k-labels{separator}idx1-ubyte": sample("u1", (3,)),
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_is_read_under_all_usual_names(tmp_path: Path, separator: str, suffix: str) -> None:
    arrays = list(write_folder(tmp_path, separator, suffix).values())
    split = load_idx_folder(tmp_path)
    for found, expected in zip(
        (split.train_images, split.train_labels, split.test_images, split.test_labels), arrays, strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert split.train_labels.dtype == np.int32
    train, test = split.datasets(size=8)
    assert (len(train), len(test)) == (7, 3)
    batch = next(train.batches(4))
    assert batch["x"].shape == (4, 1, 8, 8)
    assert batch["x"].dtype == np.float32


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"lacks train-labels-idx1-ubyte.*, t10k-images-idx3-ubyte"):
        load_idx_folder(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load_idx_folder(tmp_path / "nowhere")


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(sample("u1", (6,))))
    with pytest.raises(DataError, match=r"train-labels.*expected 7 uint8 labels"):
        load_idx_folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(sample("i4", (3, 4, 4))))
    with pytest.raises(DataError, match=r"t10k-images.*expected uint8 images"):
        load_idx_folder(tmp_path)
