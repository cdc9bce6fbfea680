"""Images as a net wants them: float32, with channels, normalised, enlarged and centred on a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphc_runtime.errors import DataError, RangeError, ShapeError


@dataclass(frozen=True)
class Images:
    """A dataset transform: pixels (n, h, w) become float32 (n, 1, size, size), in a reused buffer.

    Pixels with channels (n, c, h, w) become (n, c, size, size), each channel as an image by itself.

    Pixel 0 maps to ``low`` and pixel ``maximum`` to ``high``, linearly; the border has the value of pixel 0.
    Each pixel becomes a square of k x k, k the largest integer that fits: 8 x 8 images fill 32 x 32 with
    k = 4, 28 x 28 ones get a border of 2. An odd remainder goes to the right and the bottom.

    Numerics: computed in float32, as ``pixel * ((high - low) / maximum) + low``.
    Raises: DataError where the pixels are not numbers or the image is larger than the canvas.
    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
    1998, section II.B: background at -0.1 and ink at 1.175 give MNIST mean 0 and variance 1, roughly.
    Being constants, they carry nothing over from the test images to the training.
    """

    size: int = 32
    maximum: float = 255.0
    low: float = -0.1
    high: float = 1.175

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RangeError(f"Images: expected a size of at least 1, got {self.size}")
        if not self.maximum > 0:
            raise RangeError(f"Images: expected a maximum above 0, got {self.maximum}")

    def __call__(self, batch: npt.NDArray[Any], out: npt.NDArray[Any] | None, /) -> npt.NDArray[Any]:
        """Return the normalised ``batch``, written into ``out`` if one is given."""
        if batch.ndim not in (3, 4) or batch.dtype.kind not in "uif":
            raise DataError(
                "Images: expected pixels of shape (n, h, w) or (n, c, h, w), "
                f"got {batch.dtype} of shape {batch.shape}"
            )
        count, height, width = len(batch), *batch.shape[-2:]
        channels = batch.shape[1] if batch.ndim == 4 else 1
        factor = min(self.size // max(height, 1), self.size // max(width, 1))
        if factor == 0:
            raise DataError(
                f"Images: {height} x {width} pixels do not fit the canvas of {self.size} x {self.size}"
            )
        shape = (count, channels, self.size, self.size)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise ShapeError(
                f"Images: expected a float32 buffer of shape {shape}, got {out.dtype} {out.shape}"
            )
        out.fill(self.low)
        top, left = (self.size - height * factor) // 2, (self.size - width * factor) // 2
        centre = out[:, :, top : top + height * factor, left : left + width * factor]
        # Splitting axes is always a view, so the enlarged pixels are written where they belong at once.
        squares = centre.reshape(count, channels, height, factor, width, factor)
        # Converted once per pixel, on contiguous memory: twice as fast as computing in the strided canvas.
        pixels = batch.astype(np.float32)
        pixels *= np.float32((self.high - self.low) / self.maximum)
        pixels += np.float32(self.low)
        squares[...] = pixels.reshape(count, channels, height, 1, width, 1)
        return out


def as_images(
    images: npt.ArrayLike, size: int = 32, *, maximum: float = 255.0, low: float = -0.1, high: float = 1.175
) -> npt.NDArray[np.float32]:
    """Return ``images`` (n, h, w) or (n, c, h, w) as float32 (n, c, size, size), all at once: see ``Images``.

    ``maximum`` is the value of full ink: 255 for MNIST, 16 for the digits of ``load_digits``.

    Raises: DataError as ``Images``, and where a pixel lies above ``maximum``.
    """
    array = np.asarray(images)
    converted: npt.NDArray[np.float32] = Images(size, maximum, low, high)(array, None)
    if array.size and array.max() > maximum:
        raise DataError(f"as_images: expected pixels up to {maximum:g}, got {array.max()}")
    return converted
