"""The C compiler: which one, which version, on which processor, and how its commands are run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphc.errors import BuildError

CANDIDATES = ("gcc", "clang", "cc")

_INSTALL_HINT = (
    "Install one (Debian, Ubuntu: apt-get install gcc; Fedora: dnf install gcc; "
    "macOS: xcode-select --install) or name one in CC or BuildOptions(compiler=...)."
)

_VERSION_TIMEOUT_SECONDS = 60

# The fields of /proc/cpuinfo (x86 and ARM) from which a compiler derives -march=native.
_CPU_FIELDS = frozenset(
    {
        "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
        "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "isa", "uarch",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Compiler:
    """A compiler that was found and has answered ``--version``.

    Attributes:
        command: its command line; the first word is an absolute path.
        version: everything that ``--version`` printed.
    """

    command: tuple[str, ...]
    version: str

    @property
    def headline(self) -> str:
        """The first line of the version text."""
        return self.version.partition("\n")[0]


class CommandError(Exception):
    """A compile or link command failed; the caller knows where the sources are and makes a BuildError."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        """Keep the command, its exit status (negative: a signal) and what it printed."""
        super().__init__(f"{command[0]}: exit status {status}")
        self.command = tuple(command)
        self.status = status
        self.output = output

    def describe_status(self) -> str:
        """Return ``exit status 1``, or the name of the signal that ended the command."""
        if self.status >= 0:
            return f"exit status {self.status}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-self.status).name
            return f"{name} (out of memory?)" if name == "SIGKILL" else name
        return f"signal {-self.status}"


def find_compiler(requested: str | None = None) -> Compiler:
    """Return the compiler that the options, ``$CC`` or ``PATH`` name, in that order.

    Raises:
        BuildError: none is there, the named one is not, or it does not answer ``--version``.
    """
    origin = "BuildOptions(compiler=...)"
    text = requested
    if text is None:
        origin, text = "the environment variable CC", os.environ.get("CC")
    if text is not None and text.strip():
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BuildError(f"C compiler {text!r} (from {origin}) cannot be read: {error}") from error
        path = shutil.which(words[0])
        if path is None:
            raise BuildError(f"C compiler {words[0]!r} (from {origin}) was not found. {_INSTALL_HINT}")
        return ask_version((os.path.abspath(path), *words[1:]))
    for name in CANDIDATES:
        path = shutil.which(name)
        if path is not None:
            return ask_version((os.path.abspath(path),))
    raise BuildError(
        "no C compiler was found: CC is not set, and PATH has none of "
        f"{', '.join(CANDIDATES)} (PATH={os.environ.get('PATH', '')!r}). {_INSTALL_HINT}"
    )


def ask_version(command: tuple[str, ...]) -> Compiler:
    """Return the compiler with its version, asked once in a process for each state of the executable."""
    try:
        status = os.stat(command[0])
    except OSError as error:
        raise BuildError(f"C compiler {command[0]} cannot be used: {error.strerror}") from error
    # The stamp makes a long-lived notebook notice that the compiler was upgraded.
    return _ask_version_once(command, (status.st_mtime_ns, status.st_size, status.st_ino))


@functools.lru_cache(maxsize=32)
def _ask_version_once(command: tuple[str, ...], stamp: tuple[int, ...]) -> Compiler:
    del stamp  # Only distinguishes cache entries.
    try:
        answer = subprocess.run(
            [*command, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            timeout=_VERSION_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"C compiler {shlex.join(command)} cannot be run: {error}") from error
    text = answer.stdout.decode(errors="replace").strip()
    if answer.returncode != 0:
        raise BuildError(
            f"C compiler {shlex.join(command)} does not answer --version "
            f"(exit status {answer.returncode}): {text[:500]}"
        )
    return Compiler(command, text)


@functools.cache
def cpu_identity() -> str:
    """Return text that is equal on two machines only if ``-march=native`` means the same on both.

    On Linux it is the model and the feature flags of the first processor, elsewhere ``platform.processor()``.
    """
    fields = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        # Only the first record: the kernel makes them as they are read, slowly where there are hundreds.
        for line in lines:
            if not line.strip():
                break
            name, _, value = line.partition(":")
            if name.strip() in _CPU_FIELDS:
                fields.append(f"{name.strip()}={value.strip()}")
    return "\n".join([platform.machine(), *(fields or [platform.processor()])])


class _Children:
    """The running subprocesses of one build, so that an interruption can end them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def run(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        """Run one command to its end; raise CommandError unless it returns 0."""
        with self._lock:
            if self._closed:
                return
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    # A process group of its own: gcc's own children (cc1, as, ld) can be ended with it.
                    start_new_session=True,
                )
            except OSError as error:
                raise BuildError(f"C compiler {command[0]} cannot be run: {error}") from error
            self._running.add(process)
        try:
            output, _ = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode != 0:
            raise CommandError(command, process.returncode, output.decode(errors="replace"))

    def kill(self) -> None:
        """End all running commands with their children, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                if process.returncode is not None:
                    continue  # Ended and reaped: its number may be another process's by now.
                with contextlib.suppress(OSError):
                    if hasattr(os, "killpg"):
                        os.killpg(process.pid, signal.SIGKILL)
                    else:
                        process.kill()


@contextlib.contextmanager
def _killing_on_error(children: _Children) -> Iterator[None]:
    """End all commands when the body raises, a KeyboardInterrupt included."""
    try:
        yield
    except BaseException:
        children.kill()
        raise


def run_commands(
    commands: Sequence[Sequence[str]], *, cwd: Path, scratch: Path, jobs: int, verbose: bool = False
) -> None:
    """Run independent commands, up to ``jobs`` at once; when it returns, all have succeeded.

    The first failure ends the others. No command outlives the call, even when Ctrl-C interrupts it.

    Args:
        commands: command lines, the longest-running first.
        cwd: the folder in which they run.
        scratch: where compilers put their temporary files, so that a killed one leaves nothing in /tmp.
        jobs: how many run at once.
        verbose: print each command to standard error.

    Raises:
        CommandError: one command returned a status other than 0.
        BuildError: one could not be started.
    """
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(scratch)}
    if verbose:
        for command in commands:
            print(shlex.join(command), file=sys.stderr, flush=True)
    children = _Children()
    # The executor is the outer block: its exit waits for its threads, which end once the commands are killed.
    with (
        concurrent.futures.ThreadPoolExecutor(max_workers=max(1, min(jobs, len(commands)))) as executor,
        _killing_on_error(children),
    ):
        futures = [executor.submit(children.run, command, cwd, environment) for command in commands]
        for future in concurrent.futures.as_completed(futures):
            future.result()
