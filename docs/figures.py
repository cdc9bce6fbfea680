"""Draw the figures of the README: ``python docs/figures.py`` writes the plan and roofline of LeNet's training step.

``--report`` draws docs/resnet50-report.png, too, which needs Chromium, and a minute for compiling ResNet-50.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import graphc as gc

DOCS = Path(__file__).parent
CHROMIUM = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,860", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def module(name: str, shape: tuple[int, int, int], batch: int) -> gc.Module:
    """Return a ready-made net, compiled for training and with a clock in it."""
    x = gc.input("x", ("N", *shape))
    y = gc.input("y", ("N",), dtype="int32")
    logits = getattr(gc.models, name)(x)
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile(
        {"logits": logits},
        loss=loss,
        optimizer=gc.SGD(lr=0.05),
        batch=batch,
        name=name,
        profile=True,
        threads=2,
    )


def plan_and_roofline() -> None:
    """Plan the training step of LeNet at batch 64, time its kernels, and draw both."""
    lenet = module("lenet", (1, 32, 32), 64)
    lenet.plan("train").plot(DOCS / "lenet-train-plan.svg")
    batch = {
        "x": np.random.default_rng(0).normal(size=(64, 1, 32, 32)).astype("f4"),
        "y": np.arange(64, dtype="i4") % 10,
    }
    lenet.profile(mode="train", **batch).plot(DOCS / "lenet-roofline.svg")
    print("wrote lenet-train-plan.svg and lenet-roofline.svg")


def report() -> None:
    """Open the report of ResNet-50 in a browser without a screen and save what it shows."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("--report needs chromium on the path")
    resnet = module("resnet50", (3, 224, 224), 4)
    with tempfile.TemporaryDirectory() as folder:
        page = gc.report(resnet, Path(folder) / "resnet50.html")
        print(f"{page.stat().st_size:,} bytes of HTML")
        # A training plan beside the blocks of the net.
        text = page.read_text(encoding="utf-8")
        show = "at('plan').value = 'train_step'; memory(); tab('memory');"
        page.write_text(text.replace("</body>", f"<script>{show}</script></body>"), encoding="utf-8")
        target = DOCS / "resnet50-report.png"
        command = [browser, *CHROMIUM, f"--user-data-dir={folder}/profile", "--virtual-time-budget=10000"]
        subprocess.run(
            [*command, f"--screenshot={target}", f"file://{page}"], check=True, capture_output=True
        )
    print(f"wrote {target.name}")


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="the page of ResNet-50 as well")
    plan_and_roofline()
    if parser.parse_args().report:
        report()


if __name__ == "__main__":
    main()
