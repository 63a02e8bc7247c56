# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""What a step has changed in a root tree, kept so that the same step need not run again: a layer.

A layer is found by inode and change time, which every change of a file moves and no program can set back. It needs
no special file system and no privilege beyond those that the tree itself needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._cache import file_digest
from ansible_collections.goldsmith.images.plugins.module_utils._command import find_program

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache
    from ansible_collections.goldsmith.images.plugins.module_utils._command import Runner

CHANGED = "changed.tar.zst"
REMOVED = "removed.json"
MOUNTED = [0, 0, 0]

#: path below the tree -> [inode, change time in ns, type]; all zero for what something is mounted upon
Snapshot = dict[str, list[int]]


def walk(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a tree, sorted, folders before what is in them; of what is mounted there, only where it is."""
    device = tree.lstat().st_dev
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(tree / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        below = []
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            path = os.path.join(folder, entry.name)
            yield path, status
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                below.append(path)
        folders.extend(reversed(below))


def snapshot(tree: Path) -> Snapshot:
    """The state of a tree to compare a later one with."""
    device = tree.lstat().st_dev
    return {
        path: [status.st_ino, status.st_ctime_ns, stat.S_IFMT(status.st_mode)] if status.st_dev == device else MOUNTED
        for path, status in walk(tree)
    }


def differences(before: Snapshot, after: Snapshot) -> tuple[list[str], list[str]]:
    """Paths that are new or changed, and paths that must go first, because they are gone or of another type."""
    changed = sorted(path for path, state in after.items() if state not in (MOUNTED, before.get(path)))
    other_type = {path for path in changed if path in before and before[path][2] != after[path][2]}
    hidden = tuple(f"{path}/" for path, state in after.items() if state == MOUNTED)
    gone = {path for path in before if path not in after and not path.startswith(hidden)}
    return changed, sorted(gone | other_type)


def save(runner: Runner, cache: Cache, key: str, title: str, tree: Path, before: Snapshot, timeout: float) -> Snapshot:
    """Keep what has changed in a tree since `before` as the layer `key`; returns the state now."""
    after = snapshot(tree)
    changed, removed = differences(before, after)

    def make(folder: Path) -> dict[str, t.Any]:
        names = b"\0".join(os.fsencode(path) for path in changed)
        runner.run([
            find_program("tar", "tar"), "--create", "--zstd", "--file", str(folder / CHANGED), "--directory", str(tree),
            "--numeric-owner", "--xattrs", "--xattrs-include=*", "--no-recursion", "--null", "--verbatim-files-from",
            "--files-from", "-",
        ], data=names)  # fmt: skip
        (folder / REMOVED).write_text(json.dumps(removed), encoding="utf-8")
        return {"title": title, "changed": len(changed), "removed": len(removed)}

    cache.make(key, make, timeout)
    return after


def usable(cache: Cache, keys: Sequence[str]) -> list[str]:
    """The longest beginning of a chain of layers that is in the cache, every file of it with the right digest."""
    found = []
    for key in keys:
        if cache.lookup(key) is None:
            break
        found.append(key)
    return found


def restore(runner: Runner, cache: Cache, key: str, tree: Path) -> None:
    """Apply a layer to the tree that it was made from."""
    entry = cache.lookup(key)
    if entry is None:
        raise LayerError(f"the layer {key} has gone from the cache {cache.path} in this moment: start again")
    for path in reversed(json.loads(entry.file(REMOVED).read_text(encoding="utf-8"))):
        remove(tree / path)
    runner.run([
        find_program("tar", "tar"), "--extract", "--file", str(entry.file(CHANGED)), "--directory", str(tree),
        "--numeric-owner", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*",
    ])  # fmt: skip


class LayerError(Exception):
    """A layer cannot be used; the message says why."""


def remove(path: Path) -> None:
    """Remove a file or folder; a link is removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(tree: Path, listing: Path | None = None) -> str:
    """One sha256 over all that a tree is: paths, types, modes, owners, contents, links, extended attributes, times.

    Times count in whole seconds, as the file system of the image keeps them here. `listing` gets what the digest is
    made of, one line of JSON for each path, so that two trees can be compared.
    """
    result = hashlib.sha256()
    lines: list[bytes] = []
    links: dict[int, str] = {}
    device = tree.lstat().st_dev
    for path, status in walk(tree):
        if status.st_dev != device:
            raise LayerError(f"something is mounted on {tree / path}: the digest would be that of less than the tree")
        full = tree / path
        kind = stat.S_IFMT(status.st_mode)
        parts = [path, oct(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime), status.st_rdev]
        if kind == stat.S_IFLNK:
            parts.append(os.readlink(full))
        elif kind == stat.S_IFREG and status.st_nlink > 1 and status.st_ino in links:
            parts.append(f"same file as {links[status.st_ino]}")
        elif kind == stat.S_IFREG:
            links[status.st_ino] = path
            parts.append(file_digest(full))
        names = os.listxattr(full, follow_symlinks=False)
        parts += [f"{name}={os.getxattr(full, name, follow_symlinks=False).hex()}" for name in sorted(names)]
        lines.append(json.dumps(parts).encode() + b"\n")
        result.update(lines[-1])
    if listing is not None:
        listing.write_bytes(b"".join(lines))
    return result.hexdigest()
