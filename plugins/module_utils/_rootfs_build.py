# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""The program that Packer starts for build_method rootfs: archive of a root tree -> roles -> disk image.

    python3 -m ansible_collections.goldsmith.images.plugins.module_utils._rootfs_build SPECIFICATION.json

All of it runs in a mount and PID namespace of its own (and a user namespace where there is no root), so whatever kills
it leaves no process and no mount behind. Its standard output is what Packer shows; commands write to the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _disk, _host_memory, _root_tree, _tree_layers
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError, make_key
from ansible_collections.goldsmith.images.plugins.module_utils._command import (
    CommandError,
    Interrupted,
    Runner,
    interruptible,
    private_namespaces,
)

if t.TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE, PRIVATE = "--inside", "--private"
#: A file system in memory with less room than this is why what was to be written to it failed.
FULL = 64 * 1024**2


class BuildError(Exception):
    """The image cannot be built; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Specification:
    """What to build; written as JSON by the role packer."""

    #: Archive of the base's root tree, and the key that stands for its content.
    archive: str
    archive_key: str
    #: Virtual size of the disk in bytes; no file on it is younger than epoch (seconds since 1970), or than the youngest
    #: of the archive if epoch is 0.
    disk_size: int
    epoch: int
    #: What runs ansible-playbook, its inventory and the way into the tree excepted.
    playbook_command: list[str]
    environment: dict[str, str]
    #: [{role, digest}]: the roles in their order; the digest stands for all that decides what a role does. Without
    #: one the tree is not kept after that role, and none after it.
    roles: list[dict[str, str]]
    #: Folder of the layers; use_layers false neither takes nor leaves any.
    cache_dir: str
    cache_max_size: int
    use_layers: bool
    #: Results: the image, a report, a list of everything in the tree, the log of all commands.
    image: str
    report: str
    listing: str
    log: str
    timeout: float


class Build:
    """One build, from the archive to the image."""

    def __init__(self, spec: Specification, work: Path, cache: Cache, runner: Runner) -> None:
        self.spec, self.work, self.cache, self.runner = spec, work, cache, runner
        self.tree, self.raw = work / "tree", work / "disk.raw"
        self.steps: dict[str, float] = {}
        self.report: dict[str, t.Any] = {"steps": self.steps}

    def run(self) -> Build:
        """Build the image; returns itself, with its report."""
        spec = self.spec
        with self.step("Unpacking the root tree"):
            _disk.unpack(self.runner, (), Path(spec.archive), self.tree)
            epoch = spec.epoch or newest(self.tree)
            layout = _disk.Layout(spec.disk_size, spec.archive_key, epoch)
            _disk.dress(self.runner, (), self.tree, layout)
        names = [role["role"] for role in spec.roles]
        keys = self.keys()
        done = _tree_layers.usable(self.cache, keys)
        self.report["restored"] = names[: len(done)]
        if done:
            with self.step(f"Restoring the tree after the role {names[len(done) - 1]}"):
                for key in done:
                    _tree_layers.restore(self.runner, self.cache, key, self.tree)
        with self.step("Provisioning with Ansible"):
            self.provision(names[len(done) :], keys[len(done) :])
        with self.step("Writing the disk"), ThreadPoolExecutor(1) as pool:
            _disk.clamp_times(self.runner, (), self.tree, epoch)
            tree_digest = pool.submit(_tree_layers.digest, self.tree, Path(spec.listing))
            _disk.write_disk(self.runner, (), self.tree, self.raw, layout)
            self.report["tree_sha256"] = tree_digest.result()
            self.report["disk_bytes"] = self.raw.stat().st_blocks * 512
        with self.step("Converting hard drive"), ThreadPoolExecutor(1) as pool:
            digest = pool.submit(_disk.digest, self.raw)
            # Half an image never has the name of a whole one.
            Path(spec.image).parent.mkdir(exist_ok=True)
            image = Path(f"{spec.image}.part")
            _disk.to_qcow2(self.runner, self.raw, image, compress=True)
            self.report["disk_digest"] = digest.result()
            image.replace(spec.image)
        return self

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        say(name)
        start = time.monotonic()
        yield
        self.steps[name] = round(time.monotonic() - start, 2)

    def keys(self) -> list[str]:
        """The key of the layer of each role, as far as the roles are known."""
        if not self.spec.use_layers:
            return []
        keys: list[str] = []
        previous = make_key({"tree": self.spec.archive_key, "disk": [self.spec.disk_size, _disk.DISK_FORMAT]})
        for role in self.spec.roles:
            if not role["digest"]:
                break
            previous = make_key({"previous": previous, **role})
            keys.append(previous)
        return keys

    def provision(self, roles: list[str], keys: list[str]) -> None:
        """Run the playbook over the chroot connection; every role with a key leaves a layer."""
        state = self.work / "state.json"
        inventory = {
            "ansible_connection": "community.general.chroot",
            "ansible_host": str(self.tree),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        layers = {
            "image_roles": roles,
            "image_tree": {
                "path": str(self.tree),
                "state_path": str(state),
                "cache_dir": self.spec.cache_dir,
                "cache_max_size": self.spec.cache_max_size,
                "log_path": self.spec.log,
                "keys": dict(zip(roles, keys)),
            },
        }
        for name, content in (("inventory.json", {"all": {"hosts": {"tree": inventory}}}), ("layers.json", layers)):
            (self.work / name).write_text(json.dumps(content), encoding="utf-8")
        command = [*_root_tree.enter(self.tree), *self.spec.playbook_command, "--inventory",
                   str(self.work / "inventory.json"), "--extra-vars", f"@{self.work}/layers.json"]  # fmt: skip
        with _root_tree.services_blocked(self.tree):
            state.write_text(json.dumps(_tree_layers.snapshot(self.tree)), encoding="utf-8")
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, env={**os.environ, **self.spec.environment}, check=False
            )
        if done.returncode != 0:
            raise BuildError(f"ansible-playbook ended with exit status {done.returncode}")


def newest(tree: Path) -> int:
    """When the youngest file of a tree was changed, in seconds since 1970."""
    return max(int(status.st_mtime) for _path, status in _tree_layers.walk(tree))


def build_in_memory_or_on_disk(spec: Specification, work: Path, cache: Cache, runner: Runner, private: bool) -> Build:
    """Build where it is faster; what turns out to be too large for the memory is built again, on the disk.

    The file system in memory goes with the mount namespace: without one of its own, the build has none.
    """
    with memory_on(work) if private else contextlib.nullcontext(False) as in_memory:
        try:
            return Build(spec, work, cache, runner).run()
        except Interrupted:
            raise
        except ERRORS:
            if not in_memory or shutil.disk_usage(work).free >= FULL:
                raise
    say("The memory is too small for this image: again, on the disk")
    return Build(spec, work, cache, runner).run()


@contextlib.contextmanager
def memory_on(folder: Path) -> Iterator[bool]:
    """Mount a file system in memory where there is plenty of it, and where it keeps all that a root tree may have."""
    size = _host_memory.spare()
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=755,size={size}", "build", str(folder)]
    mounted = bool(size) and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        if mounted and not keeps_attributes(folder):
            subprocess.run(["umount", str(folder)], check=True)
            mounted = False
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def keeps_attributes(folder: Path) -> bool:
    """Whether files may have attributes of their users; in memory, not before Linux 6.6."""
    try:
        os.setxattr(folder, "user.goldsmith", b"")
        os.removexattr(folder, "user.goldsmith")
    except OSError:
        return False
    return True


def say(text: str) -> None:
    """Tell Packer, which shows it at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(path: str, *options: str) -> None:
    """Build what the JSON file at `path` specifies."""
    if INSIDE not in options:
        private = private_namespaces()
        marks = [INSIDE, *([PRIVATE] if private else [])]
        command = [*private, sys.executable, "-m", __spec__.name, path, *marks]
        os.execv(command[0], command)
    spec = Specification(**json.loads(Path(path).read_text(encoding="utf-8")))
    cache = Cache(Path(spec.cache_dir), spec.cache_max_size, remove=_root_tree.remove)
    runner = Runner(Path(spec.log), deadline=time.monotonic() + spec.timeout)
    runner.log.write_text("", encoding="utf-8")
    start = time.monotonic()
    with interruptible():
        cache.open()
        with cache.workspace(make_key({"build": spec.image})) as folder:
            work = folder / "build"
            work.mkdir()
            build = build_in_memory_or_on_disk(spec, work, cache, runner, PRIVATE in options)
    build.report["seconds"] = round(time.monotonic() - start, 2)
    build.report["peak_memory_kilobytes"] = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    Path(spec.report).write_text(json.dumps(build.report), encoding="utf-8")


ERRORS = (
    BuildError,
    CacheError,
    CommandError,
    Interrupted,
    OSError,
    _disk.DiskError,
    _tree_layers.LayerError,
)

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ERRORS as error:
        say(f"ERROR: {error}")
        raise SystemExit(1) from error
