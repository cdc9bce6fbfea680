"""Take a compiled module to where there is no Python: C source, weights, a program that checks itself."""

from graphc.export.bundle import Bundle, make_bundle
from graphc.export.targets import TARGETS, Target, targets_named
from graphc.export.wheel import write_wheel
from graphc.export.write import write_bundle

__all__ = ["TARGETS", "Bundle", "Target", "make_bundle", "targets_named", "write_bundle", "write_wheel"]
