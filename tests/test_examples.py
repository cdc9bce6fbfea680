"""The examples, at a size that takes seconds; lenet.py and linear_models.py run beside what they show.

(``test_training.py`` runs the former, ``test_soft_margin.py`` the latter.)
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphc_runtime import Trainer, load_state, save_state
from graphc_runtime.data import Dataset, Images, split_digits

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NAMES = ["alexnet_inference", "custom_activation", "lenet", "linear_models", "resnet_cifar"]

# What torchvision.models.alexnet().state_dict() is made of.
ALEXNET = {
    "features.0": (64, 3, 11, 11), "features.3": (192, 64, 5, 5), "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3), "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216), "classifier.4": (4096, 4096), "classifier.6": (10, 4096),
}  # fmt: skip


def run(name: str) -> Any:
    """Return what the file of an example defines."""
    names = runpy.run_path(str(next(path for path in EXAMPLES if path.stem == name)))
    return SimpleNamespace(**names)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what an example writes out of the tree."""
    monkeypatch.chdir(tmp_path)


def test_each_example_is_shorter_than_100_lines() -> None:
    assert [path.stem for path in EXAMPLES] == NAMES
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path.name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "linear_models"])
def test_each_help_shows_how_to_run_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(name).main(["--help"])
    assert stopped.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.slow
def test_custom_activations_have_the_right_derivative_and_learn(capsys: pytest.CaptureFixture[str]) -> None:
    errors, accuracies = run("custom_activation").main(["--epochs", "6"])
    assert set(errors) == {"mish", "lecun"}
    assert max(errors.values()) < 1e-9  # the example says what the differences' own error is: about 1e-11
    assert set(accuracies) == {"mish", "lecun", "relu"}
    assert min(accuracies.values()) > 0.9
    printed = capsys.readouterr().out
    assert "mish's derivative: x*(1 - tanh(softplus(x))**2)*sigmoid(x) + tanh(softplus(x))" in printed
    assert "const double lecun = 1.7159*tanh(" in printed
    assert "const double lecun_backward = 1.1439" in printed


def write_alexnet(path: Path) -> np.ndarray:
    """Write weights of zero but for the last bias, and return the probabilities that follow from it."""
    tensors: dict[str, np.ndarray] = {}
    for name, shape in ALEXNET.items():
        tensors |= {f"{name}.weight": np.zeros(shape, "f4"), f"{name}.bias": np.zeros(shape[0], "f4")}
    tensors["classifier.6.bias"] = np.array([0, 1, 2, 3, 4, 9, 8, 7, 6, 5], "f4")
    save_state(path, tensors)
    powers: np.ndarray = np.exp(tensors["classifier.6.bias"].astype(np.float64))
    return powers / powers.sum()


def test_alexnet_tells_the_likeliest_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = run("alexnet_inference")
    reduced = ["--size", "64", "--classes", "10", "--threads", "1", "--runs", "1"]
    found = example.main(reduced)
    assert found.shape == (10,)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert "57,044,810 parameters" in capsys.readouterr().out

    expected = write_alexnet(tmp_path / "weights")
    np.save("picture.npy", np.full((70, 90, 3), 77, np.uint8))
    found = example.main([*reduced, "--weights", "weights", "--image", "picture.npy"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32, and sums of ten numbers
    printed = capsys.readouterr().out
    places = [printed.index(f"class    {label}  probability 0.") for label in (5, 6, 7, 8, 9)]
    assert places == sorted(places)
    for wanted in ("time per image", "arena ", "lines of C in alexnet.h"):
        assert wanted in printed
    np.save("grey.npy", np.zeros((70, 90), np.uint8))
    with pytest.raises(SystemExit):
        example.main([*reduced, "--image", "grey.npy"])
    assert "expected uint8 (height, width, 3), got uint8 (70, 90)" in capsys.readouterr().err


def test_alexnets_picture_is_cut_to_its_middle_and_normalised() -> None:
    example = run("alexnet_inference")
    picture = np.zeros((3, 7, 3), np.uint8)
    picture[:, 2:5] = np.arange(9, dtype=np.uint8).reshape(3, 3)[..., None] * [1, 2, 3]
    prepared = example.prepare(picture, 6)
    assert (prepared.shape, prepared.dtype.name) == ((1, 3, 6, 6), "float32")
    expected = np.repeat(np.repeat(np.arange(9).reshape(3, 3), 2, 0), 2, 1)
    for colour in range(3):
        pixels = prepared[0, colour] * example.DEVIATION[colour] + example.MEAN[colour]
        np.testing.assert_allclose(pixels * 255, (colour + 1) * expected, atol=1e-4)


def run_resnet(*options: str) -> float:
    history = run("resnet_cifar").main(["--threads", "1", *options])
    accuracy: float = history[-1].validation_metrics["accuracy"]
    return accuracy


def test_the_residual_net_learns_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = run_resnet("--depth", "8", "--epochs", "6", "--out", "made/here")
    assert accuracy > 0.9  # about 0.96
    assert f"test accuracy {accuracy:.2%}" in capsys.readouterr().out
    out = tmp_path / "made" / "here"
    assert {path.name for path in out.iterdir()} == {"resnet.safetensors", "resnet.png"}
    assert (out / "resnet.png").read_bytes().startswith(b"\x89PNG")
    tensors, _ = load_state(out / "resnet.safetensors")
    assert tensors["layer3.0.conv2.weight"].shape == (64, 64, 3, 3)
    assert tensors["bn1.running_var"].shape == (16,)


@pytest.mark.slow
def test_the_slim_vgg_learns_the_digits() -> None:
    assert run_resnet("--model", "vgg", "--epochs", "4", "--batch", "32") > 0.8


def test_augmented_images_depend_on_the_batch_alone() -> None:
    example = run("resnet_cifar")
    images = np.random.default_rng(0).integers(1, 256, (400, 3, 6, 6)).astype(np.uint8)
    plain = Images(6, low=0.0, high=255.0)
    transform = example.augmented(plain, 2, True)
    prepared = transform(images, None)
    np.testing.assert_array_equal(transform(images, np.empty_like(prepared)), prepared)
    assert (transform(images[::-1], None)[::-1] != prepared).any()

    # Each result is its image, mirrored or not, in one of 25 places; all 50 ways come up.
    seen = set()
    for image, found in zip(images, prepared, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        ways = {
            (down, right, side)
            for down, right, side in np.ndindex(5, 5, 2)
            if (padded[:, down : down + 6, right : right + 6][..., :: 1 - 2 * side] == found).all()
        }
        assert len(ways) == 1
        seen |= ways
    assert len(seen) == 50
    still = example.augmented(plain, 0, False)(images[:, 0], None)
    np.testing.assert_array_equal(still, images[:, :1])


def test_an_augmented_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    example = run("resnet_cifar")
    parts = split_digits()
    # The net is that of the digits above, which then need not be compiled twice.
    options = SimpleNamespace(model="resnet", depth=8, lr=0.1, batch=128, seed=0, threads=1)
    transform = {"x": example.augmented(Images(16, parts.maximum), 1, True)}
    data = Dataset(x=parts.train_images[:300], y=parts.train_labels[:300], transform=transform)

    def finish(name: str, stop: Callable[[Any], bool]) -> dict[str, bytes]:
        for _ in range(2):
            module = example.make_module(options, (1, 16, 16), 10)
            run = Trainer(
                module, data, epochs=2, lr=0.1, checkpoint=tmp_path / name, progress=False, on_epoch=stop
            )
            run.fit()
        return {key: value.tobytes() for key, value in load_state(tmp_path / name)[0].items()}

    whole = finish("whole", lambda record: False)
    halves = finish("halves", lambda record: True)
    assert whole == halves
