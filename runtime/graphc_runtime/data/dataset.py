"""Named arrays handed out in mini-batches, and the reproducible orders in which that happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from graphc_runtime.data.images import Images
from graphc_runtime.errors import DataError, RangeError, UnknownNameError

Array: TypeAlias = npt.NDArray[Any]

# Key of the random order that ``split`` draws; the epochs of a training count up from 0.
_SPLIT_STREAM = 2**64 - 1


class Transform(Protocol):
    """What turns one array of a mini-batch into what the net reads, for example ``Images``."""

    def __call__(self, batch: Array, out: Array | None, /) -> Array:
        """Return the transformed ``batch`` (n, ...), with n examples again.

        ``out`` is None for the first batch of a pass, then the first n rows of what that call returned:
        memory to write the result into and return. A transform may ignore it and return a new array.
        """
        ...


class Dataset:
    """Arrays with one example a row, named as the net's inputs; none of them is copied or changed.

    ``Dataset(x=images, y=labels, transform={"x": Images(size=32)})``. A memory-mapped array stays on disk:
    a batch reads its own rows and nothing else.

    Raises: DataError where an array is no table of numbers, or they differ in their number of examples.
    """

    def __init__(self, *, transform: Mapping[str, Transform] | None = None, **arrays: npt.ArrayLike) -> None:
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self._transforms = dict(transform or {})
        lengths = {}
        for name, array in self._arrays.items():
            if array.ndim == 0 or array.dtype.kind not in "buif":
                raise DataError(
                    f"Dataset: expected '{name}' to hold numbers with one example a row, "
                    f"got {array.dtype} of shape {array.shape}"
                )
            lengths[name] = len(array)
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            listed = ", ".join(f"'{name}' has {length}" for name, length in lengths.items())
            raise DataError(f"Dataset: expected arrays with equally many examples, got {listed or 'none'}")
        for name in self._transforms:
            if name not in self._arrays:
                raise UnknownNameError(f"Dataset: transform of '{name}', but the arrays are {self.names}")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self._arrays.values())))

    def __repr__(self) -> str:
        """Return names, dtypes and shapes, not the values."""
        listed = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in self._arrays.items())
        return f"Dataset({listed})"

    @property
    def names(self) -> list[str]:
        """The names of the arrays, in the order given."""
        return list(self._arrays)

    @property
    def arrays(self) -> Mapping[str, Array]:
        """The arrays themselves, before any transform."""
        return dict(self._arrays)

    def steps(self, batch: int, *, drop_last: bool = False) -> int:
        """Return how many mini-batches one pass has."""
        return len(self) // batch if drop_last else -(-len(self) // batch)

    def batches(
        self,
        batch: int,
        order: npt.NDArray[np.integer[Any]] | None = None,
        *,
        start: int = 0,
        drop_last: bool = False,
    ) -> Iterator[dict[str, Array]]:
        """Yield mini-batches of ``batch`` examples in ``order`` (or as stored); the last may be smaller.

        A yielded array is valid until the next one is asked for: its memory is reused or the data set's own.

        Units: ``start`` counts the mini-batches to leave out at the beginning.
        Raises: RangeError where ``order`` names an example that does not exist.
        """
        if batch < 1 or start < 0:
            raise RangeError(f"batches: expected batch >= 1 and start >= 0, got {batch} and {start}")
        total = len(self) if order is None else len(order)
        if order is not None and total and not (order.min() >= 0 and order.max() < len(self)):
            raise RangeError(f"batches: expected an order of examples 0 to {len(self) - 1}")
        gathered: dict[str, Array] = {}
        transformed: dict[str, Array] = {}
        for first in range(start * batch, total, batch):
            last = min(first + batch, total)
            if drop_last and last - first < batch:
                return
            yield {
                name: self._transform(name, _rows(name, array, order, first, last, gathered), transformed)
                for name, array in self._arrays.items()
            }

    def _transform(self, name: str, rows: Array, buffers: dict[str, Array]) -> Array:
        transform = self._transforms.get(name)
        if transform is None:
            return rows
        buffer = buffers.get(name)
        result = transform(rows, None if buffer is None else buffer[: len(rows)])
        if result.ndim == 0 or len(result) != len(rows):
            raise DataError(f"the transform of '{name}' made {result.shape} of {len(rows)} examples")
        # A result that is a view of the data itself must never come back as memory to write into.
        if buffer is None and not np.may_share_memory(result, rows):
            buffers[name] = result
        return result


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images (n, h, w), or (n, c, h, w) with channels, some to train with and some held out.

    ``maximum`` is the pixel value of full ink. Labels are int32 (n,).
    """

    train_images: Array
    train_labels: npt.NDArray[np.int32]
    test_images: Array
    test_labels: npt.NDArray[np.int32]
    maximum: float = 255.0

    def datasets(self, size: int = 32, *, images: str = "x", labels: str = "y") -> tuple[Dataset, Dataset]:
        """Return the training and the test set, normalised batch by batch to float32 (n, c, size, size).

        ``images`` and ``labels`` are the names of the net's inputs.
        """
        transform = {images: Images(size, self.maximum)}
        train: dict[str, npt.ArrayLike] = {images: self.train_images, labels: self.train_labels}
        test: dict[str, npt.ArrayLike] = {images: self.test_images, labels: self.test_labels}
        return Dataset(transform=transform, **train), Dataset(transform=transform, **test)


def split(
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    maximum: float = 255.0,
) -> Split:
    """Return ``images`` with ``floor(held_out * n)`` of them set apart: of each class its share, within one.

    Equal seeds give equal splits; both parts keep the stored order.

    Raises: DataError where labels do not match images, RangeError where a part would be empty.
    """
    pixels, classes = np.asarray(images), np.asarray(labels)
    if classes.ndim != 1 or pixels.shape[:1] != classes.shape or classes.dtype.kind not in "ui":
        raise DataError(
            f"split: expected one integer label an image, "
            f"got {classes.dtype} {classes.shape} for {pixels.shape}"
        )
    count = len(classes)
    if not 0.0 < held_out < 1.0 or int(count * held_out) == 0:
        raise RangeError(f"split: expected a share that leaves no part empty, got {held_out} of {count}")
    # In a random order sorted by class, whoever takes n * held_out past the next integer is held out: that
    # spreads the held-out examples evenly, so over the classes in proportion.
    order = shuffled_order(count, seed, _SPLIT_STREAM)
    order = order[np.argsort(classes[order], kind="stable")]
    taken = np.diff(np.floor(np.arange(count + 1) * held_out)) > 0
    test = np.zeros(count, bool)
    test[order[taken]] = True
    targets = classes.astype(np.int32)
    return Split(pixels[~test], targets[~test], pixels[test], targets[test], maximum)


def shuffled_order(count: int, seed: int, stream: int) -> npt.NDArray[np.intp]:
    """Return a random order of ``count`` examples that depends on the arguments only.

    Numerics: Philox with the key (seed, stream). NumPy promises the bits of its generators for good, but not
    what ``Generator.permutation`` makes of them, so the order is the one that sorts the bits.

    Raises: RangeError where ``seed`` is no unsigned 64-bit integer.
    """
    if not 0 <= seed < 2**64:
        raise RangeError(f"expected a seed from 0 to 2^64 - 1, got {seed}")
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(generator.random_raw(count), kind="stable")


def _rows(
    name: str,
    array: Array,
    order: npt.NDArray[np.integer[Any]] | None,
    first: int,
    last: int,
    buffers: dict[str, Array],
) -> Array:
    """Return the examples at ``first`` to ``last`` of ``order``, gathered into a reused buffer if need be."""
    if order is None:
        return array[first:last]
    # np.take would first copy the whole of an array that is strided or of foreign byte order.
    if not (array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative):
        rows: Array = array[order[first:last]]
        return rows
    if name not in buffers:
        buffers[name] = np.empty((last - first, *array.shape[1:]), array.dtype)
    out: Array = buffers[name][: last - first]
    # The order was checked; any other mode than "raise" writes into ``out`` without a copy in between.
    np.take(array, order[first:last], axis=0, out=out, mode="clip")
    return out
