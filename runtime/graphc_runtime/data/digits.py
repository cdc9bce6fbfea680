"""The 8 x 8 handwritten digits that come with the package: enough to train a small net with no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, doi 10.24432/C50P49, licence CC BY 4.0. ``digits.npz`` holds the 1,797 images of the test
file of that set, unchanged: each pixel is the number of ink dots, 0 to 16, in a 4 x 4 square of the scan.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt

from graphc_runtime.data.dataset import Split, split

MAXIMUM = 16.0


def load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return the images, uint8 (1797, 8, 8) with values 0 to 16, and their labels 0 to 9, int32 (1797,)."""
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        return stored["images"], stored["labels"].astype(np.int32)


def split_digits(held_out: float = 0.2, seed: int = 0) -> Split:
    """Return the digits with a share of each class held out for testing; equal seeds give equal splits."""
    images, labels = load_digits()
    return split(images, labels, held_out=held_out, seed=seed, maximum=MAXIMUM)
