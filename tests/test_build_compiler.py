"""Finding the compiler, its options, and running its commands."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from graphc.build.compiler import CommandError, cpu_identity, find_compiler, run_commands
from graphc.build.options import REFUSED_FLAGS, BuildOptions
from graphc.errors import BuildError, RangeError


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run(commands: list[list[str]], folder: Path, jobs: int = 2) -> None:
    run_commands(commands, cwd=folder, scratch=folder, jobs=jobs)


def test_no_compiler_says_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"CC is not set.*gcc, clang, cc.*apt-get install gcc"):
        find_compiler()


def test_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/gcc")
    with pytest.raises(
        BuildError, match=r"'/nowhere/gcc' \(from the environment variable CC\) was not found"
    ):
        find_compiler()
    with pytest.raises(BuildError, match=r"'none-such' \(from BuildOptions"):
        find_compiler("none-such -m64")
    with pytest.raises(BuildError, match="cannot be read"):
        find_compiler("gcc '")


def test_compiler_that_does_not_answer(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo out of order; exit 3")
    with pytest.raises(BuildError, match=r"exit status 3.*out of order"):
        find_compiler(str(broken))
    broken.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(BuildError, match="cannot be run"):
        find_compiler(str(broken))


def test_order_of_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcc", "clang", "mine", "theirs"):
        script(tmp_path / name, f'echo "{name} 1.0"; echo "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("CC", "theirs")
    assert find_compiler("mine").headline == "mine 1.0"
    assert find_compiler().headline == "theirs 1.0"
    monkeypatch.setenv("CC", " ")
    assert find_compiler().headline == "gcc 1.0"
    (tmp_path / "gcc").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "clang", "echo clang 2.0")
    assert find_compiler().headline == "clang 2.0"


def test_arguments_of_the_compiler_are_kept(tmp_path: Path) -> None:
    launcher = script(tmp_path / "my ccache", 'exec "$@"')
    compiler = find_compiler(f"'{launcher}' gcc -m64")
    assert compiler.command == (str(launcher), "gcc", "-m64")
    assert "Free Software Foundation" in compiler.version


def test_upgrade_is_noticed(tmp_path: Path) -> None:
    compiler = script(tmp_path / "cc", "echo one")
    assert find_compiler(str(compiler)).version == "one"
    script(tmp_path / "new", "echo two, a later version").rename(compiler)
    assert find_compiler(str(compiler)).version == "two, a later version"


def test_cpu_identity_is_stable_and_says_something() -> None:
    assert len(cpu_identity()) > 5
    if sys.platform.startswith("linux") and "x86" in os.uname().machine:
        assert "flags=" in cpu_identity()
        assert "sse2" in cpu_identity()


def test_commands_run_in_parallel(tmp_path: Path) -> None:
    """Each waits for the file that the other makes, so neither could end first alone."""
    meet = "touch $0; i=0; while [ ! -e $1 ]; do i=$((i+1)); [ $i -gt 500 ] && exit 1; sleep 0.02; done"
    run([["sh", "-c", meet, "a", "b"], ["sh", "-c", meet, "b", "a"]], tmp_path)


def test_one_job_runs_one_at_a_time(tmp_path: Path) -> None:
    alone = "mkdir busy || exit 1; sleep 0.05; rmdir busy"
    run([["sh", "-c", alone]] * 4, tmp_path, jobs=1)


def test_failure_ends_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(CommandError) as caught:
        run([["sh", "-c", "sleep 60 & wait"], ["sh", "-c", "echo words; echo more >&2; exit 7"]], tmp_path)
    assert time.monotonic() - start < 20
    assert caught.value.status == 7
    assert caught.value.describe_status() == "exit status 7"
    assert caught.value.output == "words\nmore\n"


def test_signal_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        run([["sh", "-c", "kill -9 $$"]], tmp_path)
    assert "SIGKILL" in caught.value.describe_status()


def test_command_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="/nowhere/cc cannot be run"):
        run([["/nowhere/cc"]], tmp_path)


def test_temporary_files_go_to_the_scratch_folder(tmp_path: Path) -> None:
    run([["sh", "-c", 'echo "$TMPDIR" > said']], tmp_path)
    assert (tmp_path / "said").read_text().strip() == str(tmp_path)


@pytest.mark.parametrize("flag", sorted(REFUSED_FLAGS))
def test_flags_that_break_nan_are_refused(flag: str) -> None:
    with pytest.raises(RangeError, match=flag):
        BuildOptions(optimisation=("-O2", flag))
    with pytest.raises(RangeError, match=flag):
        BuildOptions(extra_flags=(flag,))


def test_options_are_checked() -> None:
    with pytest.raises(RangeError, match="tuple of flags"):
        BuildOptions(extra_flags="-g")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(RangeError, match="at least 1, got 0"):
        BuildOptions(jobs=0)
    assert BuildOptions(jobs=3).job_count() == 3
    assert BuildOptions().job_count() >= 1
    assert hash(BuildOptions(extra_flags=["-g"])) == hash(  # type: ignore[arg-type]  # lists are taken too
        BuildOptions(extra_flags=("-g",))
    )


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "environment"))
    assert BuildOptions(cache_dir=tmp_path / "option").cache_root() == tmp_path / "option"
    assert BuildOptions().cache_root() == tmp_path / "environment"
    monkeypatch.setenv("GRAPHC_CACHE_DIR", "~/there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BuildOptions().cache_root() == tmp_path / "there"
    monkeypatch.delenv("GRAPHC_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if sys.platform.startswith("linux"):
        assert BuildOptions().cache_root() == tmp_path / ".cache" / "graphc"
