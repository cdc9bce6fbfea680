"""The emitted text: the same from every process, fit for any name, without allocation, paths or dates."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emitted import COMPILERS, STRICT, Emission, compile_objects, emission, lenet_module

import graphc as gc
from graphc.emit.comments import comment_text
from graphc.emit.text import indent, signature
from graphc.lower.names import _ANCHOR_WORDS, _FORM, _LOOP_WORDS

ROOT = Path(__file__).resolve().parent.parent

AWKWARD = [
    "int", "N", "in", "linux", "exp", "printf", "context", "batch", "error", "memory", "arena", "threads",
    "restrict", "class", "this", "new", "loss_bytes", "x", "x_bytes", "a.b", "a_b", "a.b_bytes", "__FILE__",
    "_Bool", "size_t", "NULL", "M_PI", "EOF", "stdin", "errno", "odd_predict", "odd_context", "gc_random",
    "gc_sum_lanes_f", "update", "FILE", "bool", "k", "params", "seed", "main", "isnan", "memset",
    "double_t",
]  # fmt: skip


def compiled_cleanly(module: Emission, folder: Path) -> None:
    failed = compile_objects("gcc", module.write(folder), (*STRICT, "-O1", "-fopenmp"))
    assert not failed, failed[0][1]


def test_same_text_from_every_process() -> None:
    """Neither the hash seed nor the folder nor the time shows in the text."""
    script = (
        "import sys; from emitted import lenet_module, sample_modules\n"
        "for m in [lenet_module(), *sample_modules('float32', most=36)]: sys.stdout.write(m.header + m.source)\n"
    )
    paths = [ROOT / p for p in ("", "runtime", "codegen_templates", "tests")]
    running = []
    for seed in ("0", "12345"):
        environment = {
            **os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }  # fmt: skip
        command = [sys.executable, "-c", script]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    texts = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert texts[0].count("#ifndef SAMPLES_") == 4
    assert len(set(texts)) == 1
    assert str(ROOT) not in texts[0]
    assert not re.search(r"\b20\d\d-\d\d|\d\d:\d\d:\d\d", texts[0])


def test_variables_of_anchored_kernels_are_reserved() -> None:
    """An operand or value that the user has called like a variable of a template gets another name."""
    folder = ROOT / "codegen_templates/graphc_templates/c"
    outside = {
        "entries",
        "kernel",
        "kernels.h",
        "loops",
        "module",
        "module.h",
        "prelude",
        "unit",
        "update",
    } | {"weights"}
    declared = re.compile(r"(?:\bint\d*(?:_t)?|\{\{ [TV] \}\}) (?:\*const |\*)?([a-z]\w*)(?= *[=;\[,])")
    found = {
        name
        for path in folder.glob("*.j2")
        if path.name.split(".c.")[0].removesuffix(".j2") not in outside
        for name in declared.findall(path.read_text())
    }
    assert {"sum", "tile", "acc", "share", "i_begin"} <= found
    reserved = _ANCHOR_WORDS | _LOOP_WORDS | {"pool_index", "pool_max"}
    assert {name for name in found if name not in reserved and not _FORM.fullmatch(name)} == set()


def test_no_allocation_and_nothing_public_but_the_interface() -> None:
    """Kernels and helpers are static, and nothing allocates."""
    module = lenet_module()
    assert not re.search(r"\b(malloc|calloc|realloc|free|alloca)\b", module.source)
    defined = re.findall(
        r"^(?!static|typedef|struct|enum|extern)(?:\w+[ *]+)+(\w+)\(", module.source, re.MULTILINE
    )
    # All other names of several modules may be the same when they are linked into one program.
    assert defined
    assert all(name.startswith("lenet_") or name == "GC_VECTOR" for name in defined), defined


def test_layout() -> None:
    """No trailing blanks, no double empty lines, none after an opening brace, balanced to the margin."""
    module = lenet_module()
    for text in (module.source, module.header):
        lines = text.split("\n")
        assert text.endswith("\n") and not text.endswith("\n\n")
        assert not any(line != line.rstrip() for line in lines)
        assert "\n\n\n" not in text
        assert "{\n\n" not in text and "\n\n}" not in text
        assert "\t" not in text
        assert all(line.startswith("}") for line in lines if re.fullmatch(r"\}.*", line))


def test_every_kernel_says_what_it_computes() -> None:
    """Above each kernel: its name, nodes and the user's lines, shapes, FLOPs and bytes."""
    source = lenet_module().source
    kernels = re.findall(r"/\* (\w+)\n((?: \* .*\n)+) \*/\nstatic void (\w+)\(", source)
    static = re.findall(r"^static void (\w+)\(", source, re.MULTILINE)
    assert [k[2] for k in kernels] == [s for s in static if s != "update"]
    for title, comment, name in kernels:
        assert title == name
        assert re.search(r"^ \* from .+, at emitted\.py:\d+", comment, re.MULTILINE), comment
        assert re.search(r"[ *]\d.* FLOP, .+ bytes, used by \w+", comment), comment
        assert re.search(r"[;*] (out\w*|inout): \w+ \(", comment), comment


@pytest.mark.parametrize("what", ["inputs", "layers", "functions", "outputs"])
def test_awkward_names(what: str, tmp_path: Path) -> None:
    """Words of C and C++, macros, functions of the C library, names that become equal: all compile."""
    total: gc.Tensor | None = None
    outputs = {}
    x = gc.input("first", ("N", 3))
    for number, name in enumerate(AWKWARD):
        if what == "inputs":
            value = gc.input(name, ("N", 3))
        elif what == "layers":
            value = gc.nn.linear(x, 3, name=name)
        elif what == "functions":
            value = gc.elementwise(
                name, f"exp(u)*{number + 1} + u*v", x, gc.parameter(f"p{number}", (3,), 0.5)
            )
        else:
            value = x * (number + 2.0)
            outputs[name] = gc.softmax(value)
        total = value if total is None else total + gc.tanh(value)
    assert total is not None
    if not outputs:
        outputs = {"out": total, "rows": gc.sum(total, 1)}
    weight = gc.parameter("scale", (3,), 1.0)
    module = emission("odd", outputs, gc.mean(gc.square(total * weight)), gc.SGD(lr=0.1))
    compiled_cleanly(module, tmp_path)


@pytest.mark.parametrize("name", ["math", "stdio", "string", "gc", "linux", "int", "main", "net"])
def test_awkward_module_names(name: str) -> None:
    """A module may have the name of a header of the C library: its own header is found by quotes only."""
    x = gc.input("x", ("N", 3))
    module = gc.compile({"out": gc.exp(x)}, name=name)
    np.testing.assert_allclose(module.predict(x=np.zeros((1, 3), np.float32))["out"], 1)


def test_a_file_name_cannot_leave_its_comment(tmp_path: Path) -> None:
    """Names of tensors are checked; the name of the user's file is not, and it stands in comments."""
    code = compile("value = gc.exp(x) + 1", "evil\n#error injected\nint injected; \\", "exec")
    scope = {"gc": gc, "x": gc.input("x", ("N", 4))}
    exec(code, scope)
    module = emission("safe", {"out": scope["value"]})
    assert "injected" in module.source
    compiled_cleanly(module, tmp_path)
    assert "injected" not in re.sub(r"/\*.*?\*/", "", module.source, flags=re.DOTALL)


def test_comment_text() -> None:
    """Whatever goes in, no delimiter of a comment and no second line comes out."""
    for text in ("*/", "/*", "*/*/", "/*/", "**//", "a\nb", "\u202e", "x\\", "/*/*/"):
        got = comment_text(text)
        assert "*/" not in got and "/*" not in got and "\n" not in got and got.isascii()
        assert not got.endswith("\\")


def test_formulas_are_those_of_the_code() -> None:
    """Values used once stand inside the formula that uses them, in parentheses where they are no atoms."""
    x, y = gc.input("x", ("N", 6)), gc.input("y", ("N", 6))
    source = emission("f", {"out": x / (1.0 / (y + 1.0)), "total": gc.sum(gc.exp(x - y), 1)}).source
    assert " * out = x/(1/(y + 1))\n" in source
    assert " * out = sum(exp(x - y) over i1)\n" in source


def test_indent_and_signature() -> None:
    """The layout of nested loops, one-line bodies, comments and long argument lists."""
    text = "void f(void)\n{\n\nfor (;;)\nif (a)\nb();\n/* open { (\n* here */\n{\nc(d,\ne);\n}\n\n}"
    assert indent(text) == (
        "void f(void)\n{\n    for (;;)\n        if (a)\n            b();\n    /* open { (\n     * here */\n"
        "    {\n        c(d,\n            e);\n    }\n}"
    )
    assert signature("f", ["a", "b"]) == "f(a, b)"
    long = signature("function", [f"const float *argument_{k}" for k in range(9)])
    assert all(len(line) <= 110 for line in long.split("\n"))
    assert long.replace("\n", " ").count("argument_") == 9


@pytest.mark.parametrize("compiler", COMPILERS)
def test_two_modules_in_one_program(compiler: str, tmp_path: Path) -> None:
    """No symbol is defined twice when two modules of the same net are linked."""
    modules = [lenet_module("one"), lenet_module("two")]
    paths = [path for m in modules for path in m.write(tmp_path)]
    assert not compile_objects(compiler, paths, (*STRICT, "-O0"))
    main = tmp_path / "main.c"
    main.write_text('#include "one.h"\n#include "two.h"\nint main(void) { return one_abi() != two_abi(); }\n')
    objects = [p.with_suffix(".o") for p in paths]
    subprocess.run([compiler, main, *objects, "-lm", "-o", tmp_path / "both"], check=True)
    assert subprocess.run([tmp_path / "both"]).returncode == 0
