"""From C text to a loadable extension: options, compiler, cache, build."""

from graphc.build.cache import Cache
from graphc.build.extension import build_extension, build_program, target_macros
from graphc.build.options import BuildOptions

__all__ = ["BuildOptions", "Cache", "build_extension", "build_program", "target_macros"]
