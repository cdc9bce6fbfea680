"""Measuring kernels on this machine: the variants of each, who wins, and where winners are kept."""

from graphc.tuning.store import Store, machine_of
from graphc.tuning.tuner import Tuner

__all__ = ["Store", "Tuner", "machine_of"]
