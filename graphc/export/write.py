"""The folder of a bundle: sources, weights, build files, an example, and the records that it checks itself with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from graphc.emit.text import C_TYPE, SUFFIX
from graphc.emit.weights import CONTEXT_BYTES, DEVICE_CONTEXT_BYTES
from graphc.errors import GraphcError, RangeError
from graphc.export.bundle import STEPS, Bundle, Record
from graphc.program.ir import Argument, Entry
from graphc.types import ITEMSIZE, shape_text

_SHOWN = 10  # values that the example prints of an output
_EMBEDDINGS = ("file", "c", "object")
_WORDS_IN_LINE = 8
_HOSTED = ("example.c", "check.c", "Makefile", "CMakeLists.txt")
_ARCHITECTURES = ("80", "90")  # of GPUs; others are named when building
_BARE = ("check.c", "startup.c", "semihosting.h", "memory.ld", "Makefile")
_MORE_STACK = 512  # of a program without an operating system, beyond what the library takes
VERSION = "1.0.0"


def write_bundle(
    bundle: Bundle, folder: str | Path, *, weights: str | None = None, overwrite: bool = False
) -> Path:
    """Write a bundle and return its folder, which appears whole or not at all.

    Args:
        bundle: what is written.
        folder: where; it must not be there, or be empty, or be a bundle that ``overwrite`` says may be replaced.
        weights: ``"file"``, which is the default: read or mapped when the program starts; ``"c"``: an array in C;
            ``"object"``, the default where there are no files: linked in by the assembler.
        overwrite: replace a bundle that is there.

    Raises:
        GraphcError: the folder is there and not empty, or cannot be written.
    """
    bare = bundle.target.bare
    if weights is None:
        weights = "object" if bare else "file"
    if weights not in _EMBEDDINGS:
        raise RangeError(f"export: weights must be one of {', '.join(_EMBEDDINGS)}, got {weights!r}")
    if bare and weights == "file":
        raise RangeError(
            f"export: target {bundle.target.name!r} has no files; weights must be 'object' or 'c'"
        )
    target = Path(folder)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            if not overwrite:
                raise GraphcError(
                    f"export: {target} is there and not empty; overwrite=True replaces a bundle"
                )
            if not _is_bundle(target):
                raise GraphcError(f"export: {target} is no bundle of graphc's; what is in it is not removed")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for name, content in _files(bundle, weights).items():
                (work / name).parent.mkdir(exist_ok=True)
                (work / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            work.chmod(0o755)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise GraphcError(f"export: {error.filename or target}: {error.strerror or error}") from error
    return target


def _is_bundle(folder: Path) -> bool:
    """Whether a folder was written by an export, and holds nothing that anybody could miss."""
    makefile = folder / "Makefile"
    return makefile.is_file() and "exported by graphc" in makefile.read_text(
        encoding="utf-8", errors="replace"
    )


def _files(bundle: Bundle, weights: str) -> dict[str, str | bytes]:
    """Return the content of every file by its name."""
    name = bundle.program.name
    files: dict[str, str | bytes] = {**bundle.sources, f"{name}.weights": bundle.weights}
    if weights == "c":
        files[f"{name}_weights.c"] = _weights_as_c(name, bundle.weights)
    if weights == "object":
        files[f"{name}_weights.S"] = _weights_as_assembly(name)
    for record in bundle.records:
        for kind, arrays in (("in", record.inputs), ("out", record.outputs)):
            for key, array in arrays.items():
                files[_file(record, kind, key)] = np.ascontiguousarray(array).tobytes()
    context = _context(bundle, weights)
    if not bundle.target.device:
        files[f"{name}.hpp"] = render("wrapper.hpp", context)
    if bundle.target.device:
        files |= {file: render(file, context) for file in ("example.c", "check.c")}
        files |= {file: render(f"device/{file}", context) for file in ("Makefile", "CMakeLists.txt")}
    elif bundle.target.bare:
        files |= {file: render(f"bare/{file}", context) for file in _BARE}
    else:
        files |= {file: render(file, context) for file in _HOSTED}
        files[f"{name}.pc"] = render("package.pc", context)
    if bundle.target.name == "wasm32":
        files["run.mjs"] = render("run.mjs", context)
    files["README.md"] = render("README.md", {**context, "files": _described(files, name)})
    return files


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("graphc_templates", "bundle"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the output is C, Make and CMake
    )


def render(file: str, context: Mapping[str, Any]) -> str:
    """Return a file of the bundle from its template."""
    return _environment().get_template(f"{file}.j2").render(**context)


def _file(record: Record, kind: str, key: str) -> str:
    return f"check/{record.entry}.{kind}.{key}.bin"


def _context(bundle: Bundle, weights: str) -> dict[str, Any]:
    program, target = bundle.program, bundle.target
    name, upper = program.name, program.name.upper()
    entries = {entry.name: entry for entry in program.entries}
    records = [_record(bundle, record, entries[record.entry]) for record in bundle.records]
    sources = [file for file in bundle.sources if file.endswith((".c", ".cu"))]
    sources += {"c": [f"{name}_weights.c"], "object": [f"{name}_weights.S"]}.get(weights, [])
    elements = {
        "params": program.params_size, "grads": program.grads_size, "slots": program.slots_size,
        "state": program.states_size, "folded": program.folded_size,
    }  # fmt: skip
    if target.device:  # has its own memory, to which weights are copied
        elements["frozen"] = program.frozen_size
    kept = elements if bundle.trains or target.device else {}
    blocks = [{"name": b, "macro": b.upper()} for b, count in kept.items() if count]
    if target.bare:  # no room for what only inference after training needs
        blocks, records = [b for b in blocks if b["name"] != "folded"], records[-1:]
    kinds = sorted({o["ctype"]: o for r in records for o in r["outputs"]}.items())
    plan = bundle.plans["train_step" if bundle.trains else "predict"]
    return {
        **_target_context(bundle, sources), "memory_file": "device/memory.j2" if target.device else "memory.j2",
        "name": name, "upper": upper, "T": C_TYPE[program.dtype], "trains": bundle.trains,
        "folds": "fold" in entries, "blocks": blocks, "arena": program.arena_bytes, "embedded": weights != "file",
        "assembly": weights == "object", "record": records[-1], "records": records, "entry": records[-1]["entry"],
        "kinds": [{"suffix": o["suffix"], "ctype": o["ctype"]} for _, o in kinds], "lr": repr(bundle.lr),
        "stack": bundle.emitted.stack_bytes + _MORE_STACK,
        "objects": [str(Path(s).with_suffix(".o")) for s in sources], "sources": sources,
        "c_sources": [s for s in sources if s.endswith(".c")], "version": VERSION,
        "entries": [_method(bundle, entry) for entry in program.entries], "graph": bundle.graph,
        "batch": program.batch,
        "memory": _memory(bundle, upper), "plan": f"{plan.arena_bytes:,} bytes, where {plan.lower_bound_bytes:,} is "
        f"the lower bound for its order of kernels",
    }  # fmt: skip


def _target_context(bundle: Bundle, sources: Sequence[str]) -> dict[str, Any]:
    """Return what the build files say of the processor, or of its levels, whose common code is for the last one."""
    target = bundle.target
    levels = [
        {"name": level.target.name, "flags": level.target.flags,
         "sources": [file for file in level.emitted.sources if file.endswith(".c")]} for level in bundle.levels
    ]  # fmt: skip
    common = [*(bundle.levels[-1].target.flags if levels else target.flags)]
    common += [] if bundle.libm or "-fno-math-errno" in common else ["-fno-math-errno"]
    flags = " ".join((target.optimise, *common))
    libraries = " -lm" if bundle.libm else ""
    return {
        "target": ", ".join(level.target.name for level in bundle.levels) or target.name, "levels": levels,
        "compiler": target.compiler, "flags": flags, "runner": target.runner, "archiver": target.archiver,
        "link_flags": target.link_flags, "flash": target.flash, "ram": target.ram, "bare": target.bare,
        "cmake_flags": ";".join(common), "openmp": "-fopenmp" if target.name == "native" else "",
        "libraries": libraries, "device": target.device, "architectures": " ".join(_ARCHITECTURES),
        "arch": " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in _ARCHITECTURES),
        "compile_line": f"{target.compiler or 'cc'} {flags} example.c {' '.join(sources)}{libraries} -o example",
    }  # fmt: skip


def _record(bundle: Bundle, record: Record, entry: Entry) -> dict[str, Any]:
    training = record.entry == "train_step"
    steps = STEPS if training else 1

    def array(argument: Argument, kind: str, number: int) -> dict[str, Any]:
        values = (record.inputs if kind == "in" else record.outputs)[argument.name]
        count = int(values.size) // (steps if kind == "out" else 1)
        real = argument.dtype in ("float32", "float64")
        variable = argument.name if training and argument.name == "loss" else f"{kind}put_{number}"
        return {
            "name": argument.name, "variable": variable,
            "ctype": C_TYPE[argument.dtype], "suffix": SUFFIX[argument.dtype], "count": count,
            "recorded": int(values.size), "file": _file(record, kind, argument.name),
            "shape": f"{argument.name} {shape_text(argument.shape)}", "shown": min(count, _SHOWN),
            "format": "%g" if real else "%lld", "cast": "(double)" if real else "(long long)",
        }  # fmt: skip

    inputs = [array(a, "in", k) for k, a in enumerate(entry.inputs)]
    outputs = [array(a, "out", k) for k, a in enumerate(entry.outputs)]
    given, written = (
        "".join(f", {a['variable']}, sizeof {a['variable']}" for a in of) for of in (inputs, outputs)
    )
    more = f", {bundle.lr!r}, 1" if training else ""
    return {
        "entry": record.entry, "batch": record.batch, "steps": steps, "inputs": inputs, "outputs": outputs,
        "arguments": given + written, "more": more,
        "given": given, "staged": ", NULL, 0" * len(inputs) + written,
    }  # fmt: skip


def _method(bundle: Bundle, entry: Entry) -> dict[str, str]:
    """Return the entry point as a method of the C++ class."""
    arguments = [(a, False) for a in entry.inputs] + [(a, True) for a in entry.outputs]
    parameters = ["std::int64_t batch"] if entry.name != "fold" else []
    call = ["batch"] if entry.name != "fold" else []
    for number, (argument, written) in enumerate(arguments):
        variable = f"{'out' if written else 'in'}_{number}"
        ctype = C_TYPE[argument.dtype]
        parameters.append(
            f"{'' if written else 'const '}{ctype} *{variable} /* {argument.name} {shape_text(argument.shape)} */"
        )
        call += [variable, f"sizeof({ctype}) * static_cast<std::size_t>({_count(argument)})"]
    if entry.name == "train_step":
        parameters += ["double lr", "bool commit = true"]
        call += ["lr", "commit"]
    docs = {
        "predict": "Computes the outputs in inference mode.",
        "evaluate": "Computes loss and metrics in inference mode.",
        "train_step": "Forward, backward and, unless `commit` is false, the update of parameters and statistics.",
        "fold": "Computes what inference needs of the parameters alone; after training, before inference.",
    }
    return {
        "name": entry.name, "doc": docs[entry.name], "parameters": ", ".join(parameters),
        "call": "".join(f", {c}" for c in call),
    }  # fmt: skip


def _count(argument: Argument) -> str:
    """Return the elements of an argument as a C expression in ``batch``."""
    return str(argument.buffer.size).replace("N", "batch")


def _memory(bundle: Bundle, upper: str) -> list[dict[str, Any]]:
    program = bundle.program
    item = ITEMSIZE[program.dtype]
    context = DEVICE_CONTEXT_BYTES if bundle.target.device else CONTEXT_BYTES
    rows: list[dict[str, Any]] = [
        {"what": "weights file", "bytes": len(bundle.weights), "macro": f"{upper}_WEIGHTS_BYTES"},
        {"what": "context", "bytes": context, "macro": f"{upper}_CONTEXT_BYTES"},
    ]
    if bundle.emitted.stack_bytes:
        stack = {"bytes": bundle.emitted.stack_bytes, "macro": f"{upper}_STACK_BYTES"}
        rows.append({"what": "stack of a call, at most", **stack})
    if bundle.trains:
        sizes = {
            "parameters": ("PARAMS", program.params_size), "gradients": ("GRADS", program.grads_size),
            "optimizer's state": ("SLOTS", program.slots_size), "running statistics": ("STATE", program.states_size),
            "folded values": ("FOLDED", program.folded_size),
            "fixed values, in the weights": ("FROZEN", program.frozen_size),
        }  # fmt: skip
        rows += [
            {
                "what": what,
                "bytes": item * count,
                "macro": f"sizeof({C_TYPE[program.dtype]}) * {upper}_{macro}",
            }
            for what, (macro, count) in sizes.items()
        ]
    rows += [
        {"what": f"arena of {entry.name}", "bytes": bundle.plans[entry.name].arena_bytes,
         "macro": f"{upper}_ARENA_{entry.name.upper()}_BYTES"} for entry in program.entries
    ]  # fmt: skip
    return rows


def _weights_as_c(name: str, data: bytes) -> str:
    words = np.frombuffer(data, "<u4")
    lines = [
        ", ".join(f"0x{word:08x}" for word in words[k : k + _WORDS_IN_LINE])
        for k in range(0, len(words), _WORDS_IN_LINE)
    ]
    head = f"/* {name}_weights.c: the weights file of {name} as an array. Generated by graphc. */"
    array = f"const _Alignas(64) uint32_t {name}_weights[{len(words)}]"
    body = ",\n    ".join(lines)
    return f"{head}\n#include <stdint.h>\n\n{array} = {{\n    {body}\n}};\n"


def _weights_as_assembly(name: str) -> str:
    return (
        f"/* {name}_weights.S: the weights file of {name}, linked in as it is. Generated by graphc. */\n"
        f"    .section .rodata\n    .global {name}_weights\n    .balign 64\n{name}_weights:\n"
        f'    .incbin "{name}.weights"\n'
        '#ifdef __ELF__\n    .section .note.GNU-stack,"",%progbits\n#endif\n'
    )


def _described(files: Mapping[str, object], name: str) -> list[tuple[str, str]]:
    known = {
        f"{name}.h": "the functions, and the sizes of all memory as macros",
        f"{name}.hpp": "the same as a C++ class",
        f"{name}.c": "entry points, and the kernels of a small net",
        f"{name}_kernels.h": "what the files of kernels share",
        f"{name}.weights": "the weights: a header of 128 bytes, then blocks that are used where they lie",
        f"{name}_weights.c": "the weights as an array, to be linked in",
        f"{name}_weights.S": "the weights, linked in by the assembler",
        f"{name}.pc": "for pkg-config",
        "example.c": "a program that uses it",
        "check.c": "a program that compares it with its records in check/",
        "Makefile": "make and make check, and more that it tells",
        f"{name}.cu": "kernels, and the functions that launch them",
        "gc_simt.h": "takes a GPU's place where there is none: see EMULATED in the Makefile",
        "startup.c": "what runs before main",
        "semihosting.h": "how a program reports to a debugger or emulator",
        "memory.ld": "what goes into flash and RAM",
        "run.mjs": "runs a WebAssembly program in Node.js, with this folder as its files",
        "CMakeLists.txt": "the same for CMake, and for find_package",
    }
    return [(file, known.get(file, "kernels")) for file in files if not file.startswith("check/")]
