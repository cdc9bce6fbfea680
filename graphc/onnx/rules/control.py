"""Branches and loops whose course is known, and recurrent layers."""

from __future__ import annotations
