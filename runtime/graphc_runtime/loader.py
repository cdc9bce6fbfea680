"""Loads a compiled extension by its path."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import struct
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from graphc_runtime.errors import BuildError

_loaded: dict[str, ModuleType] = {}
_lock = threading.Lock()

_KEY = re.compile(r"_[0-9a-f]{16}$")
_ELF_MAGIC = b"\x7fELF"
_ELF_HEADER_BYTES = 64


def load_extension(path: Path) -> tuple[Any, Any]:
    """Return ``(ffi, lib)`` of a cffi extension; the same path gives the same objects every time.

    The module's name is the file name up to its first dot, without the 16 digits of a build's key: builds with
    the same functions differ in their files only.

    Raises:
        BuildError: the file is missing, truncated, made for another processor, or not such an extension.
    """
    place = os.path.realpath(path)
    with _lock:
        module = _loaded.get(place)
        if module is None:
            module = _loaded[place] = _import(place)
    return module.ffi, module.lib


def _import(place: str) -> ModuleType:
    name = _KEY.sub("", os.path.basename(place).partition(".")[0])
    try:
        _check_elf(place)
        loader = importlib.machinery.ExtensionFileLoader(name, place)
        spec = importlib.util.spec_from_file_location(name, place, loader=loader)
        assert spec is not None  # a loader was given
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (OSError, ImportError, SystemError) as error:
        hint = ""
        if "failed to map segment" in str(error):
            hint = "; its file system may be mounted noexec: set GRAPHC_CACHE_DIR to a folder elsewhere"
        elif "undefined symbol" in str(error):
            hint = "; a library or a source file was missing when it was linked"
        raise BuildError(f"the extension {place} cannot be loaded: {error}{hint}") from error
    for attribute in ("ffi", "lib"):
        if not hasattr(module, attribute):
            raise BuildError(f"the extension {place} is no cffi module: it has no attribute {attribute!r}")
    return module


def _check_elf(place: str) -> None:
    """Raise ImportError for an ELF file that is truncated or made for another processor.

    The system's loader maps a truncated file and then dies of SIGBUS, and it reports another processor's
    file as missing. Files of other formats (macOS, Windows) are left to it.
    """
    header = _read_header(place)
    if not sys.platform.startswith("linux"):
        return
    if len(header) < _ELF_HEADER_BYTES or not header.startswith(_ELF_MAGIC):
        raise ImportError("it is truncated, or no ELF file")
    try:
        own = _read_header("/proc/self/exe")
    except OSError:
        return
    # Class (32 or 64 bits) and byte order, then the number of the instruction set.
    if (header[4:6], header[18:20]) != (own[4:6], own[18:20]):
        raise ImportError("it was made for another processor architecture than this Python")
    if header[4:6] == b"\x02\x01":  # 64 bits, little-endian
        (section_offset,) = struct.unpack_from("<Q", header, 40)
        entry_size, entries = struct.unpack_from("<HH", header, 58)
        # The table of sections is what linkers write last.
        if os.path.getsize(place) < section_offset + entry_size * entries:
            raise ImportError("it is truncated")


def _read_header(place: str) -> bytes:
    with open(place, "rb") as file:
        return file.read(_ELF_HEADER_BYTES)
