"""A folder of finished builds, from which code is loaded: private, verified, and published atomically.

Layout below the root::

    entries/<key>/            a finished build: verified files, sources/ to be read, manifest.json
    work/<key>.<random>/      a build under way; alive exactly while its key's lock is held
    locks/<key>.lock          one lock for each key: two processes build the same thing once
    failed/<key>/             sources of a build that did not compile
    notes/<name>              small facts about compilers
    trimmed                   its time of change says when old entries were last looked for
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from graphc.errors import BuildError

DEFAULT_LIMIT_BYTES = 2 * 1024**3
MINIMUM_AGE_SECONDS = 3600.0

_MANIFEST = "manifest.json"
_HASHED_BELOW_BYTES = 50 * 1024**2
_TOUCH_AFTER_SECONDS = 600.0
_TRIM_AFTER_SECONDS = 600.0
_FAILED_KEPT = 20
_STALE_AFTER_SECONDS = 24 * 3600.0


class Cache:
    """Finished builds by key, under one folder that only its owner can write.

    Every method raises BuildError where the folder is unsafe ("refused") or cannot be read or written.
    """

    def __init__(self, root: Path) -> None:
        """Name the folder; nothing is read or written yet."""
        self.root = Path(os.path.realpath(root))
        self._entries = self.root / "entries"
        self._work = self.root / "work"
        self._failed = self.root / "failed"

    def entry_folder(self, key: str) -> Path:
        """Return where the key's entry is, or will be."""
        return self._entries / key

    def entry(self, key: str) -> Path | None:
        """Return the folder of a finished build whose files are intact, or None; it counts as used now."""
        with self._storage():
            if not self._is_there():
                return None
            folder = self._entries / key
            if not folder.is_dir():
                return None
            _refuse_unsafe(folder)
            if not _is_intact(folder):
                return None
            # Not on every hit: the order of a trim needs no more precision, and a hit should not write.
            if time.time() - folder.stat().st_mtime > _TOUCH_AFTER_SECONDS:
                with contextlib.suppress(OSError):
                    os.utime(folder)
            return folder

    def publish(self, key: str, fill: Callable[[Path], None]) -> Path:
        """Return the entry, built by ``fill(folder)`` unless it is there or another process builds it first.

        The files directly in the folder are verified at every later use; subfolders are for people to read.
        Whatever ends ``fill`` early, no entry appears.
        """
        with self._storage():
            self._create()
            with self._lock(key):
                present = self.entry(key)
                if present is not None:
                    return present
                # Whoever made these no longer holds the lock, hence is dead.
                for leftover in self._work.glob(f"{key}.*"):
                    _remove(leftover)
                work = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self._work))
                try:
                    fill(work)
                    _seal(work)
                    published = self._move_in(key, work)
                finally:
                    _remove(work)
            self._sweep()
            self._trim_at_times()
            return published

    def keep_failed(self, key: str, work: Path) -> Path | None:
        """Move a folder whose build failed to where a person can look at it; None if that is impossible."""
        target = self._failed / key
        try:
            _remove(target)
            os.rename(work, target)
            oldest_first = sorted(self._failed.iterdir(), key=_mtime)
            for old in oldest_first[: max(0, len(oldest_first) - _FAILED_KEPT)]:
                _remove(old)
        except OSError:
            # The compiler's own message matters more than this one.
            return None
        return target

    def note(self, name: str) -> str | None:
        """Return what was noted under the name, or None."""
        with self._storage():
            if not self._is_there():
                return None
            try:
                # Damaged bytes are replaced: a note's reader must cope with whatever it says.
                return (self.root / "notes" / name).read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return None

    def set_note(self, name: str, text: str) -> None:
        """Keep a small text under the name."""
        with self._storage():
            self._create()
            handle, temporary = tempfile.mkstemp(dir=self.root / "notes")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(temporary, self.root / "notes" / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def change_note(self, name: str, change: Callable[[str | None], str]) -> None:
        """Replace a note by what ``change`` makes of it; no other process changes it at the same time."""
        with self._storage():
            self._create()
            with self._lock(f"note-{name}"):
                self.set_note(name, change(self.note(name)))

    def clear(self) -> int:
        """Remove everything but the builds under way; return the bytes freed."""
        with self._storage():
            if not self._is_there():
                return 0
            self._sweep()
            freed = 0
            for part in (self._entries, self._failed, self.root / "notes"):
                for item in _children(part):
                    freed += _size(item)
                    self._discard(item)
            return freed

    def trim(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> int:
        """Remove least recently used entries until the rest fits; return the bytes freed.

        Entries used within the last hour stay, whatever their size.
        """
        with self._storage():
            if not self._is_there():
                return 0
            entries = sorted((_mtime(path), _size(path), path) for path in _children(self._entries))
            excess = sum(size for _, size, _ in entries) - limit_bytes
            freed = 0
            for used, size, path in entries:
                if freed >= excess or time.time() - used < MINIMUM_AGE_SECONDS:
                    break
                self._discard(path)
                freed += size
            return freed

    def _trim_at_times(self) -> None:
        """Trim unless that was done a few minutes ago.

        A look at every file of a few thousand entries takes longer than to build a small module, and entries
        younger than an hour stay anyway.
        """
        stamp = self.root / "trimmed"
        if abs(time.time() - _mtime(stamp)) > _TRIM_AFTER_SECONDS:
            stamp.touch()
            self.trim()

    def _is_there(self) -> bool:
        """Return whether the root exists; raise BuildError if it is not safe to load code from."""
        if not self.root.exists():
            return False
        _refuse_unsafe(self.root)
        return True

    def _create(self) -> None:
        if not self.root.exists():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.root.mkdir(mode=0o700)
        if not self.root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
        _refuse_unsafe(self.root)
        for name in ("entries", "work", "locks", "failed", "notes"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def _lock(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the key's lock; with ``wait=False`` raise filelock's Timeout if another process has it."""
        # Imported here because a cache hit needs no lock, and the import costs several hits.
        import filelock

        with filelock.FileLock(self.root / "locks" / f"{key}.lock", timeout=-1 if wait else 0):
            yield

    def _move_in(self, key: str, work: Path) -> Path:
        """Make the finished folder the entry, in one step; a process that was quicker wins."""
        target = self._entries / key
        # The lock does not stop processes on another machine on some network file systems.
        if _is_intact(target):
            return target
        if target.exists():
            self._discard(target)
        try:
            os.rename(work, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _is_intact(target):
                raise
        return target

    def _discard(self, item: Path) -> None:
        """Remove an item so that nobody ever sees half of it: out of the way first, then file by file."""
        self._work.mkdir(mode=0o700, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="discarded.", dir=self._work))
        with contextlib.suppress(FileNotFoundError):
            os.rename(item, aside / item.name)
        _remove(aside)

    def _sweep(self) -> None:
        """Remove what dead processes left in work/."""
        import filelock

        for leftover in _children(self._work):
            key = leftover.name.partition(".")[0]
            if key == "discarded":
                if time.time() - _mtime(leftover) > _STALE_AFTER_SECONDS:
                    _remove(leftover)
                continue
            # The lock, not a process number: numbers are reused, and differ between containers.
            with contextlib.suppress(filelock.Timeout), self._lock(key, wait=False):
                _remove(leftover)

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        """Turn errors of the file system into a BuildError that says what can be done."""
        try:
            yield
        except OSError as error:
            raise storage_error(self.root, error.strerror or str(error), error.filename) from error


def storage_error(root: Path, reason: str, path: object = None) -> BuildError:
    """Return the error that says why the cache cannot be used, and how to choose another folder."""
    where = f" ({path})" if path is not None and str(path) != str(root) else ""
    return BuildError(
        f"the build cache {root} cannot be used: {reason}{where}. Set GRAPHC_CACHE_DIR or "
        "BuildOptions(cache_dir=...) to a folder that can be written and has space."
    )


def _refuse_unsafe(path: Path) -> None:
    """Raise BuildError unless only the current user can replace what lies in the folder."""
    if not hasattr(os, "getuid"):
        return  # Windows: the user's profile is private by default, and there are no mode bits to check.
    status = path.stat()
    reason = None
    if status.st_uid != os.getuid():
        reason = f"it belongs to user {status.st_uid}, not to the current user {os.getuid()}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        reason = f"others may write to it (mode {mode:04o}); make it private with: chmod go-w {path}"
    else:
        for parent in path.parents:
            mode = stat.S_IMODE(parent.stat().st_mode)
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                reason = f"anybody may replace it, since {parent} has mode {mode:04o} and no sticky bit"
                break
    if reason is not None:
        raise BuildError(
            f"the build cache {path} was refused, because code is loaded from it: {reason}. "
            "Or set GRAPHC_CACHE_DIR to a private folder."
        )


def _seal(folder: Path) -> None:
    """Record size, time and checksum of the files directly in the folder, and make all of it private."""
    files = {}
    for path in folder.iterdir():
        if path.is_file():
            status = path.stat()
            files[path.name] = {
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "sha256": _sha256(path),
            }
    (folder / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in folder.rglob("*"):
        mode = path.stat().st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH):  # umask 002
            path.chmod(stat.S_IMODE(mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def _is_intact(folder: Path) -> bool:
    """Return whether the folder holds exactly what its manifest says.

    Files of 50 MiB and more are hashed only if their time of change is not the recorded one.
    """
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, record in files.items():
            path = folder / name
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != record["size"]:
                return False
            if hasattr(os, "getuid") and status.st_uid != os.getuid():
                return False
            unchanged = status.st_mtime_ns == record["mtime_ns"]
            if status.st_size >= _HASHED_BELOW_BYTES and unchanged:
                continue
            if _sha256(path) != record["sha256"]:
                return False
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(files)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # Another process removed it.
        return 0.0


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    total = 0
    for item in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            status = item.lstat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total


def _remove(path: Path) -> None:
    """Remove a file or a folder as far as possible; what stays is swept later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
