"""Measuring kernels on this machine: the variants of each, who wins, and where winners are kept."""

from graphc.tuning.device import device_name
from graphc.tuning.store import Store, device_machine, machine_of
from graphc.tuning.tuner import Tuner

__all__ = ["Store", "Tuner", "device_machine", "device_name", "machine_of"]
