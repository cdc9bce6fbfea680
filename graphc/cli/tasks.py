"""What the commands train on: the digits that come with the package, or a folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphc.cli.nets import SIDE
from graphc_runtime.data import Array, Dataset, Images, Split, load_image_folder, split_digits

# How far the copies of a training image are moved, in pixels of the 8 x 8 original.
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test data as the nets of ``NETS`` take them; ``images`` are the test images as stored."""

    name: str
    train: Dataset
    test: Dataset
    classes: int
    images: Array
    maximum: float

    @property
    def channels(self) -> int:
        """How many numbers a pixel has: 1 for grey, 3 for red, green and blue."""
        return self.images.shape[1] if self.images.ndim == 4 else 1

    @property
    def labels(self) -> Array:
        """The test labels."""
        return self.test.arrays["y"]


def digits(seed: int = 0) -> Task:
    """Return the embedded digits, a fifth of each class held out for testing.

    1,438 training images are few: each is used five times, as it is and moved by one pixel in the four
    directions. The images that are held out are used as they are.
    """
    parts = split_digits(held_out=0.2, seed=seed)
    images = np.concatenate([_framed(parts.train_images, *shift) for shift in _SHIFTS])
    labels = np.tile(parts.train_labels, len(_SHIFTS))
    held_out = _framed(parts.test_images, 0, 0)
    return _task("digits", Split(images, labels, held_out, parts.test_labels, parts.maximum))


def image_folder(folder: Path) -> Task:
    """Return MNIST, Fashion-MNIST or the like from four IDX files, or CIFAR-10 from its six binary files.

    Raises: DataError where files are missing or malformed.
    """
    return _task(folder.name, load_image_folder(folder))


def _framed(images: Array, down: int, right: int) -> npt.NDArray[np.uint8]:
    """Return the images with a frame of one pixel, within which they are moved."""
    framed: npt.NDArray[np.uint8] = np.pad(images, ((0, 0), (1 + down, 1 - down), (1 + right, 1 - right)))
    return framed


def _task(name: str, parts: Split) -> Task:
    transform = {"x": Images(SIDE, parts.maximum)}
    train = Dataset(x=parts.train_images, y=parts.train_labels, transform=transform)
    test = Dataset(x=parts.test_images, y=parts.test_labels, transform=transform)
    classes = 1 + max(int(parts.train_labels.max()), int(parts.test_labels.max()))
    return Task(name, train, test, classes, parts.test_images, parts.maximum)
