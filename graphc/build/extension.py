"""C text becomes a Python extension or a program, built once and found in the cache ever after."""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from graphc.build.cache import Cache, storage_error
from graphc.build.compiler import CommandError, Compiler, cpu_identity, find_compiler, run_commands
from graphc.build.device import DeviceCompiler, device_compiler
from graphc.build.options import BuildOptions
from graphc.build.probe import native_flags, openmp_flags, predefined_macros
from graphc.build.wrapper import declarations, python_include_flags, wrapper_source
from graphc.errors import BuildError

# Raised whenever this package builds differently from equal inputs.
BUILD_FORMAT = 2

_EXTENSION_SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
_OUTPUT_LINES = 60
_UNITS = (".c", ".cu")

# What gcc and clang read besides their command line.
_COMPILER_VARIABLES = (
    "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX",
    "SDKROOT", "MACOSX_DEPLOYMENT_TARGET", "CCC_OVERRIDE_OPTIONS",
)  # fmt: skip


@dataclass(frozen=True)
class _Toolchain:
    """The compiler and the flags that are the same for every file of a build."""

    compiler: Compiler
    standard: tuple[str, ...]
    optimisation: tuple[str, ...]
    extra: tuple[str, ...]
    device: DeviceCompiler | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags, the user's own last so that they win."""
        return self.standard + self.optimisation + self.extra

    def identity(self) -> list[str]:
        """Return what decides, besides the sources, which bits come out."""
        native = any(flag.endswith("=native") for flag in self.flags)
        return [
            str(BUILD_FORMAT),
            sys.platform,
            platform.machine(),
            *self.compiler.command,
            self.compiler.version,
            *self.flags,
            *((*self.device.command, self.device.version, *self.device.flags) if self.device else ()),
            cpu_identity() if native else "",
            *(f"{name}={os.environ.get(name, '')}" for name in _COMPILER_VARIABLES),
        ]


@dataclass(frozen=True)
class _Recipe:
    """One build: its key in the cache, what it makes, and with what."""

    key: str
    product: str
    cache: Cache
    toolchain: _Toolchain
    options: BuildOptions
    link_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Inputs:
    """The texts of all files, further flags for some of them, and under which keys objects are shared."""

    texts: Mapping[str, str]
    flags_of: Mapping[str, tuple[str, ...]]
    shared: Mapping[str, str]


def build_extension(
    name: str, sources: Mapping[str, str], cdef: str, options: BuildOptions, target: str = "c"
) -> Path:
    """Return the path of a Python extension module with the functions that ``cdef`` declares.

    Args:
        name: of the module, a C identifier; the extension is called ``_graphc_<name>_<key>``.
        sources: text of the .c, .cu and .h files by file name; ``<name>.h`` declares what ``cdef`` does.
        cdef: the declarations that Python sees, in the subset of C that cffi reads.
        options: compiler, flags and cache.
        target: ``"c"``, or what the .cu files are for: ``"cuda"`` or ``"cuda-emulated"``.

    Raises:
        BuildError: no compiler, code that does not compile (the message has the command, the compiler's
            words and the folder where the sources are), or a cache that cannot be used.
    """
    if not (name.isidentifier() and name.isascii()):
        raise BuildError(f"build_extension: {name!r} is not a C identifier")
    header = f"{name}.h"
    _check_sources(sources)
    if header not in sources:
        raise BuildError(f"build_extension {name!r}: the sources lack {header}; they are {sorted(sources)}")
    # The backend rather than cffi itself: it is much quicker to import, and cffi insists that both have
    # one version.
    import _cffi_backend  # type: ignore[import-untyped]  # cffi ships no types

    cache = Cache(options.cache_root())
    toolchain = _toolchain_for(target, options, cache)
    python = [sys.implementation.cache_tag or "", _EXTENSION_SUFFIX, _cffi_backend.__version__]
    key = _digest(["extension", name, cdef, *python, *toolchain.identity(), *_flatten(sources)])
    # The module's own name has no key in it: nets with the same functions then have the same wrapper.
    module = f"_graphc_{name}"
    wrapper = f"{module}.c"

    def inputs() -> _Inputs:
        parts = [*python, *toolchain.identity(), *declarations(name, sources, cdef)]
        shared = _digest(["wrapper", name, cdef, *parts])
        known = cache.entry(shared)
        text = wrapper_source(module, header, cdef) if known is None else (known / wrapper).read_text("utf-8")
        # The wrapper only converts arguments: -O1 makes it quick to compile at no cost to the kernels.
        flags = {wrapper: (*python_include_flags(), "-O1")}
        return _Inputs({**sources, wrapper: text}, flags, {wrapper: shared})

    product = f"{module}_{key[:16]}{_EXTENSION_SUFFIX}"
    recipe = _Recipe(key, product, cache, toolchain, options, _shared_flags())
    return _build(recipe, sources, inputs)


def build_program(sources: Mapping[str, str], main_c: str, options: BuildOptions) -> Path:
    """Return the path of an executable made of the sources and of ``main_c`` (the text of main.c).

    Raises:
        BuildError: as build_extension does.
    """
    if "main.c" in sources:
        raise BuildError("build_program: main.c is the text given as main_c; the sources have another")
    texts = {**sources, "main.c": main_c}
    _check_sources(texts)
    cache = Cache(options.cache_root())
    toolchain = _choose_toolchain(options, cache)
    key = _digest(["program", *toolchain.identity(), *_flatten(texts)])
    return _build(_Recipe(key, "program", cache, toolchain, options), texts, lambda: _Inputs(texts, {}, {}))


def target_macros(options: BuildOptions) -> str:
    """Return the compiler's predefined macros that tell the instruction set; "" where there is no compiler."""
    try:
        compiler = find_compiler(options.compiler)
    except BuildError:
        return ""  # building will say so
    cache = Cache(options.cache_root())
    flags = (*native_flags(options.optimisation, compiler, cache), *options.extra_flags)
    return predefined_macros(flags, compiler, cache)


def toolchain_identity(options: BuildOptions, target: str = "c") -> list[str]:
    """Return what decides, besides the sources, which machine code a build gives: compiler, flags, processor.

    Raises:
        BuildError: there is no compiler.
    """
    return _toolchain_for(target, options, Cache(options.cache_root())).identity()


def _build(recipe: _Recipe, sources: Mapping[str, str], inputs: Callable[[], _Inputs]) -> Path:
    """Return the product's path in the cache, and write the sources where the user wants to read them."""
    options = recipe.options
    if options.keep_sources is not None:
        try:
            _write_sources(options.keep_sources, sources)
        except OSError as error:
            message = f"BuildOptions.keep_sources: {options.keep_sources}: {error.strerror}"
            raise BuildError(message) from error
    entry = recipe.cache.entry(recipe.key)
    if entry is None:
        entry = recipe.cache.publish(recipe.key, lambda work: _compile_and_link(recipe, inputs(), work))
    elif options.verbose:
        print(f"graphc: found {entry / recipe.product}", file=sys.stderr)
    return entry / recipe.product


def _toolchain_for(target: str, options: BuildOptions, cache: Cache) -> _Toolchain:
    toolchain = _choose_toolchain(options, cache)
    if target == "c":
        return toolchain
    return replace(toolchain, device=device_compiler(target, options.optimisation))


def _choose_toolchain(options: BuildOptions, cache: Cache) -> _Toolchain:
    compiler = find_compiler(options.compiler)
    standard = ["-std=gnu11", "-fPIC", "-fvisibility=hidden"]  # gnu11, for the vector extensions.
    # The source says where a product and a sum are rounded once. A compiler that contracts as it sees fit
    # gives other bits with OpenMP than without, and may treat the rest of a vector loop unlike its body.
    standard.append("-ffp-contract=off")
    if options.openmp:
        standard += openmp_flags(compiler, cache)
    optimisation = native_flags(options.optimisation, compiler, cache)
    return _Toolchain(compiler, tuple(standard), optimisation, options.extra_flags)


def _compile_and_link(recipe: _Recipe, inputs: _Inputs, work: Path) -> None:
    """Leave in the work folder the linked product and, to be read, sources/ with the commands in build.sh."""
    folder, objects = work / "sources", work / "objects"
    objects.mkdir()
    _write_sources(folder, inputs.texts)
    compiles, link = _commands(recipe, inputs, work)
    script = ["#!/bin/sh -e", 'cd "$(dirname "$0")"', "mkdir -p ../objects"]
    script += map(shlex.join, [*compiles.values(), link])
    (folder / "build.sh").write_text("\n".join(script) + "\n", encoding="utf-8")
    for unit in _fetch_shared(recipe, inputs, folder):
        del compiles[unit]
    jobs, verbose = recipe.options.job_count(), recipe.options.verbose
    try:
        run_commands(list(compiles.values()), cwd=folder, scratch=objects, jobs=jobs, verbose=verbose)
        run_commands([link], cwd=folder, scratch=objects, jobs=1, verbose=verbose)
    except CommandError as failure:
        raise _explain(failure, recipe, work) from None
    for unit in inputs.shared.keys() & compiles.keys():
        _publish_shared(recipe, inputs, folder, unit)
    shutil.rmtree(objects)


def _fetch_shared(recipe: _Recipe, inputs: _Inputs, folder: Path) -> list[str]:
    """Copy the shared objects that the cache has to where a compiler would put them; return their units."""
    found = []
    for unit, key in inputs.shared.items():
        entry = recipe.cache.entry(key)
        if entry is not None:
            shutil.copyfile(entry / f"{unit}.o", folder / _object_of(unit))
            found.append(unit)
    return found


def _publish_shared(recipe: _Recipe, inputs: _Inputs, folder: Path, unit: str) -> None:
    """Keep an object, with the text it was made of, for other builds."""

    def fill(work: Path) -> None:
        (work / unit).write_text(inputs.texts[unit], encoding="utf-8", newline="\n")
        shutil.copyfile(folder / _object_of(unit), work / f"{unit}.o")

    recipe.cache.publish(inputs.shared[unit], fill)


def _commands(recipe: _Recipe, inputs: _Inputs, work: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return the compile command of each unit, to be run in sources/, and the link command."""
    units = [name for name in inputs.texts if name.endswith(_UNITS)]
    # Longest first: the last compiler to finish is then rarely the one that started last.
    units.sort(key=lambda name: (-len(inputs.texts[name]), name))
    flags = list(recipe.toolchain.flags)
    if any(flag.startswith("-g") for flag in flags):
        # Debuggers find the sources where they end up, not in the work folder that is gone by then.
        flags.append(f"-fdebug-prefix-map={work}={recipe.cache.entry_folder(recipe.key)}")
    command = recipe.toolchain.compiler.command
    compiles = {}
    device = recipe.toolchain.device
    for unit in units:
        special = inputs.flags_of.get(unit, ())
        head = [*command, *flags, "-iquote", "."]
        if unit.endswith(".cu") and device is not None:
            head = [*device.command, *device.flags, *recipe.options.extra_flags]
        compiles[unit] = [*head, *special, "-c", unit, "-o", _object_of(unit)]
    objects = [_object_of(unit) for unit in sorted(units)]
    linker = [*command, *flags, *recipe.link_flags]
    if device is not None and device.links:  # it knows where its runtime is
        linker = [*device.command, "-shared"]
    libraries = ["-lm", *(device.libraries if device is not None else ())]
    link = [*linker, *objects, *libraries, "-o", f"../{recipe.product}"]
    return compiles, link


def _explain(failure: CommandError, recipe: _Recipe, work: Path) -> BuildError:
    """Return the error for a command that failed, after moving its folder to where it stays."""
    if "No space left on device" in failure.output:
        return storage_error(recipe.cache.root, "No space left on device")
    kept = recipe.cache.keep_failed(recipe.key, work)
    where = "(could not be kept)" if kept is None else str(kept / "sources")
    lines = failure.output.rstrip().splitlines()
    if len(lines) > _OUTPUT_LINES:
        lines[_OUTPUT_LINES:] = [f"... and {len(lines) - _OUTPUT_LINES} more lines"]
    head = [
        f"the C compiler failed with {failure.describe_status()}",
        f"  compiler: {recipe.toolchain.compiler.headline}",
        f"  command:  {shlex.join(failure.command)}",
        f"  sources:  {where}",
    ]
    return BuildError("\n".join(head + lines))


def _shared_flags() -> tuple[str, ...]:
    if sys.platform == "darwin":
        return ("-bundle", "-undefined", "dynamic_lookup")
    return ("-shared",)


def _object_of(unit: str) -> str:
    return f"../objects/{unit.removesuffix('.c')}.o"


def _write_sources(folder: Path, texts: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _check_sources(sources: Mapping[str, str]) -> None:
    """Raise BuildError unless all names are plain names of .c, .cu and .h files, one that is compiled at least."""
    for name in sources:
        if Path(name).name != name or name.startswith(("-", ".")) or not name.endswith((*_UNITS, ".h")):
            raise BuildError(f"source {name!r}: expected the plain name of a .c or .h file")
    if not any(name.endswith(_UNITS) for name in sources):
        raise BuildError(f"there is no .c file among the sources {sorted(sources)}")


def _flatten(sources: Mapping[str, str]) -> list[str]:
    return [part for name in sorted(sources) for part in (name, sources[name])]


def _digest(parts: list[str]) -> str:
    """Return a sha256 that no other list of texts has: each part is preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
