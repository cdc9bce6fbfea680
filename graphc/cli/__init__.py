"""The command ``graphc``: demo, train, inspect, convert."""

from graphc.cli.main import main

__all__ = ["main"]
