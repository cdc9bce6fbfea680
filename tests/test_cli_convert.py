"""``graphc convert``: what it reads, what it writes, and that it runs nothing that a file asks for."""

from __future__ import annotations

import os
import pickle
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import graphc as gc
from graphc.cli import main
from graphc.errors import CheckpointError
from graphc_runtime.checkpoint import load_state

NET = """
import graphc as gc

x = gc.input("x", ("N", 2, 4, 4))
h = gc.nn.batch_norm(gc.nn.conv2d(x, 3, 3, name="conv"), name="bn")
out = {"out": gc.nn.linear(gc.flatten(gc.relu(h)), 5, name="fc") + gc.constant([1.0, 2.0, 3.0, 4.0, 5.0])}


def compiled():
    return gc.compile(out, batch=3)
"""
NAMES = {
    "conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight", "fc.bias",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def torch_net() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    net = nn.Sequential()
    for name, part in (
        ("conv", nn.Conv2d(2, 3, 3)), ("bn", nn.BatchNorm2d(3)), ("relu", nn.ReLU()), ("flat", nn.Flatten()),
        ("fc", nn.Linear(12, 5)),
    ):  # fmt: skip
        net.add_module(name, part)
    for _ in range(3):  # so that the statistics are not what they start with
        net(torch.randn(8, 2, 4, 4))
    return net.eval()


def save(content: Any, name: str = "weights.pt") -> None:
    pytest.importorskip("torch").save(content, name)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the message of a command that must fail, and leave no file behind."""
    before = set(Path().iterdir())
    assert main(["convert", *arguments]) == 2
    assert set(Path().iterdir()) == before
    message = capsys.readouterr().err
    assert message.startswith("graphc: ")
    return message


def test_a_converted_net_predicts_what_pytorch_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    net = torch_net()
    save(net.state_dict())
    assert main(["convert", "weights.pt", "--for", "net.py:out"]) == 0
    assert capsys.readouterr().out == (
        "written weights.safetensors: 8 tensors, 134 numbers, 0.0 MiB, 1 batch counters left out\n"
    )
    tensors, _ = load_state("weights.safetensors")
    assert set(tensors) == NAMES
    x = gc.input("x", ("N", 2, 4, 4))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 3, 3, name="conv"), name="bn"))
    module = gc.compile(gc.nn.linear(gc.flatten(h), 5, name="fc"), batch=3)
    module.load("weights.safetensors")
    images = np.random.default_rng(0).standard_normal((3, 2, 4, 4), np.float32)
    want = net(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(module.predict(x=images)["out"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrappers_and_the_prefix_of_dataparallel_come_off(folder: Path, wrapper: str) -> None:
    held = {f"module.{name}": value for name, value in torch_net().state_dict().items()}
    save({"epoch": 3, wrapper: held, "optimizer": {"lr": 0.1}})
    assert main(["convert", "weights.pt", "-o", "out.safetensors", "--for", "net.py:out"]) == 0
    assert set(load_state("out.safetensors")[0]) == NAMES


def test_a_prefix_that_some_names_lack_stays(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    save({"module.a": torch.zeros(2), "b": torch.zeros(2), "n.num_batches_tracked": torch.tensor(3)})
    assert main(["convert", "weights.pt"]) == 0
    assert set(load_state("weights.safetensors")[0]) == {"module.a", "b"}


def test_dtypes_and_layouts(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    values = torch.tensor([[1.5, -2.0, 3.25], [0.125, 1e4, -0.0]])
    save({
        "half": values.half(), "brain": values.bfloat16(), "double": values.double() / 3,
        "int": torch.arange(3), "transposed": values.T, "scalar": torch.tensor(2.0),
        "parameter": torch.nn.Parameter(values),
    })  # fmt: skip
    assert main(["convert", "weights.pt"]) == 0
    tensors, _ = load_state("weights.safetensors")
    assert {name: str(array.dtype) for name, array in tensors.items()} == {
        "half": "float32", "brain": "float32", "double": "float64", "int": "int64", "transposed": "float32",
        "scalar": "float32", "parameter": "float32",
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["half"], values.half().float().numpy())
    np.testing.assert_array_equal(tensors["brain"], values.bfloat16().float().numpy())
    np.testing.assert_array_equal(tensors["double"], values.double().numpy() / 3)
    np.testing.assert_array_equal(tensors["transposed"], values.numpy().T)
    assert tensors["scalar"].shape == ()


class TouchesAFile:
    """What a malicious file would hold: unpickling it as PyTorch once did runs a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", [2, 4, None])
def test_a_malicious_pickle_runs_nothing(
    folder: Path, protocol: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if protocol is None:
        save({"w": TouchesAFile()})
    else:
        Path("weights.pt").write_bytes(pickle.dumps({"w": TouchesAFile()}, protocol))
        pytest.importorskip("torch")
    message = failure(capsys, "weights.pt")
    assert not Path("pwned").exists()
    assert "weights_only" not in message  # PyTorch's own text says how to run it after all
    if protocol is None:
        assert "holds more than tensors: posix.mkdir, which was not run" in message
    pickle.loads(pickle.dumps(TouchesAFile()))  # the bait works
    assert Path("pwned").exists()


def test_what_is_no_state_dict_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    one = torch.zeros(2, 2)
    recursive: dict[str, Any] = {}
    recursive["model"] = recursive
    cases: list[tuple[Any, str]] = [
        ([one], "expected a dict of names and tensors, got list"),
        (one, "got Tensor"),
        ({}, "got an empty one"),
        ({"epoch": 3, "weights": {"w": one}}, "got 'epoch' (int), 'weights' (dict)"),
        ({"state_dict": {"w": one, 5: one, "note": "text"}}, "got 5 (Tensor), 'note' (str)"),
        ({str(k): k for k in range(20)}, "'7' (int) and 12 more"),
        (recursive, "got 'model' (dict)"),
        ({"w": one.to_sparse()}, "tensor 'w' (torch.float32, torch.sparse_coo) cannot be an array"),
        ({"w": one, "\x1b[2Jcleared": one}, r"names that can be printed, got '\x1b[2Jcleared'"),
        ({"w": one.to(torch.complex128)}, "dtype complex128"),
        ({"w": Namespace(a=1)}, "holds more than tensors: argparse.Namespace"),
        ({"w": np.zeros(3)}, "holds more than tensors: numpy."),
    ]
    for content, expected in cases:
        save(content)
        assert expected in failure(capsys, "weights.pt")


def test_damaged_and_missing_files_are_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(torch_net().state_dict())
    whole = Path("weights.pt").read_bytes()
    for content in (b"", b"x", b"this is no pickle", whole[: len(whole) // 2], whole[:-9]):
        Path("weights.pt").write_bytes(content)
        message = failure(capsys, "weights.pt")
        assert "weights.pt is damaged, or was not written by torch.save" in message
        assert message.count("\n") == 1
    assert failure(capsys, "absent.pt") == "graphc: cannot read absent.pt: No such file or directory\n"
    Path("s.safetensors").write_bytes(whole)
    assert "cannot read s.safetensors" in failure(capsys, "s.safetensors", "-o", "t")
    assert "net.py" in failure(capsys, "weights.pt", "--for", "net.py:nothing")
    save(torch_net().state_dict())
    assert "cannot write no/such: " in failure(capsys, "weights.pt", "-o", "no/such")


def test_nothing_is_overwritten_without_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": np.ones(3, np.float32)}, "a.safetensors")
    save_file({"w": np.zeros(2, np.float32)}, "b.safetensors")
    before = Path("b.safetensors").read_bytes()
    for arguments in (["a.safetensors", "-o", "b.safetensors"], ["b.safetensors"]):
        assert "b.safetensors exists" in failure(capsys, *arguments)
        assert Path("b.safetensors").read_bytes() == before
    assert main(["convert", "a.safetensors", "-o", "b.safetensors", "--force"]) == 0
    assert load_state("b.safetensors")[0]["w"].shape == (3,)


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails


def test_without_pytorch_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_torch(monkeypatch)
    Path("weights.pt").write_bytes(b"anything")
    message = failure(capsys, "weights.pt")
    assert "needs PyTorch, which is not installed: pip install 'graphc[torch]'" in message
    monkeypatch.setattr("graphc.cli.convert.find_spec", lambda name: None)
    assert "needs safetensors: pip install 'graphc[train]'" in failure(capsys, "weights.pt")


def write_bfloat16(path: str, values: np.ndarray) -> None:
    """Write values that bfloat16 holds exactly; NumPy's safetensors cannot."""
    data = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    shape = list(values.shape)
    header = f'{{"module.w":{{"dtype":"BF16","shape":{shape},"data_offsets":[0,{len(data)}]}}}}'.encode()
    Path(path).write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_safetensors_need_no_pytorch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    values = np.array([[1.5, -2.0], [0.25, -np.inf]])
    write_bfloat16("brain.safetensors", values)
    assert main(["convert", "brain.safetensors", "-o", "out.safetensors"]) == 0
    np.testing.assert_array_equal(load_state("out.safetensors")[0]["w"], values.astype(np.float32))
    held = {
        "half": values.astype(np.float16), "double": values, "flags": np.array([True, False]),
        "bn.num_batches_tracked": np.array(7), "index": np.arange(3, dtype=np.int32),
    }  # fmt: skip
    save_file(held, "in.safetensors")
    assert main(["convert", "in.safetensors", "-o", "out.safetensors", "--force"]) == 0
    tensors, _ = load_state("out.safetensors")
    assert {name: str(array.dtype) for name, array in tensors.items()} == {
        "half": "float32", "double": "float64", "flags": "bool", "index": "int32",
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["double"], values)


def test_a_misfit_lists_every_tensor_and_compiles_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("graphc.compile", lambda *arguments, **keywords: pytest.fail("compiled"))
    shapes = {"conv.weight": (3, 2, 3, 3), "conv.bias": (4,), "fc.weight": (12, 5), "head.weight": (1,)}
    shapes |= {f"block.{k}.weight": (1,) for k in range(60)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, "in.safetensors")
    lines = failure(capsys, "in.safetensors", "-o", "out", "--for", "net.py:out").splitlines()
    assert lines[0] == "graphc: the tensors do not fit net.py:out:"
    assert set(lines[1:]) == {
        *(f"  missing {n}" for n in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.bias")),
        *(f"  unexpected block.{k}.weight" for k in range(60)),
        "  unexpected head.weight",
        "  conv.bias: expected shape (3,), got (4,)",
        "  fc.weight: expected shape (5, 12), got (12, 5)",
    }


def test_the_net_may_be_a_compiled_module_or_a_ready_made_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"conv.weight": np.zeros((3, 2, 3, 3), np.float32)}, "in.safetensors")
    common = ["in.safetensors", "-o", "out", "--for"]
    assert failure(capsys, *common, "net.py:compiled").count("missing") == 7  # the constant is none of them
    assert failure(capsys, *common, "model:resnet18").count("missing") == 62 + 2 * 20
    assert "there are alexnet" in failure(capsys, *common, "model:nothing")


def fitting(net: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in net.items() if not name.startswith("graphc.")}


def test_a_module_takes_pytorchs_counters_and_lists_every_misfit() -> None:
    x = gc.input("x", ("N", 70))
    h = x
    for k in range(30):
        h = gc.nn.linear(h, 3, name=f"fc{k}")
    module = gc.compile(gc.nn.batch_norm(h, name="bn"), name="deep")
    state = fitting(module.state_dict())
    module.load_state_dict({**state, "bn.num_batches_tracked": np.array(5)})
    with pytest.raises(CheckpointError) as raised:
        module.load_state_dict({"fc0.weight": np.zeros(3), **{f"other{k}": np.zeros(1) for k in range(55)}})
    lines = str(raised.value).splitlines()
    assert lines[0] == "the tensors do not fit module 'deep':"
    missing = [f"  missing {name}" for name in state if name != "fc0.weight"]
    extra = [f"  unexpected other{k}" for k in range(55)]
    assert lines[1:] == [*missing, *extra, "  fc0.weight: expected shape (3, 70), got (3,)"]
    with pytest.raises(CheckpointError, match=r"unexpected bn\.batches"):
        module.load_state_dict({**state, "bn.batches": np.array(5)})
