"""The command's entry point: arguments in, exit status out.

Exit status: 0 (1 of graphc diff where something differs), 2 for whatever the user can mend (with one message and no
traceback), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from graphc.cli import build, convert, demo, diff, inspect, train
from graphc.errors import GraphcError

_COMMANDS = (demo, train, inspect, diff, build, convert)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (those of the process by default) and return its exit status."""
    parsed = make_parser().parse_args(arguments)
    # gcc's OpenMP spins while it waits. That saves microseconds on an idle machine, and makes steps ten times
    # slower where another program uses one of the processors. Read when the first module is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        status = parsed.run(parsed)
        sys.stdout.flush()
        return int(status or 0)
    except GraphcError as error:
        print(f"graphc: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # Folders and files that the user named; the compiler's and the runtime's own are GraphcErrors.
        place = f"{error.filename}: " if error.filename else ""
        print(f"graphc: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        notes = getattr(interrupt, "__notes__", [])
        print("\n".join(["graphc: stopped", *notes]), file=sys.stderr)
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; every command adds its own part."""
    parser = argparse.ArgumentParser(
        prog="graphc",
        description="Compile neural networks, written in Python as graphs, into readable C.",
        epilog="example: graphc demo",
    )
    parser.add_argument("--version", action="version", version=f"graphc {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        part = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(part)
        part.set_defaults(run=command.run)
    return parser


def _version() -> str:
    try:
        return version("graphc")
    except PackageNotFoundError:
        return "(run from its sources)"
