# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A root tree as a place to run programs in: what is mounted there, and what it must not be able to do."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._command import (
    CommandError,
    find_program,
    private_namespaces,
)

if t.TYPE_CHECKING:
    from collections.abc import Iterator

# Runs in a mount and PID namespace of its own, so that all of it goes with the last process. No /sys: nothing of the
# host's devices may get into an image. /run and /tmp are not part of an image, so they are not part of the tree.
MOUNT = """\
set -eu
tree=$1
shift
mount -t proc proc "$tree/proc"
mount -t tmpfs -o mode=755,nosuid tmpfs "$tree/dev"
for node in null zero full random urandom tty; do
    : > "$tree/dev/$node"
    mount --bind "/dev/$node" "$tree/dev/$node"
done
mkdir "$tree/dev/pts" "$tree/dev/shm"
ln -s /proc/self/fd "$tree/dev/fd"
ln -s pts/ptmx "$tree/dev/ptmx"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$tree/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$tree/tmp"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$tree/run"
mkdir "$tree/run/lock"
if [ -e /etc/resolv.conf ]; then
    mkdir -p "$tree/run/systemd/resolve"
    cat /etc/resolv.conf > "$tree/run/systemd/resolve/stub-resolv.conf"
    if [ -f "$tree/etc/resolv.conf" ] && [ ! -L "$tree/etc/resolv.conf" ]; then
        mount --bind "$tree/run/systemd/resolve/stub-resolv.conf" "$tree/etc/resolv.conf"
    fi
fi
exec "$@"
"""

POLICY = "#!/bin/sh\n# While the image is built: no service starts.\nexit 101\n"

# A file capability as the kernel keeps it: version 2, effective, CAP_NET_BIND_SERVICE.
CAPABILITY = bytes.fromhex("0100000200040000") + bytes(12)

#: Machine names of uname whose processors run programs of the architecture without an emulator.
NATIVE = {"amd64": ("x86_64",), "arm64": ("aarch64",)}
EMULATORS = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}


def enter(tree: Path) -> list[str]:
    """The prefix of a command that works on a tree as if it were a system: mounts, and a PID namespace."""
    unshare = [find_program("unshare", "util-linux"), "--mount", "--pid", "--fork", "--kill-child"]
    return [*unshare, "--", "sh", "-c", MOUNT, "sh", str(tree)]


@contextlib.contextmanager
def services_blocked(tree: Path) -> Iterator[None]:
    """Keep packages from starting services; systemd is not there to ask, but scripts of sysvinit would run."""
    policy = tree / "usr/sbin/policy-rc.d"
    if policy.exists():
        yield
        return
    times = policy.parent.stat()
    policy.write_text(POLICY, encoding="utf-8")
    policy.chmod(0o755)
    ours = policy.parent.stat().st_mtime_ns
    try:
        yield
    finally:
        untouched = policy.parent.stat().st_mtime_ns == ours
        policy.unlink(missing_ok=True)
        if untouched:
            os.utime(policy.parent, ns=(times.st_atime_ns, times.st_mtime_ns))


def problem(folder: Path) -> str:
    """Why no root tree can be built below an existing folder; empty if it can. Tries it, instead of guessing."""
    try:
        with tempfile.TemporaryDirectory(prefix=".tree-", dir=folder) as place:
            return _file_system_problem(Path(place)) or _mount_problem(Path(place))
    except OSError as error:
        return f"{folder}: {error.strerror}"


def _file_system_problem(place: Path) -> str:
    where = f"the file system of {place.parent}"
    file = place / "file"
    file.write_text("#!/bin/sh\n", encoding="utf-8")
    try:
        file.chmod(0o4755)
        os.symlink("file", place / "symbolic")
        os.link(file, place / "hard")
        os.mkfifo(place / "fifo")
        if os.geteuid() == 0:
            os.chown(file, 1, 1)
            file.chmod(0o4755)
            os.setxattr(file, "security.capability", CAPABILITY)
    except OSError as error:
        return f"{where} cannot hold a root tree (owners, links, file capabilities): {error.strerror}"
    if file.stat().st_mode & 0o7777 != 0o4755 or not os.path.samefile(file, place / "hard"):
        return f"{where} does not keep modes or links of files"
    flags = os.statvfs(place).f_flag
    if flags & os.ST_NOEXEC or flags & os.ST_NOSUID:
        return f"{where} is mounted with noexec or nosuid: programs of the root tree could not run"
    return ""


def _mount_problem(place: Path) -> str:
    for name in ("proc", "dev", "tmp", "run", "etc"):
        (place / name).mkdir()
    try:
        command = [*private_namespaces(), *enter(place), "true"]
    except CommandError as error:
        return str(error)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    who = "root" if os.geteuid() == 0 else "this user"
    return f"{who} may not mount here ({(done.stderr.strip() or 'no reason given').splitlines()[-1]})"


def architecture_problem(
    architecture: str, machine: str = platform.machine(), registered: Path = Path("/proc/sys/fs/binfmt_misc")
) -> str:
    """Why programs of an architecture (Debian's name) do not run here; empty if they do."""
    if machine in NATIVE.get(architecture, ()):
        return ""
    emulator = EMULATORS.get(architecture, f"qemu-{architecture}")
    entry = registered / emulator
    if entry.exists() and entry.read_text(encoding="utf-8").startswith("enabled"):
        return ""
    return (
        f"programs for {architecture} do not run on this {machine} machine: the emulator {emulator} is not registered "
        f"in {registered}; install it with 'apt-get install qemu-user-static binfmt-support'"
    )


def remove(tree: Path) -> None:
    """Remove a tree; nothing may be mounted in it any more."""
    shutil.rmtree(tree, ignore_errors=True)
    if tree.exists():
        raise OSError(f"cannot remove {tree}")
