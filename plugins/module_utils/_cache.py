# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A folder of results, each named by the digest of what went in.

<cache>/goldsmith-cache.json   says that the folder is ours
<cache>/entries/<key>/         finished results, read-only, with entry.json (sizes, digests); made by rename
<cache>/work/<key>.<random>/   results being made; locked by whoever makes them, so a dead one is recognised
<cache>/partial/<key>/         downloads to be resumed
<cache>/locks/<key>.lock       held while a result is made: whoever comes second waits and shares it
<cache>/logs/<key>.log         what the commands said
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import typing as t
from pathlib import Path

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MARKER = "goldsmith-cache.json"
FORMAT = 1
#: How the names of folders begin that only wait for their removal.
GRAVE = "old."
NEW = "new."
FOLDERS = ("entries", "work", "partial", "locks", "logs")
#: An entry that was asked for so recently may be in use by a build: it is not evicted, whatever the size limit says.
IN_USE_SECONDS = 4 * 3600
PARTIAL_SECONDS = 7 * 86400
LOG_SECONDS = 30 * 86400
_KEY = re.compile(r"^[0-9a-f]{16,64}$")


class CacheError(Exception):
    """The cache cannot be used; the message says why and what to do."""


def make_key(inputs: Mapping[str, t.Any]) -> str:
    """The digest of everything that decides about a result."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb", buffering=0) as file:
        while block := file.read(4 * 1024 * 1024):
            digest.update(block)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished result."""

    key: str
    path: Path
    files: dict[str, dict[str, t.Any]]
    data: dict[str, t.Any]

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def size(self) -> int:
        return sum(int(info["size"]) for info in self.files.values())


@dataclasses.dataclass
class Cache:
    """The cache in one folder; every method is safe to call from several processes at once."""

    path: Path
    max_size: int
    #: Removes a folder that may hold files of subordinate ids (a root tree of a rootless build).
    remove: Callable[[Path], None] = shutil.rmtree
    notes: list[str] = dataclasses.field(default_factory=list)
    #: Entries asked for so recently stay, whatever the limit says.
    keep_seconds: float = IN_USE_SECONDS

    # --- the folder -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Say no to a folder that cannot be ours, without changing anything."""
        if not self.path.exists():
            parent = next(parent for parent in self.path.parents if parent.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise CacheError(f"the cache {self.path} cannot be made: {parent} is not a writable folder")
            return
        if not self.path.is_dir():
            raise CacheError(f"the cache {self.path} is not a folder")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise CacheError(f"the cache {self.path} is not writable: give another cache_dir")
        marker = self.path / MARKER
        if marker.exists():
            try:
                found = json.loads(marker.read_text(encoding="utf-8"))["format"]
            except (ValueError, KeyError, TypeError) as error:
                raise CacheError(f"{marker} is damaged: remove the folder {self.path}, or give another one") from error
            if found != FORMAT:
                raise CacheError(f"the cache {self.path} has format {found}, this collection knows {FORMAT}")
        elif any(child.name not in FOLDERS for child in self.path.iterdir()):
            raise CacheError(
                f"{self.path} is not a cache of goldsmith.images: it has files but no {MARKER}; give an empty folder"
            )

    def open(self) -> None:
        """Make the folder if need be, and remove what killed runs have left."""
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o755)
            for name in FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
        except OSError as error:
            raise CacheError(f"the cache {self.path} cannot be made: {error.strerror}") from error
        marker = self.path / MARKER
        if not marker.exists():
            _write_atomically(marker, {"format": FORMAT, "owner": "goldsmith.images"})
        self.sweep()

    def sweep(self) -> list[str]:
        """Remove work folders whose maker is gone, and partial downloads and logs nobody came back for."""
        removed = []
        for folder in sorted((self.path / "work").iterdir()):
            with _try_lock(folder / "owner.lock") as lock:
                # Without a lock file it is one whose removal was cut short, or one that becomes an entry right now.
                new = folder.name.startswith(NEW) or (lock is False and not folder.name.startswith(GRAVE))
                if lock is None or (new and time.time() - _mtime(folder) < 60):
                    continue
                self._bury(folder)
                removed.append(folder.name)
        for name, age in (("partial", PARTIAL_SECONDS), ("logs", LOG_SECONDS)):
            for child in (self.path / name).iterdir():
                if time.time() - _mtime(child) > age:
                    _remove_quietly(child)
                    removed.append(child.name)
        return removed

    def log(self, key: str) -> Path:
        return self.path / "logs" / f"{key[:16]}.log"

    # --- entries ----------------------------------------------------------------------------------------------------

    def lookup(self, key: str, touch: bool = True) -> Entry | None:
        """The result for a key, or nothing.

        Digests are computed every time, so a changed file is never used; a damaged entry counts as missing and `make`
        replaces it.
        """
        folder = self._folder(key)
        try:
            data = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
            entry = Entry(key, folder, data["files"], data["data"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            self.notes.append(f"cache entry {key} is unreadable: it is made again")
            return None
        for name, info in entry.files.items():
            path = entry.file(name)
            found = file_digest(path) if path.is_file() and path.stat().st_size == info["size"] else "another size"
            if found != info["sha256"]:
                self.notes.append(f"{path} is damaged (expected sha256 {info['sha256']}, found {found}): made again")
                return None
        if touch:
            with contextlib.suppress(OSError):
                os.utime(folder)
        return entry

    def make(
        self,
        key: str,
        build: Callable[[Path], dict[str, t.Any]],
        timeout: float,
        waiting: Callable[[], None] | None = None,
    ) -> tuple[Entry, bool]:
        """The result for a key: (entry, whether it was made now).

        `build` fills the folder that it is given and returns data for the entry. One process makes it, the others wait
        for that one and then use what it made.
        """
        with self._lock(key, timeout, waiting):
            entry = self.lookup(key)
            if entry is not None:
                return entry, False
            with self.workspace(key) as folder:
                entry = self._finish(key, folder, build(folder))
        self.evict(keep=key)
        return entry, True

    def entries(self) -> list[Entry]:
        """All readable entries, the one that was asked for longest ago first."""
        found = []
        for folder in (self.path / "entries").iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                data = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
                found.append((_mtime(folder), Entry(folder.name, folder, data["files"], data["data"])))
        return [entry for _used, entry in sorted(found, key=lambda item: item[0])]

    def evict(self, keep: str = "", dry_run: bool = False) -> list[str]:
        """Remove entries, the longest unused first, until the cache is below its limit; returns their keys."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if total <= self.max_size:
                break
            if entry.key == keep or time.time() - _mtime(entry.path) < self.keep_seconds:
                continue
            with _try_lock(self.path / "locks" / f"{entry.key}.lock") as lock:
                if lock is None:
                    continue
                if not dry_run:
                    self._discard(entry.path)
            total -= entry.size
            removed.append(entry.key)
        if total > self.max_size:
            self.notes.append(
                f"the cache {self.path} has {total} bytes, more than its limit of {self.max_size}: "
                "everything else in it is in use, or was within the last hours"
            )
        return removed

    # --- inside -----------------------------------------------------------------------------------------------------

    def _folder(self, key: str) -> Path:
        if not _KEY.match(key):
            raise CacheError(f"not a cache key: {key!r}")
        return self.path / "entries" / key

    @contextlib.contextmanager
    def _lock(self, key: str, timeout: float, waiting: Callable[[], None] | None) -> Iterator[None]:
        self._folder(key)
        deadline = time.monotonic() + timeout
        # Lock files stay: removing one that another process has just opened would let two hold "the" lock.
        with (self.path / "locks" / f"{key}.lock").open("w") as file:
            first = True
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if first and waiting is not None:
                        waiting()
                    first = False
                    if time.monotonic() > deadline:
                        raise CacheError(
                            f"another process has been making cache entry {key} for {timeout:.0f} s (lock {file.name})"
                        ) from None
                    time.sleep(0.2)
            yield

    @contextlib.contextmanager
    def workspace(self, key: str) -> Iterator[Path]:
        """A folder of one's own; it goes at the end, or when the next user finds that its maker was killed."""
        # For nobody else: a root tree has programs that run as root, whoever starts them.
        new = Path(tempfile.mkdtemp(prefix=NEW, dir=self.path / "work"))
        with (new / "owner.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Not before it is locked: what nobody holds, a sweep removes.
            folder = new.rename(new.with_name(f"{key[:16]}.{new.name[len(NEW) :]}"))
            try:
                yield folder
            finally:
                if folder.exists():
                    self._bury(folder)

    def _finish(self, key: str, folder: Path, data: dict[str, t.Any]) -> Entry:
        files: dict[str, t.Any] = {}
        for path in sorted(folder.iterdir()):
            if not path.is_file() or path.name == "owner.lock":
                continue
            path.chmod(0o444)
            # Not synchronised: whoever uses it compares the digest, also after the machine went down.
            files[path.name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
        if not files:
            raise CacheError(f"nothing was made for cache entry {key}")
        content = {"key": key, "files": files, "data": data, "created": int(time.time())}
        (folder / "entry.json").write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        target = self._folder(key)
        if target.exists():
            self._discard(target)
        (folder / "owner.lock").unlink()
        folder.chmod(0o755)
        folder.rename(target)
        return Entry(key, target, files, data)

    def _discard(self, folder: Path) -> None:
        # By rename first: an entry is there or it is not, also when this process dies half way.
        grave = self.path / "work" / f"{GRAVE}{os.getpid()}.{folder.name}"
        folder.rename(grave)
        self._bury(grave)

    def _bury(self, folder: Path) -> None:
        """Remove a work folder; by its name the next one knows it for rubbish, whatever was removed of it first."""
        # Another process may be at it as well.
        with contextlib.suppress(FileNotFoundError):
            if not folder.name.startswith(GRAVE):
                folder = folder.rename(folder.with_name(GRAVE + folder.name))
            self.remove(folder)


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[t.Any]:
    """The lock of an existing file: an open file if it was free, None if somebody holds it, False without a file."""
    try:
        file = path.open("r+")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _write_atomically(path: Path, data: dict[str, t.Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _remove_quietly(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
