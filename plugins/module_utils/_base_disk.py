# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A base disk from the cache, or made and put there: what is needed for it, and the steps to it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _bootstrap, _disk, _download
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError, make_key
from ansible_collections.goldsmith.images.plugins.module_utils._command import (
    CommandError,
    Interrupted,
    Runner,
    find_program,
    private_namespaces,
)
from ansible_collections.goldsmith.images.plugins.module_utils._owner import find_owner

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGE = "disk.qcow2"
TREE = "root.tar.zst"
#: Archive, tree, raw disk and qcow2 exist at the same time while a base disk is bootstrapped (measured: 2.6 GB with
#: the packages of a Kubernetes node).
BOOTSTRAP_SPACE = 4 * 1024**3
PROGRESS_SECONDS = 5.0
COMPRESSED = {b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}


class BaseDiskError(Exception):
    """The base disk cannot be made; the message says what to do."""


ERRORS = (
    BaseDiskError,
    _bootstrap.BootstrapError,
    _disk.DiskError,
    _download.DownloadError,
    CacheError,
    CommandError,
    Interrupted,
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the caller asks for; the names are those of the module's options."""

    method: str
    distribution: str
    release: str
    packages: tuple[str, ...]
    components: tuple[str, ...]
    mirror: str | None
    security_mirror: str | None
    path_excludes: bool
    size: int
    url: str | None
    checksum: str | None
    checksum_url: str | None
    checksum_signature_url: str | None
    checksum_keyring: Path | None
    archive_state: _bootstrap.ArchiveState | None
    timeout: float
    #: disk, or tree: the archive of a root tree, without a disk around it.
    form: str = "disk"


@dataclasses.dataclass
class Result:
    """What there is, or would be."""

    key: str
    path: Path
    log: Path
    cached: bool
    sha256: str | None = None
    size: int | None = None
    packages: list[dict[str, str]] = dataclasses.field(default_factory=list)
    sources: list[str] = dataclasses.field(default_factory=list)
    phases: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


class Phases:
    """How long each part took."""

    def __init__(self, runner: Runner | None = None) -> None:
        self.done: list[dict[str, t.Any]] = []
        self.runner = runner

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.runner is not None:
            self.runner.note(f"phase {name}")
        start = time.monotonic()
        try:
            yield
        finally:
            self.done.append({"name": name, "seconds": round(time.monotonic() - start, 2)})


def get(request: Request, cache: Cache, dry_run: bool) -> Result:
    """The base disk; a dry run looks at everything that can be wrong and makes nothing."""
    cache.check()
    phases = Phases()
    with phases("plan"):
        maker = _maker(request, phases, cache)
    name = TREE if request.form == "tree" else IMAGE
    key = make_key(maker.inputs())
    result = Result(key, cache.path / "entries" / key / name, cache.log(key), cached=False, sources=maker.sources())
    with phases("look in the cache"):
        entry = cache.lookup(key, touch=not dry_run) if cache.path.exists() else None
    made = False
    if entry is None:
        maker.preflight(cache.path)
        if not dry_run:
            cache.remove = lambda path: _disk.remove_tree(maker.enter, path)
            cache.open()
            log = result.log
            log.write_text("", encoding="utf-8")
            owner = find_owner()
            runner = phases.runner = Runner(
                log, deadline=time.monotonic() + request.timeout, abandoned=lambda: not owner.alive()
            )
            entry, made = cache.make(
                key,
                lambda folder: maker.make(runner, folder, cache.path / "partial" / key),
                request.timeout,
                lambda: runner.note("another process is making the same base disk: waiting for it"),
            )
    if entry is not None:
        info = entry.files[name]
        result.cached = not made
        result.sha256, result.size = info["sha256"], info["size"]
        result.packages = entry.data.get("packages", [])
        result.sources = entry.data.get("sources", result.sources)
    result.phases = phases.done
    result.notes = cache.notes
    return result


def _maker(request: Request, phases: Phases, cache: Cache) -> _Tree | _Download:
    if request.method == "download":
        return _DownloadedTree(request, phases, cache) if request.form == "tree" else _Download(request, phases)
    return _Tree(request, phases) if request.form == "tree" else _Bootstrap(request, phases, cache)


def require_space(folder: Path, needed: int) -> None:
    """Fail before anything is made where there is too little room."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BaseDiskError(
            f"too little disk space below {folder}: {needed / 1024**3:.1f} GiB needed, {free / 1024**3:.1f} GiB free; "
            "make room or give another cache_dir"
        )


class _Tree:
    """Packages to the archive of a root tree."""

    def __init__(self, request: Request, phases: Phases) -> None:
        self.request = request
        self.phases = phases
        self.enter: Sequence[str] = ()
        mirrors = _bootstrap.choose_mirrors(request.mirror, request.security_mirror)
        self.recipe = _bootstrap.make_recipe(
            request.distribution, request.release, request.packages, request.components, mirrors,
            request.path_excludes,
        )  # fmt: skip
        self.state = request.archive_state or _bootstrap.archive_state(self.recipe)

    def inputs(self) -> dict[str, t.Any]:
        return {
            "method": "bootstrap",
            "distribution": self.request.distribution,
            "archive_state": list(self.state.digests),
            "epoch": self.state.epoch,
            **self.recipe.inputs(),
        }

    def sources(self) -> list[str]:
        return self.recipe.sources()

    def preflight(self, folder: Path) -> None:
        missing = _bootstrap.missing_programs(self.recipe) + _disk.missing_programs()
        if missing:
            raise BaseDiskError("; ".join(missing))
        require_space(folder, BOOTSTRAP_SPACE)
        if self.request.archive_state is not None:
            _bootstrap.archive_state(self.recipe)
        self.enter = private_namespaces()

    def make(self, runner: Runner, folder: Path, _partial: Path) -> dict[str, t.Any]:
        archive = folder / TREE
        with self.phases("bootstrap"):
            status = _bootstrap.make_tree(runner, self.enter, self.recipe, self.state.epoch, folder, archive)
        packages = _disk.installed_packages(status)
        return {"title": self.title(), "packages": packages, "sources": self.recipe.sources()}

    def title(self) -> str:
        return f"root tree of {self.request.distribution} {self.request.release}"


class _Bootstrap(_Tree):
    """Packages to tree, tree to disk."""

    def __init__(self, request: Request, phases: Phases, cache: Cache) -> None:
        super().__init__(request, phases)
        self.cache = cache
        # Checked here, so that a wrong size is an error whether or not there is an entry for it.
        self.layout = _disk.Layout(request.size, make_key(super().inputs()), self.state.epoch)

    def inputs(self) -> dict[str, t.Any]:
        return {**super().inputs(), "size": self.request.size, "disk_format": _disk.DISK_FORMAT}

    def make(self, runner: Runner, folder: Path, partial: Path) -> dict[str, t.Any]:
        tree, raw = folder / "tree", folder / "disk.raw"
        entry, _made = self.cache.make(
            make_key(super().inputs()), lambda place: super(_Bootstrap, self).make(runner, place, partial),
            self.request.timeout,
        )  # fmt: skip
        with self.phases("unpack"):
            _disk.unpack(runner, self.enter, entry.file(TREE), tree)
        with self.phases("disk"):
            _disk.dress(runner, self.enter, tree, self.layout)
            _disk.write_disk(runner, self.enter, tree, raw, self.layout)
        with self.phases("qcow2"):
            _disk.to_qcow2(runner, raw, folder / IMAGE)
            raw.unlink()
        _disk.remove_tree(self.enter, tree)
        return {**entry.data, "title": self.title().replace("root tree", "disk")}


class _Download:
    """Somebody else's disk image."""

    def __init__(self, request: Request, phases: Phases) -> None:
        self.request = request
        self.phases = phases
        self.enter: Sequence[str] = ()
        if not request.url:
            raise BaseDiskError("method 'download' needs the option url")
        name = _download.file_name(request.url)
        if request.checksum:
            self.checksum = _download.parse_checksum(request.checksum)
        elif request.checksum_url and request.checksum_keyring:
            self.checksum = _download.signed_checksum(
                request.checksum_url, request.checksum_keyring, name, request.checksum_signature_url
            )
        else:
            raise BaseDiskError(
                "method 'download' needs something to check the file with: the option checksum, or checksum_url "
                "together with checksum_keyring (a checksum file without a signature proves nothing)"
            )

    def inputs(self) -> dict[str, t.Any]:
        # Not the URL: the same content from another server is the same disk.
        return {"method": "download", "checksum": str(self.checksum), "size": self.request.size}

    def sources(self) -> list[str]:
        return [str(self.request.url)]

    def preflight(self, folder: Path) -> None:
        find_program("qemu-img", "qemu-utils")
        size = _download.probe(str(self.request.url)) or 1024**3
        require_space(folder, 2 * size)

    def make(self, runner: Runner, folder: Path, partial: Path) -> dict[str, t.Any]:
        image = folder / IMAGE
        last = [0.0]

        def progress(done: int, total: int | None) -> None:
            if time.monotonic() - last[0] > PROGRESS_SECONDS:
                last[0] = time.monotonic()
                runner.note(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB")

        with self.phases("download"):
            deadline = time.monotonic() + self.request.timeout
            data = _download.download(str(self.request.url), self.checksum, partial, deadline, progress)
        with self.phases("qcow2"):
            self._accept(runner, data, image)
        shutil.rmtree(partial, ignore_errors=True)
        return {"title": f"disk from {self.request.url}", "checksum": str(self.checksum), "sources": self.sources()}

    def _accept(self, runner: Runner, data: Path, image: Path) -> None:
        with data.open("rb") as file:
            head = file.read(_disk.SECTOR)
        for magic, name in COMPRESSED.items():
            if head.startswith(magic):
                raise BaseDiskError(f"{self.request.url} is compressed with {name}: give the plain disk image")
        info = _disk.image_info(data)
        form = info["format"]
        # qemu-img takes every unknown file for a raw disk.
        if form == "raw" and head[510:512] != b"\x55\xaa":
            raise BaseDiskError(f"{self.request.url} is not a disk image: no partition table, and no format of QEMU")
        qemu_img = find_program("qemu-img", "qemu-utils")
        if form == "qcow2":
            data.replace(image)
        else:
            runner.run([qemu_img, "convert", "-f", form, "-O", "qcow2", "-W", str(data), str(image)])
        if info["virtual-size"] < self.request.size:
            runner.run([qemu_img, "resize", "-q", "-f", "qcow2", str(image), str(self.request.size)])


class _DownloadedTree(_Download):
    """The root tree on somebody else's disk image."""

    def __init__(self, request: Request, phases: Phases, cache: Cache) -> None:
        super().__init__(request, phases)
        self.cache = cache

    def inputs(self) -> dict[str, t.Any]:
        return {"method": "tree of a download", "checksum": str(self.checksum)}

    def preflight(self, folder: Path) -> None:
        super().preflight(folder)
        if os.geteuid() != 0:
            raise BaseDiskError("the root tree of a disk image can be read by root only: take build_method 'vm'")
        missing = _disk.missing_programs()
        if missing:
            raise BaseDiskError("; ".join(missing))
        require_space(folder, BOOTSTRAP_SPACE)
        self.enter = private_namespaces()

    def make(self, runner: Runner, folder: Path, partial: Path) -> dict[str, t.Any]:
        key = make_key(super().inputs())
        entry, _made = self.cache.make(
            key, lambda place: super(_DownloadedTree, self).make(runner, place, partial), self.request.timeout
        )
        raw, archive = folder / "disk.raw", folder / TREE
        with self.phases("unpack"):
            _disk.to_raw(runner, entry.file(IMAGE), raw)
            _disk.pack_root(runner, self.enter, raw, archive)
            raw.unlink()
        packages = _disk.installed_packages(_disk.read_archived(archive, "var/lib/dpkg/status"))
        return {"title": f"root tree of {self.request.url}", "packages": packages, "sources": self.sources()}


def default_cache_dir() -> str:
    """`~/.cache/goldsmith-images`, or below XDG_CACHE_HOME."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "goldsmith-images")
