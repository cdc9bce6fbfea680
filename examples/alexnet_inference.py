"""AlexNet as C: what a picture shows, and what it takes to find out.

    python examples/alexnet_inference.py                                       drawn weights, a synthetic picture
    python examples/alexnet_inference.py --weights alexnet.safetensors --image picture.npy

The net and the names of its parameters are those of PyTorch's torchvision.models.alexnet, so that its weights can
be used: ``graphc convert alexnet.pth`` turns the file with its state dict into safetensors. A picture is an array
uint8 (height, width, 3), as np.save("picture.npy", PIL.Image.open("picture.jpg").convert("RGB")) writes it.
The result is the numbers of the likeliest classes; with drawn weights it means nothing.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

import graphc as gc

# Of ImageNet's colours red, green, blue, on a scale from 0 to 1: what the published weights expect.
MEAN, DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


def synthetic() -> np.ndarray:
    """Return a disc on a background that shades from left to right and from top to bottom."""
    row, column = np.mgrid[0:256, 0:256]
    inside = (row - 120) ** 2 + (column - 136) ** 2 < 70**2
    return np.stack([np.where(inside, 220, row), np.where(inside, 90, column), 255 - row], -1).astype(
        np.uint8
    )


def prepare(picture: np.ndarray, size: int) -> np.ndarray:
    """Return the largest square in the middle as float32 (1, 3, size, size), by the nearest pixels."""
    height, width, _ = picture.shape
    square = min(height, width)
    nearest = (np.arange(size) + 0.5) * square // size
    rows, columns = nearest.astype(int) + (height - square) // 2, nearest.astype(int) + (width - square) // 2
    pixels = picture[rows][:, columns].astype(np.float32) / 255
    return ((pixels - MEAN) / DEVIATION).transpose(2, 0, 1)[None]


def main(arguments: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", metavar="FILE", help="safetensors file (default: drawn weights)")
    parser.add_argument("--image", metavar="FILE", help=".npy file (default: a synthetic picture)")
    parser.add_argument(
        "--size", type=int, default=224, help="of the net's input, at least 63 (default: 224)"
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=10, help="how often to measure the time (default: 10)")
    options = parser.parse_args(arguments)
    picture = np.load(options.image) if options.image else synthetic()
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        parser.error(f"--image: expected uint8 (height, width, 3), got {picture.dtype} {picture.shape}")

    x = gc.input("x", ("N", 3, options.size, options.size))
    probabilities = gc.softmax(gc.models.alexnet(x, options.classes), axis=1)
    began = time.perf_counter()
    module = gc.compile({"probabilities": probabilities}, batch=1, name="alexnet")
    module.threads = options.threads
    if options.weights:
        module.load(options.weights)
    print(f"{module!r}, made in {time.perf_counter() - began:.1f} s")

    image = prepare(picture, options.size)
    found = module.predict(x=image)["probabilities"][0]
    for place in np.argsort(-found)[:5]:
        print(f"  class {place:4}  probability {found[place]:.4f}")

    seconds = []
    for _ in range(options.runs):
        began = time.perf_counter()
        module.predict(x=image)
        seconds.append(time.perf_counter() - began)
    lines = sum(len(text.splitlines()) for text in module.source.values())
    print(
        f"time per image  {min(seconds) * 1e3:.1f} ms, the best of {options.runs}, {options.threads} threads"
    )
    print(
        f"arena           {module.manifest['sizes']['arena_bytes']:,} bytes, all the scratch memory that a call needs"
    )
    print(f"source          {lines} lines of C in {', '.join(module.source)}")
    return found


if __name__ == "__main__":
    main()
