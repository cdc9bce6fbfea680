"""What holds for every test: how generated code waits, and that PyTorch is there where it must be."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import pytest

# Several tests run at once, each with threads of its own: waiting must not keep a processor busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew, do not compare")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--update-golden"))


def pytest_configure(config: pytest.Config) -> None:
    """Stop at once where tests against PyTorch must run and would be skipped."""
    if not os.environ.get("GRAPHC_REQUIRE_TORCH") or hasattr(config, "workerinput"):
        return
    try:
        import torch  # noqa: F401
    except ImportError as error:
        pytest.exit(f"GRAPHC_REQUIRE_TORCH is set, and PyTorch cannot be imported: {error}", returncode=1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first: one that begins last keeps one processor busy while the others wait."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_report_header() -> str:
    """Say in the log which PyTorch the results were compared with."""
    try:
        # Not by importing it, which takes seconds before the first test is found.
        return f"PyTorch: {version('torch')}"
    except PackageNotFoundError:
        return "PyTorch: not installed, the tests against it are skipped"
