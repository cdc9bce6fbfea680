"""C text becomes an extension: cached, built once, and clear about what went wrong."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphc.build import BuildOptions, Cache, build_extension, build_program
from graphc.build.wrapper import declarations
from graphc.errors import BuildError
from graphc_runtime.loader import load_extension

HEADER = "#pragma once\nint tiny_add(int a, int b);\nint tiny_threads(void);\n"
SOURCES = {
    "tiny.h": HEADER,
    "add.c": '#include "tiny.h"\nint tiny_add(int a, int b) { return a + b; }\n',
    "threads.c": """#include "tiny.h"
#ifdef _OPENMP
#include <omp.h>
int tiny_threads(void) { return omp_get_max_threads(); }
#else
int tiny_threads(void) { return 0; }
#endif
""",
}
CDEF = "int tiny_add(int a, int b); int tiny_threads(void);"


class CountingCompiler:
    """gcc behind a script that notes its calls and can be told to misbehave."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.slow = folder / "slow"
        self.pids = folder / "pids"
        self.path = folder / "counting-cc"
        self.refused = folder / "refused"
        self.path.write_text(
            "#!/bin/sh\n"
            'case "$*" in --version) exec gcc --version;; esac\n'
            f'printf "%s\\n" "$*" >> "{self.log}"\n'
            f'if [ -e "{self.slow}" ]; then case "$*" in *" -c "*)\n'
            f'  echo $$ >> "{self.pids}"; exec sleep 60;; esac; fi\n'
            f'for flag in $(cat "{self.refused}" 2>/dev/null); do\n'
            '  case " $* " in *" $flag "*) echo "unknown flag $flag" >&2; exit 1;; esac; done\n'
            'exec gcc "$@"\n'
        )
        self.path.chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def compiled(self, unit: str) -> int:
        return sum(f"-c {unit} " in call for call in self.calls())

    def sleepers(self) -> list[int]:
        return [int(line) for line in self.pids.read_text().split()] if self.pids.exists() else []


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[CountingCompiler]:
    compiler = CountingCompiler(tmp_path)
    yield compiler
    for pid in compiler.sleepers():
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions(cache_dir=tmp_path / "cache", optimisation=("-O1",))


def is_alive(pid: int) -> bool:
    try:
        return "sleep" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def wait_for(path: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        assert process is None or process.poll() is None, "the process ended early"
        time.sleep(0.01)


def build_elsewhere(options: BuildOptions, ending: str = "") -> subprocess.Popen[bytes]:
    """Start another Python that builds the extension; its output ends in the path."""
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path, PosixPath
from graphc.build import BuildOptions, build_extension
print(build_extension("tiny", {SOURCES!r}, {CDEF!r}, {options!r}))
{ending}
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def test_builds_two_units_and_calls_them(options: BuildOptions) -> None:
    path = build_extension("tiny", SOURCES, CDEF, options)
    _, lib = load_extension(path)
    assert lib.tiny_add(2, 3) == 5
    assert lib.tiny_threads() >= 1
    assert path.name.startswith("_graphc_tiny_")
    assert path.stat().st_mode & 0o022 == 0


def test_only_the_module_is_visible(options: BuildOptions) -> None:
    library = ctypes.CDLL(str(build_extension("tiny", SOURCES, CDEF, options)))
    with pytest.raises(AttributeError):
        _ = library.tiny_add


def test_nothing_is_printed(options: BuildOptions, capfd: pytest.CaptureFixture[str]) -> None:
    build_extension("tiny", SOURCES, CDEF, options)
    assert capfd.readouterr() == ("", "")


def test_verbose_prints_the_commands(options: BuildOptions, capfd: pytest.CaptureFixture[str]) -> None:
    verbose = dataclasses.replace(options, verbose=True)
    path = build_extension("tiny", SOURCES, CDEF, verbose)
    assert "-c add.c" in capfd.readouterr().err
    build_extension("tiny", SOURCES, CDEF, verbose)
    assert f"found {path}" in capfd.readouterr().err


def test_second_build_runs_no_compiler(
    options: BuildOptions, counting: CountingCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", str(counting.path))
    first = build_extension("tiny", SOURCES, CDEF, options)
    calls = len(counting.calls())
    assert counting.compiled("add.c") == 1
    assert build_extension("tiny", SOURCES, CDEF, options) == first
    assert len(counting.calls()) == calls


def test_equal_declarations_share_the_wrapper(options: BuildOptions, counting: CountingCompiler) -> None:
    options = dataclasses.replace(options, compiler=str(counting.path))
    add = SOURCES["add.c"]
    others = [
        SOURCES,
        {**SOURCES, "add.c": add.replace("a + b", "a + b + 1")},
        {**SOURCES, "tiny.h": f"/* another net */\n#define TINY_SIZE 7\n{HEADER}"},
    ]
    libraries = [load_extension(build_extension("tiny", each, CDEF, options))[1] for each in others]
    assert [lib.tiny_add(2, 3) for lib in libraries] == [5, 6, 5]
    assert (counting.compiled("add.c"), counting.compiled("_graphc_tiny.c")) == (3, 1)


def test_wrapper_is_compiled_anew_where_it_could_differ(
    options: BuildOptions, counting: CountingCompiler
) -> None:
    options = dataclasses.replace(options, compiler=str(counting.path))
    sized = {**SOURCES, "tiny.h": f"#define TINY_SIZE 7\ntypedef char tiny_name[TINY_SIZE];\n{HEADER}"}
    named = f"{CDEF} typedef char tiny_name[...];"
    sizes = []
    for size in ("7", "8"):
        header = sized["tiny.h"].replace("7", size)
        ffi, _ = load_extension(build_extension("tiny", {**sized, "tiny.h": header}, named, options))
        sizes.append(ffi.sizeof("tiny_name"))
    assert sizes == [7, 8]
    build_extension("tiny", SOURCES, "int tiny_add(int a, int b);", options)
    build_extension("tiny", SOURCES, CDEF, dataclasses.replace(options, optimisation=("-O2",)))
    assert counting.compiled("_graphc_tiny.c") == 4


def test_header_that_disagrees_is_found_with_a_shared_wrapper(options: BuildOptions) -> None:
    build_extension("tiny", SOURCES, CDEF, options)
    wrong = {
        name: text.replace("int tiny_add(int a", "int tiny_add(int *a") for name, text in SOURCES.items()
    }
    wrong["add.c"] = wrong["add.c"].replace("a + b", "*a + b")
    strict = dataclasses.replace(options, extra_flags=("-Werror",))
    build_extension("tiny", SOURCES, CDEF, strict)
    with pytest.raises(BuildError, match="tiny_add"):
        build_extension("tiny", wrong, CDEF, strict)


def test_damaged_wrapper_is_compiled_again(options: BuildOptions, counting: CountingCompiler) -> None:
    options = dataclasses.replace(options, compiler=str(counting.path))
    build_extension("tiny", SOURCES, CDEF, options)
    (shared,) = options.cache_root().glob("entries/*/_graphc_tiny.c.o")
    shared.write_bytes(shared.read_bytes()[:100])
    other = {**SOURCES, "add.c": SOURCES["add.c"] + "\n"}
    assert load_extension(build_extension("tiny", other, CDEF, options))[1].tiny_add(2, 3) == 5
    assert counting.compiled("_graphc_tiny.c") == 2


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("int f(void); /* a\n * b */ // c", "int f(void);"),
        ("#define NET_BATCH 5 /* largest */\nint f(void);", "int f(void);"),
        ("#define NET_BATCH 5\nint f(int a[NET_BATCH]);", "#define NET_BATCH 5 int f(int a[NET_BATCH]);"),
        ("#define NET_USED 5\nint f(void);", "#define NET_USED 5 int f(void);"),
        ("#define _FILE_OFFSET_BITS 64\nint f(void);", "#define _FILE_OFFSET_BITS 64 int f(void);"),
        ('#define NET_TEXT "/*"\nint f(void);', '#define NET_TEXT "/*" int f(void);'),
    ],
)
def test_what_a_wrapper_depends_on(header: str, kept: str) -> None:
    found = declarations("net", {"net.h": header, "net.c": ""}, "int f(void); int g(int a[NET_USED]);")
    assert " ".join(" ".join(found).split()) == kept


def test_wrapper_depends_on_headers_of_headers() -> None:
    sources = {"net.h": '#include "types.h"\n', "types.h": "/* 1 */", "net.c": ""}
    assert declarations("net", sources, "") == ["net.h", '#include "types.h"\n', "types.h", "/* 1 */"]


def test_hit_in_a_new_process_imports_no_cffi(options: BuildOptions) -> None:
    path = build_extension("tiny", SOURCES, CDEF, options)
    other = build_elsewhere(
        options, "import sys; print([n for n in ('cffi', 'pycparser', 'filelock') if n in sys.modules])"
    )
    output, errors = other.communicate(timeout=60)
    assert output.decode().split("\n") == [str(path), "[]", ""], errors.decode()


def test_two_processes_build_once(options: BuildOptions, counting: CountingCompiler) -> None:
    options = dataclasses.replace(options, compiler=str(counting.path))
    others = [build_elsewhere(options) for _ in range(3)]
    results = [other.communicate(timeout=120) for other in others]
    assert len({output for output, _ in results}) == 1, results
    assert [other.returncode for other in others] == [0, 0, 0]
    assert counting.compiled("add.c") == 1


def test_key_holds_all_that_matters(
    options: BuildOptions, counting: CountingCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(sources: dict[str, str] = SOURCES, cdef: str = CDEF, **changes: object) -> Path:
        return build_extension("tiny", sources, cdef, dataclasses.replace(options, **changes))  # type: ignore[arg-type]  # changes are BuildOptions fields

    paths = [
        build(),
        build(optimisation=("-O2",)),
        build(extra_flags=("-g",)),
        build(openmp=False),
        build(compiler=str(counting.path)),
        build(cdef="int tiny_add(int a, int b);"),
        build({**SOURCES, "add.c": SOURCES["add.c"] + "\n"}),
        build({**{k: v for k, v in SOURCES.items() if k != "add.c"}, "plus.c": SOURCES["add.c"]}),
    ]
    assert len(set(paths)) == len(paths)
    monkeypatch.setattr("graphc.build.extension.BUILD_FORMAT", -1)
    assert build() not in paths
    monkeypatch.undo()
    assert build(jobs=1, verbose=False) == paths[0]


def test_processor_matters_only_for_native_code(
    options: BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = dataclasses.replace(options, optimisation=("-O1", "-march=native"))
    before = [build_extension("tiny", SOURCES, CDEF, choice) for choice in (options, native)]
    monkeypatch.setattr("graphc.build.extension.cpu_identity", lambda: "another processor")
    after = [build_extension("tiny", SOURCES, CDEF, choice) for choice in (options, native)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_compile_error_has_command_words_and_sources(options: BuildOptions) -> None:
    broken = {**SOURCES, "add.c": "int tiny_add(int a, int b) { return a + nonsense; }\n"}
    with pytest.raises(BuildError) as caught:
        build_extension("tiny", broken, CDEF, options)
    message = str(caught.value)
    assert "-c add.c" in message
    assert "exit status 1" in message
    assert "nonsense" in message
    (line,) = [line for line in message.splitlines() if line.startswith("  sources:")]
    kept = Path(line.split(":", 1)[1].strip())
    assert kept.parent.parent == options.cache_root() / "failed"
    assert (kept / "add.c").read_text() == broken["add.c"]
    # What is kept suffices to see the error again.
    again = subprocess.run(["sh", str(kept / "build.sh")], capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "nonsense" in again.stderr
    assert list((options.cache_root() / "work").iterdir()) == []


def test_long_compiler_output_is_cut(options: BuildOptions) -> None:
    broken = {**SOURCES, "add.c": "\n".join(f"int f{i}(void) {{ return x{i}; }}" for i in range(200))}
    with pytest.raises(BuildError, match=r"and \d+ more lines$") as caught:
        build_extension("tiny", broken, CDEF, options)
    assert len(str(caught.value).splitlines()) < 70


def test_link_error(options: BuildOptions) -> None:
    with pytest.raises(BuildError, match="missing_function"):
        build_program(
            {}, "int missing_function(void); int main(void) { return missing_function(); }", options
        )


def test_full_disk_seen_by_the_compiler(options: BuildOptions, tmp_path: Path) -> None:
    full = tmp_path / "full-cc"
    full.write_text(
        '#!/bin/sh\ncase "$*" in *version*) echo full 1.0; exit;; esac\n'
        'echo "add.o: No space left on device"; exit 1\n'
    )
    full.chmod(0o755)
    broken = dataclasses.replace(options, compiler=str(full), openmp=False)
    with pytest.raises(BuildError, match=r"No space left on device.*GRAPHC_CACHE_DIR"):
        build_extension("tiny", SOURCES, CDEF, broken)


def test_declarations_that_cffi_cannot_read(options: BuildOptions) -> None:
    with pytest.raises(BuildError, match=r"cffi cannot read the declarations of tiny.h"):
        build_extension("tiny", SOURCES, "int tiny_add(", options)


def test_names_are_checked(options: BuildOptions) -> None:
    with pytest.raises(BuildError, match="not a C identifier"):
        build_extension("ti-ny", SOURCES, CDEF, options)
    with pytest.raises(BuildError, match=r"lack other\.h"):
        build_extension("other", SOURCES, CDEF, options)
    for name in ("../a.c", "a.py", "-a.c", "sub/a.c", ".c"):
        with pytest.raises(BuildError, match="plain name"):
            build_extension("tiny", {**SOURCES, name: ""}, CDEF, options)
    with pytest.raises(BuildError, match=r"no \.c file"):
        build_extension("tiny", {"tiny.h": HEADER}, CDEF, options)
    with pytest.raises(BuildError, match=r"main\.c"):
        build_program({"main.c": ""}, "", options)


def test_damaged_extension_is_rebuilt(options: BuildOptions) -> None:
    path = build_extension("tiny", SOURCES, CDEF, options)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    assert build_extension("tiny", SOURCES, CDEF, options) == path
    assert path.stat().st_size == size


def test_killed_build_leaves_no_entry(options: BuildOptions, counting: CountingCompiler) -> None:
    options = dataclasses.replace(options, compiler=str(counting.path), jobs=1)
    build_extension("warm", {**SOURCES, "warm.h": HEADER}, CDEF, options)  # Flags are probed by now.
    cache = options.cache_root()
    before = set((cache / "entries").iterdir())
    counting.slow.touch()
    victim = build_elsewhere(options)
    wait_for(counting.pids, victim)
    victim.kill()
    victim.communicate()
    assert set((cache / "entries").iterdir()) == before
    assert len(list((cache / "work").iterdir())) == 1
    counting.slow.unlink()
    path = build_extension("tiny", SOURCES, CDEF, options)
    assert load_extension(path)[1].tiny_add(1, 1) == 2
    assert list((cache / "work").iterdir()) == []


def test_interrupt_kills_the_compilers_and_leaves_nothing(
    options: BuildOptions, counting: CountingCompiler
) -> None:
    counting.slow.touch()
    options = dataclasses.replace(options, compiler=str(counting.path))
    victim = build_elsewhere(options)
    wait_for(counting.pids, victim)
    victim.send_signal(signal.SIGINT)
    _, errors = victim.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert counting.sleepers()
    assert [pid for pid in counting.sleepers() if is_alive(pid)] == []
    cache = options.cache_root()
    assert list((cache / "work").iterdir()) == list((cache / "entries").iterdir()) == []


def test_compiler_without_openmp_builds_serially(
    options: BuildOptions, counting: CountingCompiler, caplog: pytest.LogCaptureFixture
) -> None:
    counting.refused.write_text("-fopenmp")
    options = dataclasses.replace(options, compiler=str(counting.path))
    _, lib = load_extension(build_extension("tiny", SOURCES, CDEF, options))
    assert lib.tiny_threads() == 0
    probes = sum("probe.c" in call for call in counting.calls())
    build_extension("tiny", SOURCES, "int tiny_add(int a, int b);", options)
    assert sum("probe.c" in call for call in counting.calls()) == probes


def test_broken_compiler_is_not_remembered_as_serial(
    options: BuildOptions, counting: CountingCompiler
) -> None:
    counting.refused.write_text("-shared")
    options = dataclasses.replace(options, compiler=str(counting.path))
    with pytest.raises(BuildError, match="unknown flag -shared"):
        build_extension("tiny", SOURCES, CDEF, options)
    counting.refused.unlink()
    _, lib = load_extension(build_extension("tiny", SOURCES, CDEF, options))
    assert lib.tiny_threads() >= 1


def test_compiler_without_native_still_builds(options: BuildOptions, counting: CountingCompiler) -> None:
    counting.refused.write_text("-march=native -mcpu=native")
    native = dataclasses.replace(
        options, compiler=str(counting.path), optimisation=("-O1", "-march=native", "-g")
    )
    build_extension("tiny", SOURCES, CDEF, native)
    assert any("-O1 -g" in call for call in counting.calls())


def test_sources_are_kept_where_asked(options: BuildOptions, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):  # The second is a cache hit.
        build_extension("tiny", SOURCES, CDEF, dataclasses.replace(options, keep_sources=folder))
        assert {path.name: path.read_text() for path in folder.iterdir()} == SOURCES
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="keep_sources"):
        build_extension("tiny", SOURCES, CDEF, dataclasses.replace(options, keep_sources=tmp_path / "file"))


def test_unusable_cache(options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below_a_file = dataclasses.replace(options, cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(BuildError, match=r"cannot be used.*GRAPHC_CACHE_DIR"):
        build_extension("tiny", SOURCES, CDEF, below_a_file)


def test_program_runs_and_is_cached(options: BuildOptions, counting: CountingCompiler) -> None:
    options = dataclasses.replace(
        options, compiler=str(counting.path), extra_flags=("-g", "-fsanitize=undefined")
    )
    main = '#include <stdio.h>\n#include "tiny.h"\nint main(void) { printf("%d\\n", tiny_add(40, 2)); }\n'
    program = build_program(SOURCES, main, options)
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"42\n"
    calls = len(counting.calls())
    assert build_program(SOURCES, main, options) == program
    assert len(counting.calls()) == calls
    # Debuggers are told where the sources are, not where they were.
    assert str(program.parent / "sources").encode() in program.read_bytes()


def test_clear_forgets_the_build(options: BuildOptions) -> None:
    path = build_extension("tiny", SOURCES, CDEF, options)
    Cache(options.cache_root()).clear()
    assert not path.exists()
    assert build_extension("tiny", SOURCES, CDEF, options) == path
