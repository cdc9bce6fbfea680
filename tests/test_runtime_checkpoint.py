"""Saving tensors: exact round trips, whole files or none, and honest words about damaged ones."""

from __future__ import annotations

import builtins
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc_runtime.checkpoint import load_state, save_state
from graphc_runtime.errors import CheckpointError, GraphcError

TENSORS: dict[str, Any] = {
    "fc.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "step": np.array(2**63 + 5, np.uint64),
    "empty": np.zeros((0, 3), np.float64),
    "flags": np.array([True, False]),
    "odd": np.array([np.nan, np.inf, -0.0], np.float64),
}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def test_what_was_saved_is_loaded_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_state(path, TENSORS, {"note": 'first line\nü \u2603 "quoted"', "other": ""})
    tensors, metadata = load_state(path)
    assert_same(tensors, TENSORS)
    assert metadata == {"note": 'first line\nü \u2603 "quoted"', "other": ""}
    tensors["fc.weight"][0, 0] = 7  # the caller's own
    save_state(path, {})
    assert load_state(path) == ({}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_strided_and_big_endian_arrays_keep_their_values(tmp_path: Path) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"t": base.T, "s": base[:, ::2], "r": base[::-1], "b": base.astype(">f4")}
    save_state(tmp_path / "v", views)
    for name, array in load_state(tmp_path / "v")[0].items():
        np.testing.assert_array_equal(array, views[name])


def test_other_readers_and_writers_of_the_format_agree(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_state(tmp_path / "ours", TENSORS, {"k": "v"})
    assert_same(load_file(tmp_path / "ours"), TENSORS)
    save_file({"w": TENSORS["fc.weight"]}, tmp_path / "theirs")
    assert_same(load_state(tmp_path / "theirs")[0], {"w": TENSORS["fc.weight"]})


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    contents = set()
    for _ in range(8):
        save_state(tmp_path / "f", TENSORS, {str(i): "x" for i in range(6)})
        contents.add((tmp_path / "f").read_bytes())
    assert len(contents) == 1


def test_a_file_has_the_usual_permissions_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    link, real = tmp_path / "link", tmp_path / "folder" / "real"
    link.symlink_to(real)
    save_state(link, TENSORS)
    assert link.is_symlink()
    assert_same(load_state(real)[0], TENSORS)
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


class _FullDisk:
    """A file whose ``write`` fails after some bytes, as on a full disk or at Ctrl-C."""

    def __init__(self, file: Any, room: int, error: BaseException) -> None:
        self._file, self._room, self._error = file, room, error

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> int:
        taken = min(len(content), self._room)
        self._file.write(content[:taken])
        self._room -= taken
        if taken < len(content):
            self._file.flush()
            raise self._error
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 5, 40, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_byte_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: float, error: BaseException
) -> None:
    path = tmp_path / "state"
    save_state(path, TENSORS)
    if room < 1:
        room *= path.stat().st_size
    save_state(path, {"old": np.arange(3)})
    before = path.read_bytes()
    real_open: Callable[..., Any] = builtins.open

    def failing_open(name: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = real_open(name, mode, *rest, **options)
        return _FullDisk(file, int(room), error) if "x" in mode else file

    monkeypatch.setattr(builtins, "open", failing_open)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save_state(path, TENSORS)
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)
        assert "No space left" in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failure_of_the_last_steps_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "state"
    save_state(path, {"old": np.arange(3)})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_state(path, TENSORS)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]


def test_the_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def spy(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            calls.append(name)
            real(*arguments)

        return called

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spy(name, getattr(os, name)))
    save_state(tmp_path / "state", TENSORS)
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_real_limit_on_the_file_size_is_reported(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np\n"
        "from graphc_runtime.checkpoint import save_state\n"
        "from graphc_runtime.errors import CheckpointError\n"
        "save_state(sys.argv[1], {'a': np.zeros(10)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: save_state(sys.argv[1], {'a': np.ones(10000)})\n"
        "except CheckpointError as error: print(error)\n"
    )
    path = tmp_path / "state"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    assert "File too large" in run.stdout
    assert load_state(path)[0]["a"].tolist() == [0.0] * 10
    assert os.listdir(tmp_path) == ["state"]


def test_litter_of_killed_writers_is_removed_once_it_is_old(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / name for name in (".s.1-1.tmp", ".s.2-2.tmp", ".t.3-3.tmp"))
    for file in (old, fresh, other):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    save_state(tmp_path / "s", TENSORS)
    assert sorted(os.listdir(tmp_path)) == [".s.2-2.tmp", ".t.3-3.tmp", "s"]


def test_a_file_cut_at_any_byte_is_refused_as_truncated(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    save_state(path, TENSORS, {"k": "v"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut is truncated"):
            load_state(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(
        CheckpointError, match=f"trailing bytes.*{len(whole)} bytes, the file has {len(whole) + 1}"
    ):
        load_state(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95" + b"pickle" * 20,
        bytes(100),
        (5).to_bytes(8, "little") + b"{oops",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": 1} ',
        (30).to_bytes(8, "little") + b'{"a": {"data_offsets": "xyz"}}',
        (2**63).to_bytes(8, "little") + b"{}",
        (40).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, 0], "q": []}}',
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign is not a safetensors file|cannot read .*foreign"):
        load_state(path)


def test_any_damaged_header_byte_gives_our_error_or_another_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    save_state(path, TENSORS, {"k": "v"})
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole) - 100):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            try:
                load_state(path)
            except CheckpointError:
                refused += 1
    assert refused > len(whole) // 2


def test_files_that_cannot_be_reached_are_checkpoint_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="cannot read"):
            load_state(path)
    with pytest.raises(CheckpointError, match="cannot write"):
        save_state(tmp_path / "no" / "folder", TENSORS)
    with pytest.raises(CheckpointError, match="cannot write"):
        save_state(tmp_path, TENSORS)


@pytest.mark.parametrize("array", [np.zeros(2, np.complex128), np.array(["a"]), np.array([None])])
def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path, array: Any) -> None:
    with pytest.raises(CheckpointError, match=f"tensor 'bad' has dtype {array.dtype}"):
        save_state(tmp_path / "f", {"bad": array})
    assert os.listdir(tmp_path) == []


def test_without_safetensors_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for attempt in (lambda: save_state(tmp_path / "f", TENSORS), lambda: load_state(tmp_path / "f")):
        with pytest.raises(GraphcError, match=r"pip install graphc\[train\]"):
            attempt()
