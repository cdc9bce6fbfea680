"""The build cache: verified, private, atomic, and built once."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from graphc.build.cache import Cache, _seal
from graphc.errors import BuildError

KEY = "a" * 64


def fill(folder: Path) -> None:
    (folder / "module.so").write_bytes(bytes(range(256)) * 4)
    (folder / "sources").mkdir()
    (folder / "sources" / "a.c").write_text("int a;")


def refuse_to_fill(folder: Path) -> None:
    raise AssertionError(f"built again in {folder}")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def leftovers(cache: Cache) -> list[str]:
    return [path.name for path in (cache.root / "work").iterdir()]


def test_unknown_key_is_no_entry_and_creates_nothing(cache: Cache) -> None:
    assert cache.entry(KEY) is None
    assert not cache.root.exists()


def test_published_once_and_found(cache: Cache) -> None:
    folder = cache.publish(KEY, fill)
    assert cache.entry(KEY) == folder == cache.entry_folder(KEY)
    assert cache.publish(KEY, refuse_to_fill) == folder
    assert (folder / "sources" / "a.c").read_text() == "int a;"
    assert leftovers(cache) == []


def test_root_is_created_private(cache: Cache) -> None:
    cache.publish(KEY, fill)
    assert cache.root.stat().st_mode & 0o777 == 0o700


def test_entry_of_a_lax_umask_is_made_private(cache: Cache) -> None:
    old = os.umask(0)
    try:
        folder = cache.publish(KEY, fill)
    finally:
        os.umask(old)
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o022 == 0, path
    assert cache.entry(KEY) == folder


def damage_truncate(folder: Path) -> None:
    (folder / "module.so").write_bytes(b"abc")


def damage_empty(folder: Path) -> None:
    (folder / "module.so").write_bytes(b"")


def damage_flip_a_bit(folder: Path) -> None:
    path = folder / "module.so"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)  # Same size, same time: only the checksum tells.


def damage_remove(folder: Path) -> None:
    (folder / "module.so").unlink()


def damage_link(folder: Path) -> None:
    path = folder / "module.so"
    path.rename(folder / "elsewhere")
    path.symlink_to("elsewhere")


def damage_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_half_a_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:40])


def damage_foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"files": {"module.so": None}}))


def damage_binary_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_empty,
        damage_flip_a_bit,
        damage_remove,
        damage_link,
        damage_no_manifest,
        damage_half_a_manifest,
        damage_foreign_manifest,
        damage_binary_manifest,
    ],
)
def test_damaged_entry_is_rebuilt(cache: Cache, damage: Callable[[Path], None]) -> None:
    damage(cache.publish(KEY, fill))
    assert cache.entry(KEY) is None
    folder = cache.publish(KEY, fill)
    assert cache.entry(KEY) == folder
    assert (folder / "module.so").stat().st_size == 1024
    assert leftovers(cache) == []


def test_copied_cache_is_intact(cache: Cache) -> None:
    """Times may change, as when a folder is copied; contents may not."""
    folder = cache.publish(KEY, fill)
    os.utime(folder / "module.so", (1, 1))
    assert cache.entry(KEY) == folder


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interrupted_build_leaves_nothing(cache: Cache, problem: type[BaseException]) -> None:
    def interrupted(folder: Path) -> None:
        fill(folder)
        raise problem

    with pytest.raises(problem):
        cache.publish(KEY, interrupted)
    assert cache.entry(KEY) is None
    assert leftovers(cache) == []
    assert cache.publish(KEY, fill) == cache.entry(KEY)


def test_a_winner_that_the_lock_did_not_stop_is_used(cache: Cache) -> None:
    def overtaken(folder: Path) -> None:
        fill(folder)
        other = cache.entry_folder(KEY)
        other.mkdir()
        fill(other)
        (other / "winner").write_text("x")
        _seal(other)

    folder = cache.publish(KEY, overtaken)
    assert cache.entry(KEY) == folder
    assert (folder / "winner").exists()
    assert leftovers(cache) == []


def test_leftovers_of_dead_processes_are_swept_and_live_ones_stay(cache: Cache) -> None:
    cache.publish(KEY, fill)
    dead = cache.root / "work" / f"{'b' * 64}.dead"
    live = cache.root / "work" / f"{'c' * 64}.live"
    dead.mkdir()
    live.mkdir()
    with filelock.FileLock(cache.root / "locks" / f"{'c' * 64}.lock"):
        cache.publish("d" * 64, fill)
    assert leftovers(cache) == [live.name]


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702, 0o1777])
def test_root_writable_by_others_is_refused(cache: Cache, mode: int) -> None:
    cache.publish(KEY, fill)
    cache.root.chmod(mode)
    with pytest.raises(BuildError, match=r"refused.*chmod go-w"):
        cache.entry(KEY)
    with pytest.raises(BuildError, match="refused"):
        cache.publish("b" * 64, fill)


def test_entry_writable_by_others_is_refused(cache: Cache) -> None:
    cache.publish(KEY, fill).chmod(0o777)
    with pytest.raises(BuildError, match="refused"):
        cache.entry(KEY)


def test_foreign_owner_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.publish(KEY, fill)
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(BuildError, match=r"refused.*belongs to user"):
        cache.entry(KEY)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_folder_given_to_another_user_is_refused(cache: Cache) -> None:
    folder = cache.publish(KEY, fill)
    os.chown(folder, 12345, -1)
    with pytest.raises(BuildError, match=r"refused.*belongs to user 12345"):
        cache.entry(KEY)


def test_world_writable_parent_is_refused_unless_sticky(tmp_path: Path) -> None:
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    cache = Cache(parent / "deep" / "cache")
    with pytest.raises(BuildError, match=r"refused.*no sticky bit"):
        cache.publish(KEY, fill)
    parent.chmod(0o1777)
    assert cache.publish(KEY, fill) == cache.entry(KEY)


def test_link_is_judged_by_its_target(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o777)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(BuildError, match=r"refused"):
        Cache(tmp_path / "link").publish(KEY, fill)


def test_path_below_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(BuildError, match=r"cannot be used.*GRAPHC_CACHE_DIR"):
            Cache(root).publish(KEY, fill)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_storage_errors_say_what_to_do(cache: Cache, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(folder: Path) -> None:
        raise OSError(code, os.strerror(code), str(folder))

    with pytest.raises(BuildError, match=rf"{os.strerror(code)}.*GRAPHC_CACHE_DIR"):
        cache.publish(KEY, full)
    assert leftovers(cache) == []

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(BuildError, match=rf"{os.strerror(code)}.*GRAPHC_CACHE_DIR"):
        cache.publish(KEY, fill)
    monkeypatch.undo()
    assert leftovers(cache) == []
    assert cache.entry(KEY) is None

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(BuildError, match=rf"{os.strerror(code)}.*GRAPHC_CACHE_DIR"):
        Cache(cache.root / "other").publish(KEY, fill)


def test_hit_needs_no_writing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a read-only file system serves what it has."""
    folder = cache.publish(KEY, fill)
    os.utime(folder, (1, 1))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "rename", "utime", "chmod"):
        monkeypatch.setattr(os, name, fail)
    assert cache.entry(KEY) == folder


def test_failed_build_is_kept_and_replaced(cache: Cache) -> None:
    for text in ("first", "second"):

        def broken(folder: Path, text: str = text) -> None:
            (folder / "a.c").write_text(text)
            assert cache.keep_failed(KEY, folder) == cache.root / "failed" / KEY
            raise BuildError("no")

        with pytest.raises(BuildError):
            cache.publish(KEY, broken)
    assert (cache.root / "failed" / KEY / "a.c").read_text() == "second"
    assert leftovers(cache) == []


def test_trim_removes_the_least_recently_used_but_nothing_young(cache: Cache) -> None:
    now = time.time()
    folders = [cache.publish(letter * 64, fill) for letter in "abcd"]
    for folder, hours in zip(folders, (2, 4, 3, 0), strict=True):
        os.utime(folder, (now - 3600 * hours, now - 3600 * hours))
    size = sum(path.stat().st_size for path in folders[0].rglob("*") if path.is_file())
    assert cache.trim(4 * size) == 0
    assert cache.trim(3 * size) == size
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    cache.trim(0)
    assert [folder.exists() for folder in folders] == [False, False, False, True]


def test_publishing_trims_every_few_minutes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first publication trims, the next ones only once the stamp is old, or far in the future."""
    trims: list[None] = []
    monkeypatch.setattr(cache, "trim", lambda: trims.append(None))
    counts = []
    for letter, age in (("a", 0), ("b", 0), ("c", 300), ("d", 1200), ("e", 0), ("f", -1200)):
        if letter != "a":
            os.utime(cache.root / "trimmed", (time.time() - age,) * 2)
        cache.publish(letter * 64, fill)
        counts.append(len(trims))
    assert counts == [1, 1, 1, 2, 2, 3]


def test_use_makes_an_entry_young(cache: Cache) -> None:
    folder = cache.publish(KEY, fill)
    os.utime(folder, (1, 1))
    assert cache.entry(KEY) == folder
    cache.trim(0)
    assert cache.entry(KEY) == folder


def test_clear_empties_all_but_live_builds(cache: Cache) -> None:
    assert cache.clear() == 0
    cache.publish(KEY, fill)
    cache.set_note("compiler", "yes")
    live = cache.root / "work" / f"{'c' * 64}.live"
    live.mkdir()
    with filelock.FileLock(cache.root / "locks" / f"{'c' * 64}.lock"):
        assert cache.clear() > 1024
    assert cache.entry(KEY) is None
    assert cache.note("compiler") is None
    assert leftovers(cache) == [live.name]


def test_notes(cache: Cache) -> None:
    assert cache.note("compiler") is None
    cache.set_note("compiler", "one")
    cache.set_note("compiler", "two")
    assert cache.note("compiler") == "two"
    assert [path.name for path in (cache.root / "notes").iterdir()] == ["compiler"]
