"""The layers import downward only, nothing is imported late to hide a cycle, and the runtime stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"graphc": ROOT / "graphc", "graphc_runtime": ROOT / "runtime" / "graphc_runtime"}

# From the bottom up. A module may import its own layer and those above it in this list.
LAYERS = [
    ["graphc.errors"],
    ["graphc.types", "graphc.philox"],
    ["graphc.isa", "graphc.rewrites"],
    ["graphc.scalar", "graphc.graph.source"],
    ["graphc.memory", "graphc.build"],
    ["graphc.graph", "graphc.initialisers"],
    ["graphc.ops"],
    ["graphc.graph.interpret"],
    ["graphc.functional", "graphc.differentiate"],
    ["graphc.nn", "graphc.losses", "graphc.metrics", "graphc.models"],
    ["graphc.program"],
    ["graphc.passes", "graphc.optim"],
    ["graphc.layout", "graphc.lower"],
    ["graphc.emit"],
    ["graphc.pipeline"],
    ["graphc.onnx"],
    ["graphc.artifact", "graphc.layers"],
    ["graphc.translation"],
    ["graphc.tuning"],
    ["graphc.export"],
    ["graphc.api"],
    ["graphc.onnx_backend"],
    ["graphc.gradients", "graphc.inspection"],
    ["graphc"],
    ["graphc.cli", "graphc.__main__"],
]
# Third-party packages that a function may import for itself: extras that may be missing, and what costs more
# time to import than a build takes that is found in the cache.
DEFERRED = {
    "_cffi_backend",
    "cffi",
    "filelock",
    "matplotlib",
    "onnx",
    "platformdirs",
    "rich",
    "safetensors",
    "torch",
    "tqdm",
}
# The compiler shares the runtime's errors; only what joins the two may use the rest of it.
JOINS = (
    "graphc.api",
    "graphc.cli",
    "graphc.export",
    "graphc.gradients",
    "graphc.inspection",
    "graphc.tuning",
)


@dataclass(frozen=True)
class Import:
    """``importer`` needs ``imported``; ``late`` inside a function, ``checked`` for the type checker only."""

    importer: str
    imported: str
    line: int
    late: bool
    checked: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path, package: str) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join([package, *(p for p in parts if p != "__init__")])


MODULES = {
    module_name(path, package): path for package, folder in PACKAGES.items() for path in folder.rglob("*.py")
}


class Collector(ast.NodeVisitor):
    """Collects the imports of one module, with where they stand."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.found: list[Import] = []
        self.late = self.checked = False

    def add(self, name: str, line: int) -> None:
        self.found.append(Import(self.module, name, line, self.late, self.checked))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self.module}:{node.lineno}: a relative import"
        assert node.module is not None
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            self.add(inner if inner in MODULES else node.module, node.lineno)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.late = self.late, True
        self.generic_visit(node)
        self.late = before

    def visit_If(self, node: ast.If) -> None:
        before, self.checked = self.checked, self.checked or ast.unparse(node.test) == "TYPE_CHECKING"
        self.generic_visit(node)
        self.checked = before


def collect(module: str) -> list[Import]:
    collector = Collector(module)
    collector.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return collector.found


IMPORTS = [found for module in MODULES for found in collect(module)]


def layer_of(module: str) -> int:
    """Return the layer with the longest prefix of the module's name."""
    best = max(
        ((len(prefix), number) for number, layer in enumerate(LAYERS) for prefix in layer
         if module == prefix or (prefix != "graphc" and module.startswith(prefix + "."))),
        default=None,
    )  # fmt: skip
    assert best is not None, f"{module} belongs to no layer: enter it in LAYERS"
    return best[1]


def test_the_lists_name_what_exists() -> None:
    assert len(MODULES) > 60
    assert [p for layer in LAYERS for p in layer if p not in MODULES] == []


def test_layers_import_downward_only() -> None:
    upward = [
        f"{i} (layer {layer_of(i.importer)} imports layer {layer_of(i.imported)})"
        for i in IMPORTS
        if i.importer.split(".")[0] == i.imported.split(".")[0] == "graphc"
        and layer_of(i.imported) > layer_of(i.importer)
    ]
    assert upward == []


def test_the_compiler_knows_the_runtimes_errors_only() -> None:
    wrong = [
        str(i)
        for i in IMPORTS
        if i.imported.split(".")[0] == "graphc_runtime"
        and i.importer.split(".")[0] == "graphc"
        and i.imported != "graphc_runtime.errors"
        and not i.importer.startswith(JOINS)
    ]
    assert wrong == []


def test_the_runtime_knows_no_compiler() -> None:
    wrong = [
        str(i)
        for i in IMPORTS
        if i.importer.startswith("graphc_runtime")
        and i.imported.split(".")[0] in ("graphc", "graphc_templates", "sympy", "jinja2")
    ]
    assert wrong == []


def test_no_function_imports_what_belongs_to_the_top() -> None:
    """Late are extras, what is slow, and own modules that import an extra at their top."""
    allowed = DEFERRED | set(sys.stdlib_module_names)
    need_an_extra = {
        i.importer for i in IMPORTS if not i.late and not i.checked and i.imported.split(".")[0] in DEFERRED
    }
    wrong = [
        str(i)
        for i in IMPORTS
        if i.late and i.imported.split(".")[0] not in allowed and i.imported not in need_an_extra
    ]
    assert wrong == []


def test_only_the_converter_imports_pytorch() -> None:
    assert {(i.importer, i.late) for i in IMPORTS if i.imported.split(".")[0] == "torch"} == {
        ("graphc.cli.convert", True)
    }


def test_there_is_no_cycle() -> None:
    needs: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in IMPORTS:
        if i.imported in MODULES and not i.checked and i.imported != i.importer:
            needs[i.importer].add(i.imported)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(needs[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(needs):
        visit(module, ())


def test_the_collector_sees_what_it_must() -> None:
    """The collector sees imports in functions, of submodules, and for the type checker."""
    source = (
        "import numpy as np\nfrom graphc.ops import registry\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import graphc.api\n"
        "def f():\n    from graphc.graph.node import Node\n    def g():\n        import torch\n"
    )
    collector = Collector("graphc.sample")
    collector.visit(ast.parse(source))
    seen = [(i.imported, i.late, i.checked) for i in collector.found]
    assert seen == [
        ("numpy", False, False),
        ("graphc.ops.registry", False, False),
        ("typing", False, False),
        ("graphc.api", False, True),
        ("graphc.graph.node", True, False),
        ("torch", True, False),
    ]
    assert layer_of("graphc.graph.source") < layer_of("graphc.graph.node") < layer_of("graphc.cli.demo")


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import graphc_runtime", "graphc graphc_templates sympy jinja2 matplotlib tqdm safetensors torch"),
        ("import graphc", "matplotlib rich tqdm safetensors torch sklearn pycparser"),
        ("import graphc.cli", "matplotlib rich tqdm safetensors torch sklearn"),
    ],
)  # fmt: skip
def test_importing_loads_no_more_than_it_must(statement: str, unwanted: str) -> None:
    code = f"import sys\n{statement}\nprint(*sorted(set({unwanted.split()!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == []
