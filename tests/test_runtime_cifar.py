"""CIFAR-10's binary files, written byte by byte, and every way in which one can be damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc_runtime.data import Dataset, Images, load_cifar10_folder, load_image_folder, read_cifar10
from graphc_runtime.errors import DataError

RECORD = 3073
FILES = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]


def pixel(image: int, channel: int, row: int, column: int) -> int:
    """Return what the files below hold there: distinct for neighbours in every direction."""
    return (7 * image + 101 * channel + 5 * row + 3 * column) % 256


def record(image: int, label: int) -> bytes:
    """Return a record as the format says: the label, then red, green and blue, each row by row."""
    content = bytearray([label])
    for channel in range(3):
        for row in range(32):
            content += bytes(pixel(image, channel, row, column) for column in range(32))
    return bytes(content)


def write_folder(folder: Path, suffix: str = "") -> None:
    """Write the six files; image k, counted through all of them, has label k modulo 10."""
    image = 0
    for name, count in zip(FILES, (3, 2, 2, 2, 2, 4), strict=True):
        content = b"".join(record(k, k % 10) for k in range(image, image + count))
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
        image += count


@pytest.mark.parametrize("packed", [False, True])
def test_pixels_and_labels_are_where_the_format_says(tmp_path: Path, packed: bool) -> None:
    content = record(0, 9) + record(1, 0) + record(2, 4)
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(content) if packed else content)
    images, labels = read_cifar10(path)
    assert (images.shape, images.dtype.name) == ((3, 3, 32, 32), "uint8")
    assert (labels.tolist(), labels.dtype.name) == ([9, 0, 4], "int32")
    for place in np.ndindex(images.shape):
        assert images[place] == pixel(*place)
    assert isinstance(images, np.memmap) == (not packed)
    with pytest.raises(ValueError, match="read-only"):
        images[...] = 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [0, 1, RECORD - 1, RECORD + 1, 2 * RECORD - 1, 2 * RECORD + 3072])
def test_a_cut_file_is_refused_with_its_sizes(tmp_path: Path, packed: bool, length: int) -> None:
    content = (record(0, 1) * 3)[:length]
    path = tmp_path / "cut.bin"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=r"cut\.bin is truncated") as caught:
        read_cifar10(path)
    records, rest = divmod(length, RECORD)
    assert "records of 3073 bytes" in str(caught.value)
    assert f"found {length} bytes, which are {records} records and {rest} bytes" in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("label", [10, 255])
def test_a_label_out_of_range_is_refused_with_its_place(tmp_path: Path, packed: bool, label: int) -> None:
    content = record(0, 9) + record(1, 0) + record(2, label) + record(3, label)
    path = tmp_path / "odd.bin"
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = rf"odd\.bin: expected labels from 0 to 9, found {label} in record 2 and 2 such"
    with pytest.raises(DataError, match=expected):
        read_cifar10(path)


def test_a_damaged_gzip_stream_is_refused(tmp_path: Path) -> None:
    stream = gzip.compress(record(0, 1))
    path = tmp_path / "damaged.gz"
    for length in (3, 10, 30, len(stream) // 2, len(stream) - 1):
        path.write_bytes(stream[:length])
        with pytest.raises(DataError, match=r"cannot read .*damaged\.gz"):
            read_cifar10(path)
    for position in (len(stream) // 2, len(stream) - 8, len(stream) - 1):  # content, checksum, length
        damaged = bytearray(stream)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.gz"):
            read_cifar10(path)


def test_a_gzip_stream_is_unpacked_no_further_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(record(0, 1) * 4))
    with pytest.raises(DataError, match="more than the limit of 12291 bytes"):
        read_cifar10(path, limit=4 * RECORD - 1)
    assert len(read_cifar10(path, limit=4 * RECORD)[1]) == 4


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=f"cannot read {path}"):
            read_cifar10(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("load", [load_cifar10_folder, load_image_folder])
def test_a_folder_is_one_training_set_and_one_test_set(tmp_path: Path, load: Any, suffix: str) -> None:
    write_folder(tmp_path, suffix)
    parts = load(tmp_path)
    assert parts.maximum == 255.0
    assert (parts.train_images.shape, parts.test_images.shape) == ((11, 3, 32, 32), (4, 3, 32, 32))
    assert parts.train_labels.tolist() == [*range(10), 0]
    assert parts.test_labels.tolist() == [1, 2, 3, 4]
    assert parts.train_labels.dtype == parts.test_labels.dtype == np.int32
    for image in range(15):
        found = parts.train_images[image] if image < 11 else parts.test_images[image - 11]
        assert [found[place] for place in ((0, 0, 0), (1, 0, 31), (2, 31, 0))] == [
            pixel(image, 0, 0, 0), pixel(image, 1, 0, 31), pixel(image, 2, 31, 0)
        ]  # fmt: skip


def test_batches_keep_the_channels(tmp_path: Path) -> None:
    """The test images lie in the file with labels in between; each channel is prepared like a grey image."""
    write_folder(tmp_path)
    parts = load_cifar10_folder(tmp_path)
    train, test = parts.datasets(size=34)
    (batch,) = test.batches(4)
    assert (batch["x"].shape, batch["x"].dtype.name) == ((4, 3, 34, 34), "float32")
    grey = Dataset(x=parts.test_images[:, 2], transform={"x": Images(34)})
    np.testing.assert_array_equal(batch["x"][:, 2:], next(grey.batches(4))["x"])
    assert [len(part["x"]) for part in train.batches(4, np.arange(11)[::-1].copy())] == [4, 4, 3]


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for name in ("data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).unlink()
    for load in (load_cifar10_folder, load_image_folder):
        with pytest.raises(DataError, match=r"lacks data_batch_2\.bin\[\.gz\], test_batch\.bin\[\.gz\]$"):
            load(tmp_path)
        with pytest.raises(DataError, match="nowhere is not a folder"):
            load(tmp_path / "nowhere")


def test_one_bad_file_spoils_the_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with open(tmp_path / "data_batch_4.bin", "ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"data_batch_4\.bin.*found 6147 bytes"):
        load_cifar10_folder(tmp_path)


def test_the_files_decide_how_a_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither IDX files \(train-images-.*data_batch_1\.bin"):
        load_image_folder(tmp_path)
    images = struct.pack(">HBB3I", 0, 0x08, 3, 2, 4, 4) + bytes(32)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte"):
        load_image_folder(tmp_path)
    labels = struct.pack(">HBB1I", 0, 0x08, 1, 2) + b"\1\2"
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(images)
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    assert load_image_folder(tmp_path).train_images.shape == (2, 4, 4)
    write_folder(tmp_path)
    with pytest.raises(DataError, match="a folder of its own"):
        load_image_folder(tmp_path)
