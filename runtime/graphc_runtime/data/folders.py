"""Folders of labelled images, whichever of the known formats they are in."""

from __future__ import annotations

import os
from pathlib import Path

from graphc_runtime.data.cifar import load_cifar10_folder
from graphc_runtime.data.dataset import Split
from graphc_runtime.data.idx import load_idx_folder
from graphc_runtime.errors import DataError


def load_image_folder(folder: str | os.PathLike[str]) -> Split:
    """Return the images of a folder of IDX files or of CIFAR-10's binary files, chosen by the files' names.

    Raises: DataError where there are files of neither kind or of both, or as ``load_idx_folder`` and
    ``load_cifar10_folder``.
    """
    base = Path(folder)
    if not base.is_dir():
        raise DataError(f"{base} is not a folder")
    idx, cifar = any(base.glob("*idx[13]-ubyte*")), any(base.glob("*_batch*.bin*"))
    if idx and cifar:
        raise DataError(f"{base} holds IDX files and CIFAR-10 files: give each set a folder of its own")
    if not idx and not cifar:
        raise DataError(
            f"{base} holds neither IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, "
            "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte) nor CIFAR-10's binary files (data_batch_1.bin to "
            "data_batch_5.bin, test_batch.bin), plain or as .gz"
        )
    return load_cifar10_folder(base) if cifar else load_idx_folder(base)
