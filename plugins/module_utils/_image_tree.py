# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Read the files of a machine: a folder that is its root, or its disk image, which is neither mounted nor booted."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
import stat
import traceback
import typing as t
from pathlib import Path

try:
    from dissect.extfs import ExtFS
    from dissect.fat import FATFS
    from dissect.hypervisor.disk.qcow2 import HAS_ZSTD, QCow2
    from dissect.volume.disk import Disk
    from dissect.volume.exceptions import DiskError
except ImportError:
    HAS_DISSECT = False
    DISSECT_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    HAS_DISSECT = HAS_ZSTD
    DISSECT_IMPORT_ERROR = None

DISSECT = "dissect.hypervisor, dissect.volume, dissect.extfs, dissect.fat and backports.zstd"
CHUNK = 4 * 1024 * 1024
ZEROES = bytes(CHUNK)

# Features of ext4 that change where things are and that the library does not know (bits of s_feature_incompat).
UNREADABLE_FEATURES = {
    0x1: "compression",
    0x8: "journal_dev",
    0x10: "meta_bg",
    0x8000: "inline_data",
    0x10000: "encrypt",
}
NEEDS_RECOVERY = 0x4
HAS_ERRORS = 0x2

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
# Lines of fstab that name no file system of a disk.
NO_DISK = re.compile(
    r"^(proc|sysfs|tmpfs|devpts|devtmpfs|cgroup2?|swap|none|nfs4?|cifs|9p|virtiofs|overlay|iso9660|udf)$"
)


class TreeError(Exception):
    """What cannot be read, and what to do about it."""


class Tree(t.Protocol):
    """The files of a machine by absolute path. No method follows a link; what is not there has the kind ''."""

    def kind(self, path: str) -> str: ...
    def mode(self, path: str) -> int: ...
    def names(self, path: str) -> list[str]: ...
    def target(self, path: str) -> str: ...
    def read(self, path: str) -> bytes: ...
    def is_foreign(self, path: str) -> bool: ...


@dataclasses.dataclass(frozen=True)
class FolderTree:
    """A folder that is a machine's root; `/` is the running machine."""

    root: str = "/"

    def _inside(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/"))

    def kind(self, path: str) -> str:
        try:
            return KINDS.get(stat.S_IFMT(os.lstat(self._inside(path)).st_mode), "other")
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def mode(self, path: str) -> int:
        return stat.S_IMODE(os.lstat(self._inside(path)).st_mode)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self._inside(path)))

    def target(self, path: str) -> str:
        return os.readlink(self._inside(path))

    def read(self, path: str) -> bytes:
        with open(self._inside(path), "rb") as stream:
            return stream.read()

    def is_foreign(self, path: str) -> bool:
        """Whether another file system is mounted there: it is not part of the image."""
        return os.path.ismount(self._inside(path))


class _Node(t.Protocol):
    """One entry of a file system on a disk."""

    kind: str
    mode: int

    def children(self) -> dict[str, _Node]: ...
    def read(self) -> bytes: ...


class _ExtNode:
    def __init__(self, inode: t.Any) -> None:
        self._inode = inode
        self.kind = KINDS.get(inode.filetype, "other")

    @property
    def mode(self) -> int:
        return stat.S_IMODE(self._inode.inode.i_mode)

    def children(self) -> dict[str, _Node]:
        found = {inode.filename: _ExtNode(inode) for inode in self._inode.iterdir()}
        if "." not in found or ".." not in found:
            raise TreeError(f"the directory with inode {self._inode.inum} is damaged")
        return {name: node for name, node in found.items() if name not in (".", "..")}

    def read(self) -> bytes:
        content = (
            self._inode.link.encode(errors="surrogateescape") if self.kind == "link" else self._inode.open().read()
        )
        if len(content) != self._inode.size:
            raise TreeError(f"the file with inode {self._inode.inum} ends early: the image is cut off or damaged")
        return content


class _FatNode:
    mode = 0o755

    def __init__(self, entry: t.Any) -> None:
        self._entry = entry
        self.kind = "directory" if entry.is_directory() else "file"

    def children(self) -> dict[str, _Node]:
        entries = [
            entry for entry in self._entry.iterdir() if entry.name not in (".", "..") and not entry.is_volume_id()
        ]
        # Their case means nothing, and short ones are stored without.
        return {entry.name.lower(): _FatNode(entry) for entry in entries}

    def read(self) -> bytes:
        return self._entry.open().read()


@dataclasses.dataclass
class Volume:
    """A file system on a disk, and all names by which fstab may call it."""

    number: int
    type: str
    root: _Node
    names: tuple[str, ...]
    is_esp: bool = False


class DiskTree:
    """The file systems of a disk image as its fstab puts them together."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.format, self.stream = _open(path)
        self.unread: list[str] = []
        self._nodes: dict[str, _Node] = {}
        self._children: dict[str, dict[str, _Node]] = {}
        try:
            volumes = self._volumes()
            self.mounts = {"/": self._root(volumes)}
            self._mount(volumes)
        except TreeError as error:
            raise TreeError(f"{path}: {error}") from error
        except Exception as error:  # a damaged image makes the library raise anything
            raise TreeError(f"{path}: cannot be read, it is cut off or damaged: {error}") from error

    def _volumes(self) -> list[Volume]:
        if _is_ext(self.stream):
            return [_ext_volume(0, self.stream, ())]
        self.stream.seek(0)
        try:
            partitions = Disk(self.stream).partitions
        except DiskError as error:
            raise TreeError("neither a partition table nor an ext4 file system") from error
        found = []
        for partition in partitions:
            stream = partition.open()
            names = (f"PARTLABEL={partition.name}", f"PARTUUID={str(partition.guid).lower()}")
            if _is_ext(stream):
                found.append(_ext_volume(partition.number, stream, names))
            elif _is_fat(stream):
                found.append(_fat_volume(partition.number, stream, names, "EFI System" in partition.type_name))
            elif "BIOS Boot" not in partition.type_name:
                self.unread.append(f"partition {partition.number} ({partition.type_name}): neither ext4 nor FAT")
        return found

    def _root(self, volumes: list[Volume]) -> Volume:
        roots = [volume for volume in volumes if volume.type == "ext4" and "etc" in volume.root.children()]
        if len(roots) != 1:
            seen = [f"{volume.number} {volume.type}" for volume in volumes] + self.unread
            raise TreeError(
                f"{len(roots) or 'no'} ext4 file systems with a directory /etc, where one is wanted. "
                f"Its partitions: {', '.join(seen) or 'none'}"
            )
        return roots[0]

    def _mount(self, volumes: list[Volume]) -> None:
        """Put the other file systems where fstab says."""
        for source, place, kind in _fstab(self.read("/etc/fstab") if self.kind("/etc/fstab") == "file" else b""):
            if place == "/" or NO_DISK.match(kind) or not place.startswith("/"):
                continue
            matches = [volume for volume in volumes if _canonical(source) in volume.names]
            if len(matches) == 1:
                self.mounts[posixpath.normpath(place)] = matches[0]
            else:
                self.unread.append(f"{place}: fstab's {source} is not a file system of this disk")
        for volume in volumes:
            if not any(mounted is volume for mounted in self.mounts.values()):
                if volume.is_esp and "/boot/efi" not in self.mounts:
                    self.mounts["/boot/efi"] = volume
                else:
                    self.unread.append(f"partition {volume.number} ({volume.type}): no line of fstab names it")
        self._nodes.clear()
        self._children.clear()

    def _node(self, path: str) -> _Node | None:
        path = posixpath.normpath(path)
        if path in self.mounts:
            return self.mounts[path].root
        if path not in self._nodes:
            parent, name = posixpath.split(path)
            above = self._node(parent)
            if above is None or above.kind != "directory":
                return None
            found = self._entries(parent).get(name)
            if found is None:
                return None
            self._nodes[path] = found
        return self._nodes[path]

    def _entries(self, path: str) -> dict[str, _Node]:
        path = posixpath.normpath(path)
        if path not in self._children:
            node = self._node(path)
            try:
                self._children[path] = node.children() if node else {}
            except Exception as error:
                raise TreeError(f"{path} cannot be read: {error}") from error
        return self._children[path]

    def kind(self, path: str) -> str:
        node = self._node(path)
        return node.kind if node else ""

    def mode(self, path: str) -> int:
        node = self._node(path)
        return node.mode if node else 0

    def names(self, path: str) -> list[str]:
        return sorted(self._entries(path))

    def target(self, path: str) -> str:
        return self.read(path).decode(errors="surrogateescape")

    def read(self, path: str) -> bytes:
        node = self._node(path)
        try:
            return node.read() if node else b""
        except Exception as error:
            raise TreeError(f"{path} cannot be read: {error}") from error

    def is_foreign(self, path: str) -> bool:
        return False


def open_tree(path: str) -> FolderTree | DiskTree:
    """A folder as it is, everything else as a disk image."""
    return FolderTree(path) if os.path.isdir(path) else DiskTree(path)


def _open(path: str) -> tuple[str, t.BinaryIO]:
    with open(path, "rb") as stream:
        magic = stream.read(4)
    if magic != b"QFI\xfb":
        return "raw", open(path, "rb")
    try:
        disk = QCow2(Path(path))
        return "qcow2", disk.open()
    except Exception as error:
        raise TreeError(f"{path}: this qcow2 image cannot be read: {error}") from error


def _is_ext(stream: t.BinaryIO) -> bool:
    stream.seek(1024 + 56)
    return stream.read(2) == b"\x53\xef"


def _is_fat(stream: t.BinaryIO) -> bool:
    stream.seek(0)
    sector = stream.read(512)
    return sector[510:512] == b"\x55\xaa" and (sector[54:57] == b"FAT" or sector[82:87] == b"FAT32")


def _ext_volume(number: int, stream: t.BinaryIO, names: tuple[str, ...]) -> Volume:
    where = f"partition {number}" if number else "the disk"
    system = ExtFS(stream)
    features = system.sb.s_feature_incompat
    unknown = [name for bit, name in UNREADABLE_FEATURES.items() if features & bit]
    if unknown:
        raise TreeError(f"{where}: its ext4 file system uses {', '.join(unknown)}, which cannot be read offline")
    if features & NEEDS_RECOVERY or system.sb.s_state & HAS_ERRORS:
        raise TreeError(
            f"{where}: its ext4 file system was not unmounted, or has errors, so what is read may not be what a boot "
            f"would find. Shut the machine down in order, or repair a copy of the disk with e2fsck."
        )
    own = (f"LABEL={system.volume_name}", f"UUID={system.uuid}")
    return Volume(number, "ext4", _ExtNode(system.root), names + own)


def _fat_volume(number: int, stream: t.BinaryIO, names: tuple[str, ...], is_esp: bool) -> Volume:
    system = FATFS(stream)
    serial = f"{system.volume_id.upper():0>8}"
    own = (f"LABEL={system.volume_label.strip()}", f"UUID={serial[:4]}-{serial[4:]}")
    return Volume(number, "vfat", _FatNode(system.root), names + own, is_esp)


def _canonical(source: str) -> str:
    """A source of fstab, written as the names of a Volume are."""
    match = re.match(r"^/dev/disk/by-(label|uuid|partlabel|partuuid)/(.+)$", source)
    key, _sign, value = f"{match.group(1).upper()}={match.group(2)}".partition("=") if match else source.partition("=")
    value = value.strip('"')
    return f"{key}={value.lower() if key == 'PARTUUID' else value}"


def _fstab(content: bytes) -> t.Iterator[tuple[str, str, str]]:
    for line in content.decode(errors="surrogateescape").splitlines():
        fields = line.split()
        if len(fields) >= 3 and not fields[0].startswith("#"):
            yield fields[0], fields[1], fields[2]


def search(stream: t.BinaryIO, wanted: t.Sequence[bytes]) -> t.Iterator[tuple[int, int]]:
    """Find byte strings anywhere in a stream, each once: pairs of (number in `wanted`, offset)."""
    missing = dict(enumerate(wanted))
    overlap = max(map(len, wanted), default=1) - 1
    offset, tail = 0, b""
    stream.seek(0)
    while missing:
        chunk = stream.read(CHUNK)
        if not chunk:
            return
        if ZEROES.startswith(chunk):  # most of a disk
            tail = b""
        else:
            window = tail + chunk
            for number, value in list(missing.items()):
                place = window.find(value)
                if place >= 0:
                    del missing[number]
                    yield number, offset - len(tail) + place
            tail = window[-overlap:] if overlap else b""
        offset += len(chunk)
