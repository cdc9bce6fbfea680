"""Training data: named arrays in mini-batches, IDX and CIFAR-10 files, and a set of digits that comes along."""

from graphc_runtime.data.cifar import load_cifar10_folder, read_cifar10
from graphc_runtime.data.dataset import Array, Dataset, Split, Transform, shuffled_order, split
from graphc_runtime.data.digits import load_digits, split_digits
from graphc_runtime.data.folders import load_image_folder
from graphc_runtime.data.idx import load_idx_folder, read_idx
from graphc_runtime.data.images import Images, as_images

__all__ = [
    "Array",
    "Dataset",
    "Images",
    "Split",
    "Transform",
    "as_images",
    "load_cifar10_folder",
    "load_digits",
    "load_idx_folder",
    "load_image_folder",
    "read_cifar10",
    "read_idx",
    "shuffled_order",
    "split",
    "split_digits",
]
