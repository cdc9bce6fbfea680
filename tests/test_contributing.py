"""The code in CONTRIBUTING.md runs, and the op that it adds passes the contract tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CONTRACT = """
import test_contract
from graphc.ops.registry import REGISTRY

for name in ("gaussian", "diagonal"):
    for sample in REGISTRY[name]():
        assert test_contract.is_smooth(sample)
        for dtype in ("float32", "float64"):
            test_contract.test_value(sample, dtype)
        test_contract.test_gradient(sample)
        test_contract.test_second_derivative(sample)
print("passed")
"""


def test_its_code_runs_and_its_ops_keep_the_contract(tmp_path: Path) -> None:
    """In a process of its own, for it registers ops."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    program = tmp_path / "contributing.py"
    program.write_text("\n".join([*blocks, CONTRACT]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr


def test_it_names_files_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:graphc|docs|codegen_templates|\.ci|tests)/[\w./]+)`", page))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for pattern in re.findall(r"`(test_[\w*]+\.py)`", page):
        assert list((ROOT / "tests").glob(pattern)), pattern
