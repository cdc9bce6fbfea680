"""Loading an extension by its path, and saying why it cannot be."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from graphc.build import BuildOptions, build_extension
from graphc.errors import BuildError
from graphc_runtime.loader import load_extension

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
ELF_ONLY = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about ELF files")


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = BuildOptions(cache_dir=tmp_path_factory.mktemp("cache") / "graphc", optimisation=("-O1",))
    sources = {"one.h": "int one(void);", "one.c": '#include "one.h"\nint one(void) { return 1; }\n'}
    return build_extension("one", sources, "int one(void);", options)


def test_same_path_same_module(extension: Path, tmp_path: Path) -> None:
    ffi, lib = load_extension(extension)
    again_ffi, again_lib = load_extension(extension)
    assert (ffi is again_ffi, lib is again_lib) == (True, True)
    (tmp_path / "link").symlink_to(extension.parent)
    assert load_extension(tmp_path / "link" / extension.name)[1] is lib
    assert lib.one() == 1
    assert ffi.sizeof("int") == 4


def test_copy_is_another_module(extension: Path, tmp_path: Path) -> None:
    copy = tmp_path / extension.name
    shutil.copy(extension, copy)
    _, lib = load_extension(copy)
    assert lib is not load_extension(extension)[1]
    assert lib.one() == 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"none\.so cannot be loaded.*No such file"):
        load_extension(tmp_path / "none.so")


@ELF_ONLY
@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_truncated_file_is_an_error_and_no_crash(extension: Path, tmp_path: Path, part: float) -> None:
    data = extension.read_bytes()
    broken = tmp_path / extension.name
    broken.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BuildError, match="truncated"):
        load_extension(broken)


@ELF_ONLY
def test_text_is_no_extension(tmp_path: Path) -> None:
    broken = tmp_path / f"text{SUFFIX}"
    broken.write_text("not a library " * 20)
    with pytest.raises(BuildError, match="no ELF file"):
        load_extension(broken)


@ELF_ONLY
@pytest.mark.parametrize("at", [4, 18], ids=["32 bits", "another instruction set"])
def test_other_architecture(extension: Path, tmp_path: Path, at: int) -> None:
    data = bytearray(extension.read_bytes())
    data[at] = 1 if at == 4 else 0xF3  # 243: RISC-V
    broken = tmp_path / extension.name
    broken.write_bytes(data)
    with pytest.raises(BuildError, match="another processor architecture"):
        load_extension(broken)


def test_wrong_name(extension: Path, tmp_path: Path) -> None:
    renamed = tmp_path / f"renamed{SUFFIX}"
    shutil.copy(extension, renamed)
    with pytest.raises(BuildError, match="PyInit_renamed"):
        load_extension(renamed)


def test_extension_that_is_not_from_cffi() -> None:
    spec = importlib.util.find_spec("_json")
    if spec is None or spec.origin is None or not spec.origin.endswith(SUFFIX):
        pytest.skip("this Python has _json built in")
    with pytest.raises(BuildError, match="no cffi module"):
        load_extension(Path(spec.origin))
