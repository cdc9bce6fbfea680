"""The command ``graphc``: demo, train, inspect."""

from graphc.cli.main import main

__all__ = ["main"]
