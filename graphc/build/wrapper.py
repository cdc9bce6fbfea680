"""The wrapper through which Python calls a module: cffi's text, and what decides the object that it becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from graphc.errors import BuildError

# A string is matched first, so that no comment begins inside it.
_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|/\*.*?\*/|//[^\n]*', re.DOTALL)


def wrapper_source(module: str, header: str, cdef: str) -> str:
    """Return the C text of cffi's out-of-line wrapper."""
    import io

    # Imported here: with pycparser it costs more than a cache hit, which does not need it.
    import cffi  # type: ignore[import-untyped]  # cffi ships no types

    ffi = cffi.FFI()
    text = io.StringIO()
    try:
        ffi.cdef(cdef)
        # Without compiler_verbose=0 cffi prints the file name to standard output.
        ffi.set_source(module, f'#include "{header}"', compiler_verbose=0)
        ffi.emit_c_code(text)
    except (cffi.CDefError, cffi.FFIError, cffi.VerificationError) as error:
        raise BuildError(f"cffi cannot read the declarations of {header}: {error}") from error
    return text.getvalue()


def python_include_flags() -> tuple[str, ...]:
    """Return the flags with which the compiler finds Python.h.

    Raises:
        BuildError: Python's development files are not installed.
    """
    import sysconfig

    folders = list(dict.fromkeys([sysconfig.get_path("include"), sysconfig.get_path("platinclude")]))
    if not any((Path(folder) / "Python.h").is_file() for folder in folders):
        raise BuildError(
            f"Python.h was not found in {' or '.join(folders)}; it comes with Python's development files "
            "(Debian, Ubuntu: apt-get install python3-dev)"
        )
    return tuple(f"-I{folder}" for folder in folders)


def declarations(name: str, sources: Mapping[str, str], cdef: str) -> list[str]:
    """Return the part of ``<name>.h`` that the wrapper's object depends on; equal parts give equal objects.

    before: a net's header.  after: the same without comments, and without the numbers ``#define <NAME>_...`` that
    neither the rest of the header nor ``cdef`` uses: they differ from net to net while the functions are the same.
    A header that includes another of the sources is returned as it is, with all others.
    """
    header = sources[f"{name}.h"]
    if re.search(r'^\s*#\s*include\s*"', header, re.MULTILINE):
        return [part for file in sorted(sources) if file.endswith(".h") for part in (file, sources[file])]
    plain = _STRING_OR_COMMENT.sub(lambda found: found[1] or " ", header)
    number = re.compile(rf"#define ({re.escape(name.upper())}_\w+) \d+\s*")
    words = re.findall(r"\w+", f"{plain} {cdef}")
    lines = [line.rstrip() for line in plain.split("\n") if line.strip()]
    return [line for line in lines if not ((found := number.fullmatch(line)) and words.count(found[1]) == 1)]
