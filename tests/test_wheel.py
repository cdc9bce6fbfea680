"""The wheel: built, installed where the repository is out of reach, and used from a neutral folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "graphc": ROOT / "graphc",
    "graphc_runtime": ROOT / "runtime" / "graphc_runtime",
    "graphc_templates": ROOT / "codegen_templates" / "graphc_templates",
}

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import numpy as np
import graphc as gc, graphc_runtime, graphc_templates

for module in (gc, graphc_runtime, graphc_templates):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
# The environment itself may lie in the repository; nothing else of it may be on the path.
assert not any(path in sys.path for path in sys.argv[2:]), sys.path

x = gc.input("x", ("N", 8, 8))
y = gc.input("y", ("N",), dtype="int32")
logits = gc.nn.linear(gc.flatten(x), 10, name="fc")
loss = gc.losses.cross_entropy(logits, y)
module = gc.compile({"logits": logits}, loss=loss, optimizer=gc.SGD(lr=0.5), batch=64)
images, labels = graphc_runtime.data.load_digits()
data = graphc_runtime.data.Dataset(x=(images / 16).astype(np.float32), y=labels)
history = graphc_runtime.Trainer(module, data, epochs=6, lr=0.5, progress=False).fit()
assert history[-1].loss < 0.5 < history[0].loss, history
print("trained")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Without isolation the build needs no package index; hatchling is one of the packages for tests.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - metadata == expected
    # Named one by one, for a file that is missing from the tree would be missing above on both sides.
    for needed in ("build/cache.py", "py.typed"):
        assert f"graphc/{needed}" in names
    for needed in ("data/digits.npz", "py.typed"):
        assert f"graphc_runtime/{needed}" in names
    assert "graphc_templates/c/module.c.j2" in names
    assert any(name.endswith("/LICENSE") for name in metadata)
    assert not any(Path(name).name.startswith(("test", "conftest")) for name in names)


def test_what_is_installed_from_the_wheel_trains(wheel: Path, tmp_path: Path) -> None:
    site, neutral = tmp_path / "site", tmp_path / "neutral"
    neutral.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True, cwd=neutral)
    # Without site (-S), no .pth file of an editable installation leads back to the repository.
    others = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "PYTHONPATH": os.pathsep.join([str(site), *others]),
        "GRAPHC_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=neutral, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = neutral / "program.py"
    program.write_text(PROGRAM)
    sources = {str(folder.parent) for folder in SOURCES.values()}
    assert run(str(program), str(site), *sources) == "trained\n"
    assert run(str(site / "bin" / "graphc"), "--version").startswith("graphc 0.")
    assert "test accuracy" in run("-m", "graphc", "demo", "--epochs", "1", "--out", "demo", "--threads", "1")
    assert (neutral / "demo" / "curves.png").exists()
