"""Operators that sample images at other places: resize, grids, regions."""

from __future__ import annotations
