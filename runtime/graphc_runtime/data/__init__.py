"""Training data: named arrays in mini-batches, MNIST's IDX files, and a set of digits that comes along."""

from graphc_runtime.data.dataset import Array, Dataset, Split, Transform, shuffled_order, split
from graphc_runtime.data.digits import load_digits, split_digits
from graphc_runtime.data.idx import load_idx_folder, read_idx
from graphc_runtime.data.images import Images, as_images

__all__ = [
    "Array",
    "Dataset",
    "Images",
    "Split",
    "Transform",
    "as_images",
    "load_digits",
    "load_idx_folder",
    "read_idx",
    "shuffled_order",
    "split",
    "split_digits",
]
