"""Draw the figures of the README: ``python docs/figures.py`` writes docs/lenet-train-plan.svg."""

from __future__ import annotations

from pathlib import Path

import graphc as gc


def main() -> None:
    """Plan the training step of LeNet at batch 64 and draw it."""
    x = gc.input("x", ("N", 1, 32, 32))
    y = gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    loss = gc.losses.cross_entropy(logits, y)
    module = gc.compile({"logits": logits}, loss=loss, optimizer=gc.SGD(lr=0.05), batch=64, name="lenet")
    target = Path(__file__).parent / "lenet-train-plan.svg"
    module.plan("train").plot(target)
    print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
