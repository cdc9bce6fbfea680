"""What a user may choose about a build: compiler, flags, cache folder, parallelism."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from graphc.errors import BuildError, RangeError

# The first three make gcc link crtfastmath.o into the shared object: merely loading it then turns on
# flush-to-zero for the whole process, NumPy included. All of them break NaN and Inf.
REFUSED_FLAGS = frozenset(
    {"-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-ffinite-math-only", "-ffp-model=fast"}
)


@dataclass(frozen=True)
class BuildOptions:
    """How C text is compiled; the defaults suit code that runs on the machine that compiles it.

    Attributes:
        compiler: command of the C compiler, arguments allowed (``"ccache gcc"``); ``None`` takes ``$CC``,
            else the first of gcc, clang and cc on ``PATH``.
        optimisation: flags that choose speed and instruction set.
        extra_flags: further flags, passed last when compiling and when linking.
        openmp: use threads, where the compiler accepts ``-fopenmp``.
        cache_dir: where built extensions are kept; ``None`` takes ``$GRAPHC_CACHE_DIR``, else the user's
            cache folder.
        keep_sources: a folder that also receives the sources, to be read.
        jobs: compilers run at once; ``None`` means one for each usable processor.
        verbose: print every command to standard error.

    Raises:
        RangeError: flags given as one string, a flag that breaks NaN and Inf, or ``jobs`` below 1.
    """

    compiler: str | None = None
    optimisation: tuple[str, ...] = ("-O3", "-march=native")
    extra_flags: tuple[str, ...] = ()
    openmp: bool = True
    cache_dir: Path | None = None
    keep_sources: Path | None = None
    jobs: int | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail late or do harm."""
        for name in ("optimisation", "extra_flags"):
            flags = getattr(self, name)
            if isinstance(flags, str):
                raise RangeError(
                    f'BuildOptions.{name}: expected a tuple of flags such as ("-O2", "-g"), '
                    f"got the string {flags!r}"
                )
            # A list would make the options unhashable.
            object.__setattr__(self, name, tuple(flags))
        refused = sorted(REFUSED_FLAGS.intersection(self.optimisation + self.extra_flags))
        if refused:
            raise RangeError(
                f"BuildOptions: {' '.join(refused)} is refused: it breaks NaN and Inf, in the whole process; "
                "use single flags such as -fno-math-errno instead"
            )
        if self.jobs is not None and self.jobs < 1:
            raise RangeError(f"BuildOptions.jobs: expected at least 1, got {self.jobs}")

    def cache_root(self) -> Path:
        """Return the absolute folder of the build cache, which need not exist.

        Raises:
            BuildError: neither the options nor the environment name one and there is no home folder.
        """
        chosen = self.cache_dir or os.environ.get("GRAPHC_CACHE_DIR")
        try:
            if chosen:
                return Path(chosen).expanduser().absolute()
            # Imported here because it costs as much as a cache hit, and is not needed by the other branch.
            import platformdirs

            root = Path(platformdirs.user_cache_dir("graphc", appauthor=False))
        except RuntimeError as error:
            raise BuildError(f"the build cache has no folder ({error}); set GRAPHC_CACHE_DIR") from error
        if not root.is_absolute():
            raise BuildError("the build cache has no folder: this user has no home; set GRAPHC_CACHE_DIR")
        return root

    def job_count(self) -> int:
        """Return how many compilers run at once, at least 1."""
        if self.jobs is not None:
            return self.jobs
        if hasattr(os, "sched_getaffinity"):
            # Fewer than cpu_count() where a container or taskset confines the process.
            return max(1, len(os.sched_getaffinity(0)))
        return os.cpu_count() or 1
