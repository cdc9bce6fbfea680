"""From C text to a loadable extension: options, compiler, cache, build."""

from graphc.build.cache import Cache
from graphc.build.compiler import cpu_identity
from graphc.build.extension import build_extension, build_program, target_macros, toolchain_identity
from graphc.build.machine import measure_machine
from graphc.build.options import BuildOptions

__all__ = [
    "BuildOptions",
    "Cache",
    "build_extension",
    "build_program",
    "cpu_identity",
    "measure_machine",
    "target_macros",
    "toolchain_identity",
]
