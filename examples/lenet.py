"""A LeNet in Python, compiled to C, trained by it.

    python examples/lenet.py                           the 8 x 8 digits that come with graphc
    python examples/lenet.py --data FOLDER             MNIST, Fashion-MNIST: a folder with the four IDX files
    python examples/lenet.py --data /usr/share/datasets/fashion-mnist --epochs 5

The last one is where Debian's package dataset-fashion-mnist puts its files.
"""

from __future__ import annotations

import argparse

import graphc as gc
from graphc_runtime import Trainer, evaluate
from graphc_runtime.data import Dataset, Images, load_idx_folder, split_digits
from graphc_runtime.schedules import Cosine


def make_module(batch: int, threads: int, seed: int) -> gc.Module:
    x = gc.input("x", ("N", 1, 32, 32))
    y = gc.input("y", ("N",), dtype="int32")
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 6, kernel=5, name="conv1")), 2)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 16, kernel=5, name="conv2")), 2)
    h = gc.relu(gc.nn.linear(gc.flatten(h), 120, name="fc1"))
    h = gc.relu(gc.nn.linear(h, 84, name="fc2"))
    logits = gc.nn.linear(h, 10, name="fc3")

    module = gc.compile(
        outputs={"logits": logits},
        loss=gc.losses.cross_entropy(logits, y),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)},
        optimizer=gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
        batch=batch,
        seed=seed,
        name="lenet",
    )
    module.threads = threads
    return module


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Train a LeNet by generated C.")
    parser.add_argument("--data", metavar="FOLDER", help="four IDX files (default: the embedded digits)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    parts = load_idx_folder(options.data) if options.data else split_digits(held_out=0.2, seed=options.seed)
    images = {"x": Images(size=32, maximum=parts.maximum)}
    train = Dataset(x=parts.train_images, y=parts.train_labels, transform=images)
    test = Dataset(x=parts.test_images, y=parts.test_labels, transform=images)

    module = make_module(options.batch, options.threads, options.seed)
    rate = Cosine(0.05, epochs=options.epochs)
    Trainer(module, train, test, epochs=options.epochs, lr=rate, seed=options.seed).fit()

    loss, metrics = evaluate(module, test)
    print(f"test loss {loss:.4f}, accuracy {metrics['accuracy']:.2%}")
    first = next(test.batches(8))
    print("predicted", module.predict(x=first["x"])["logits"].argmax(axis=1), "true", first["y"])
    print("\n".join(module.source["lenet.c"].splitlines()[:5]))
    return metrics["accuracy"]


if __name__ == "__main__":
    main()
