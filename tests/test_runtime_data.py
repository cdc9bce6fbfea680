"""Digits, image preparation, data sets and their order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphc_runtime.data import (
    Dataset,
    Images,
    as_images,
    load_digits,
    shuffled_order,
    split,
    split_digits,
)
from graphc_runtime.errors import DataError, RangeError, ShapeError, UnknownNameError


def test_the_digits_are_the_published_ones() -> None:
    images, labels = load_digits()
    assert (images.shape, images.dtype.name, images.max()) == ((1797, 8, 8), "uint8", 16)
    assert (labels.shape, labels.dtype.name) == ((1797,), "int32")
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    content = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes())
    assert content.hexdigest() == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_a_fifth_of_each_digit_is_held_out_reproducibly() -> None:
    images, labels = load_digits()
    first = split_digits(seed=3)
    assert (len(first.train_labels), len(first.test_labels), first.maximum) == (1438, 359, 16.0)
    assert np.all(np.abs(np.bincount(first.test_labels) - np.bincount(labels) / 5) < 1)
    # Nothing is lost and nothing is on both sides.
    both = np.concatenate([first.train_images, first.test_images]).reshape(-1, 64)
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(images.reshape(-1, 64), axis=0))
    again, other = split_digits(seed=3), split_digits(seed=4)
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert not np.array_equal(first.test_images, other.test_images)


@pytest.mark.parametrize("held_out", [0.0, 1.0, 1e-9, float("nan")])
def test_a_split_with_an_empty_part_is_refused(held_out: float) -> None:
    with pytest.raises(RangeError):
        split(np.zeros((9, 2, 2), np.uint8), np.zeros(9, np.int64), held_out=held_out)


def test_a_split_needs_one_label_an_image() -> None:
    with pytest.raises(DataError, match="one integer label"):
        split(np.zeros((9, 2, 2), np.uint8), np.zeros(8, np.int64))


def test_digits_are_enlarged_four_times_and_normalised() -> None:
    images, _ = load_digits()
    prepared = as_images(images, maximum=16)
    assert (prepared.shape, prepared.dtype.name) == ((1797, 1, 32, 32), "float32")
    expected = np.repeat(np.repeat(images, 4, axis=1), 4, axis=2) * (1.275 / 16) - 0.1
    np.testing.assert_allclose(prepared[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 32), (8, 8, 28), (3, 5, 32), (5, 5, 6)])
def test_images_are_centred_on_a_canvas_of_background(height: int, width: int, size: int) -> None:
    images = np.full((2, height, width), 255, np.uint8)
    canvas = as_images(images, size)[1, 0]
    factor = min(size // height, size // width)
    top, left = (size - factor * height) // 2, (size - factor * width) // 2
    inner = canvas[top : top + factor * height, left : left + factor * width]
    np.testing.assert_allclose(inner, 1.175, atol=1e-6)
    outside = size * size - inner.size
    assert np.count_nonzero(canvas == np.float32(-0.1)) == outside
    assert abs((size - factor * height - top) - top) <= 1


def test_the_image_buffer_is_reused_and_rewritten_border_included() -> None:
    transform = Images(size=8)
    buffer = np.full((3, 1, 8, 8), np.nan, np.float32)
    images = np.arange(3 * 36, dtype=np.uint8).reshape(3, 6, 6)
    assert transform(images, buffer) is buffer
    np.testing.assert_array_equal(buffer, transform(images, None))
    with pytest.raises(ShapeError, match="buffer"):
        transform(images, buffer[:2])


def test_unsuitable_images_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        as_images(np.zeros((1, 40, 8), np.uint8))
    with pytest.raises(DataError, match=r"\(n, h, w\)"):
        as_images(np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"\(n, h, w\)"):
        as_images(np.zeros((1, 8, 8), np.complex64))
    with pytest.raises(DataError, match="up to 16, got 17"):
        as_images(np.full((1, 8, 8), 17, np.uint8), maximum=16)
    impossible: list[dict[str, Any]] = [{"size": 0}, {"maximum": 0.0}]
    for options in impossible:
        with pytest.raises(RangeError):
            Images(**options)


def table(count: int = 10) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3), np.arange(count, dtype=np.int32)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 5, 10, 11])
def test_batches_cover_the_data_in_the_given_order(batch: int, drop_last: bool) -> None:
    x, y = table()
    data = Dataset(x=x, y=y)
    for order in (None, shuffled_order(10, 1, 2)):
        seen = [{k: v.copy() for k, v in b.items()} for b in data.batches(batch, order, drop_last=drop_last)]
        assert len(seen) == data.steps(batch, drop_last=drop_last)
        expected = (np.arange(10) if order is None else order)[: 10 // batch * batch if drop_last else 10]
        rows = [b["y"] for b in seen]
        np.testing.assert_array_equal(np.concatenate(rows) if rows else [], y[expected])
        for part in seen:
            np.testing.assert_array_equal(part["x"], x[part["y"]])
        late = [b["y"].copy() for b in data.batches(batch, order, start=2, drop_last=drop_last)]
        assert [a.tolist() for a in late] == [b["y"].tolist() for b in seen[2:]]


def test_a_batch_in_stored_order_is_a_view_and_a_shuffled_one_reuses_its_memory() -> None:
    x, y = table()
    data = Dataset(x=x, y=y)
    assert all(np.shares_memory(b["x"], x) for b in data.batches(4))
    addresses = {b["x"].ctypes.data for b in data.batches(4, shuffled_order(10, 0, 0))}
    assert len(addresses) == 1
    with pytest.raises(RangeError, match="0 to 9"):
        next(data.batches(4, np.array([3, 10])))
    with pytest.raises(RangeError, match="0 to 9"):
        next(data.batches(4, np.array([-1, 3])))


@pytest.mark.parametrize("kind", ["strided", "fortran", "big-endian", "memmap", "big-endian memmap"])
def test_any_memory_layout_gives_the_same_batches(tmp_path: Path, kind: str) -> None:
    x, _ = table(20)
    stored: npt.NDArray[Any]
    if kind == "strided":
        stored = np.repeat(x, 2, axis=1)[:, ::2]
    elif kind == "fortran":
        stored = np.asfortranarray(x)
    elif kind == "big-endian":
        stored = x.astype(">f4")
    else:
        stored = np.memmap(tmp_path / "x", dtype=">f4" if "big" in kind else "<f4", mode="w+", shape=x.shape)
        stored[...] = x
    order = shuffled_order(20, 5, 0)
    parts = [b["x"].copy() for b in Dataset(x=stored).batches(6, order)]
    np.testing.assert_array_equal(np.concatenate(parts), x[order])


def test_transforms_get_their_buffer_back_but_never_the_data() -> None:
    x, y = table()
    buffers: list[bool] = []

    def double(batch: npt.NDArray[Any], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        buffers.append(out is not None)
        doubled: npt.NDArray[Any] = np.multiply(batch, 2, out=out)
        return doubled

    def untouched(batch: npt.NDArray[Any], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        assert out is None
        return batch

    data = Dataset(x=x, y=y, transform={"x": double, "y": untouched})
    got = [(b["x"].copy(), b["y"].copy()) for b in data.batches(4)]
    np.testing.assert_array_equal(np.concatenate([a for a, _ in got]), 2 * x)
    np.testing.assert_array_equal(np.concatenate([b for _, b in got]), y)
    assert buffers == [False, True, True]
    assert x[9, 2] == 29


def test_two_passes_at_once_do_not_share_buffers() -> None:
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    data = Dataset(x=images, transform={"x": Images(size=4)})
    for one, two in zip(data.batches(2), data.batches(2, np.arange(6)[::-1].copy()), strict=True):
        assert not np.shares_memory(one["x"], two["x"])


def test_unsuitable_arrays_are_refused() -> None:
    x, y = table()
    with pytest.raises(DataError, match="'x' has 10, 'y' has 9"):
        Dataset(x=x, y=y[:9])
    with pytest.raises(DataError, match="got none"):
        Dataset()
    with pytest.raises(DataError, match="'x' has 0"):
        Dataset(x=x[:0])
    with pytest.raises(DataError, match="'x' to hold numbers"):
        Dataset(x=np.array(["a"]))
    with pytest.raises(DataError, match="'x' to hold numbers"):
        Dataset(x=np.float32(3))
    with pytest.raises(UnknownNameError, match="transform of 'z'"):
        Dataset(x=x, transform={"z": Images()})
    with pytest.raises(RangeError, match="batch >= 1"):
        next(Dataset(x=x).batches(0))
    with pytest.raises(DataError, match="transform of 'x'"):
        next(Dataset(x=x, transform={"x": lambda batch, out: batch[:1]}).batches(4))
    assert repr(Dataset(x=x, y=y)) == "Dataset(x: float32 (10, 3), y: int32 (10,))"


def test_orders_are_permutations_that_depend_on_seed_and_stream_and_stay_the_same() -> None:
    orders = [shuffled_order(1000, seed, stream) for seed in (0, 1, 2**64 - 1) for stream in (0, 1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 9
    np.testing.assert_array_equal(orders[0], shuffled_order(1000, 0, 0))
    # Checkpoints rely on this order from release to release.
    assert shuffled_order(10, 1, 2).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]
    for seed in (-1, 2**64):
        with pytest.raises(RangeError, match="seed"):
            shuffled_order(3, seed, 0)
