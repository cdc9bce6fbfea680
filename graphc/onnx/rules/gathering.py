"""Gathering and scattering by index."""

from __future__ import annotations
