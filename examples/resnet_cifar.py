"""A residual net or a slim VGG for small images, trained with the recipe that most image classifiers follow.

    python examples/resnet_cifar.py                            the 8 x 8 digits that come with graphc
    python examples/resnet_cifar.py --data FOLDER              Fashion-MNIST (IDX) or CIFAR-10 (binary files)
    python examples/resnet_cifar.py --data FOLDER --model vgg  the same with a VGG of batch norm and dropout

The recipe: images normalised, shifted and mirrored at random; Nesterov momentum; weight decay for weights, not for
batch norm; a learning rate that rises, then falls to zero. Ctrl-C stops a run, --resume goes on with it.
"""

from __future__ import annotations

import os
import zlib
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np

import graphc as gc
from graphc_runtime import History, Trainer, plot_history
from graphc_runtime.data import Array, Dataset, Images, Transform, load_image_folder, split_digits
from graphc_runtime.schedules import Cosine, Warmup


def augmented(prepare: Images, shift: int, mirror: bool) -> Transform:
    """Return what shifts each image by up to ``shift`` pixels, mirrors half of them if told to, and prepares them.

    The random numbers follow from a checksum of the batch: no batch comes twice, since each epoch has an order
    of its own, and a resumed run draws what an unbroken one would.
    """

    def transform(batch: Array, out: Array | None, /) -> Array:
        down, right, side = np.random.Philox(key=zlib.crc32(batch.tobytes())).random_raw((3, len(batch)))
        margins = [(0, 0)] * (batch.ndim - 2) + [(shift, shift)] * 2
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(batch, margins), batch.shape[-2:], (-2, -1))
        images = windows[np.arange(len(batch)), ..., down % (2 * shift + 1), right % (2 * shift + 1), :, :]
        mirrored = (side % 2 == 1) & mirror
        images[mirrored] = images[mirrored][..., ::-1]
        return prepare(images, out)

    return transform


def make_module(options: Namespace, shape: tuple[int, int, int], classes: int) -> gc.Module:
    x, y = gc.input("x", ("N", *shape)), gc.input("y", ("N",), dtype="int32")
    if options.model == "vgg":
        logits = gc.models.vgg(x, classes, depth=11, width=16, hidden=128, norm=True, drop=0.3)
    else:
        logits = gc.models.resnet_cifar(x, classes, depth=options.depth)
    loss, accuracy = gc.losses.cross_entropy(logits, y), gc.metrics.accuracy(logits, y)
    sgd = gc.SGD(lr=options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4, decay="matrices")
    module = gc.compile({"logits": logits}, loss, sgd, metrics={"accuracy": accuracy},
                        batch=options.batch, seed=options.seed, name=options.model)  # fmt: skip
    module.threads = options.threads
    return module


def main(arguments: list[str] | None = None) -> History:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="folder of images (default: the embedded digits)")
    add("--model", choices=("resnet", "vgg"), default="resnet")
    add("--depth", type=int, default=20, help="of the residual net: 6n + 2 (default: 20)")
    add("--no-mirror", action="store_true", help="for images with a left and a right, such as MNIST's")
    add("--epochs", type=int, default=6)
    add("--batch", type=int, default=128)
    add("--lr", type=float, default=0.1, help="the largest learning rate (default: 0.1)")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("graphc-run"), help="folder of the results (default: graphc-run)")
    add("--resume", action="store_true", help="go on from the weights in the folder of the results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    parts = load_image_folder(options.data) if options.data else split_digits(seed=options.seed)
    _, *channels, side, _ = parts.train_images.shape
    sample = parts.train_images[:5000] / parts.maximum
    low, high = (np.array([0.0, 1.0]) - sample.mean()) / sample.std()
    size = 32 if options.model == "vgg" else max(side, 16)  # a VGG halves its images five times
    prepare = Images(size, parts.maximum, low, high)
    mirror = options.data is not None and not options.no_mirror  # a mirrored digit is none
    augment = augmented(prepare, 4 if channels else max(side // 14, 1), mirror)
    train = Dataset(x=parts.train_images, y=parts.train_labels, transform={"x": augment})
    test = Dataset(x=parts.test_images, y=parts.test_labels, transform={"x": prepare})

    module = make_module(options, (*(channels or [1]), size, size), 1 + int(parts.train_labels.max()))
    print(f"{module!r}, {len(train):,} images to train with, {len(test):,} to test with", flush=True)
    rate = Warmup(Cosine(options.lr, 0.8 * options.epochs), 0.2 * options.epochs)
    weights = options.out / f"{options.model}.safetensors"
    history = Trainer(module, train, test, epochs=options.epochs, lr=rate, seed=options.seed,
                      checkpoint=weights, resume=options.resume).fit()  # fmt: skip
    plot_history(history, weights.with_suffix(".png"))
    print(f"test accuracy {history[-1].validation_metrics['accuracy']:.2%}, weights and curves: {weights}")
    return history


if __name__ == "__main__":
    main()
