# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Read what the files of a system say, also of one below a folder: programs, packages, units, kernel settings."""

from __future__ import annotations

import fnmatch
import gzip
import os
import re

PROGRAM_FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
UNIT_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
SYSCTL_FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d")
KERNEL_CONFIGS = (
    "boot/config-{0}",
    "usr/lib/modules/{0}/config",
    "lib/modules/{0}/config",
    "usr/lib/modules/{0}/build/.config",
)
MAX_LINKS = 40


def inside(root: str, path: str) -> str:
    """The real path of a path in the tree: links are followed as the system itself would, never out of the tree."""
    todo = path.strip("/").split("/")
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        full = os.path.join(root, *done, part)
        if os.path.islink(full) and links < MAX_LINKS:
            links += 1
            target = os.readlink(full)
            if target.startswith("/"):
                done = []
            todo = target.strip("/").split("/") + todo
        else:
            done.append(part)
    return os.path.join(root, *done)


def read(root: str, path: str) -> str | None:
    """The text of a file, None without one; unpacked if it is a .gz."""
    real = inside(root, path)
    try:
        with (
            gzip.open(real, "rt", errors="replace") if real.endswith(".gz") else open(real, errors="replace") as stream
        ):
            return stream.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def names(root: str, folder: str) -> list[str]:
    try:
        return sorted(os.listdir(inside(root, folder)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_program(root: str, name: str) -> str | None:
    for folder in PROGRAM_FOLDERS:
        real = inside(root, f"{folder}/{name}")
        if os.path.isfile(real) and os.access(real, os.X_OK):
            return f"/{folder}/{name}"
    return None


def package_version(root: str, *packages: str) -> str | None:
    """The version of the first of these packages that dpkg knows as installed."""
    status = read(root, "var/lib/dpkg/status") or ""
    for package in packages:
        found = re.search(rf"^Package: {re.escape(package)}\n((?:.+\n)*)", status, re.MULTILINE)
        version = re.search(r"^Version: (.+)$", found[1], re.MULTILINE) if found else None
        if found and version and re.search(r"^Status: \S+ \S+ installed$", found[1], re.MULTILINE):
            return version[1].partition(":")[2] or version[1]
    return None


def unit_exists(root: str, unit: str) -> bool:
    return any(os.path.isfile(inside(root, f"{folder}/{unit}")) for folder in UNIT_FOLDERS)


def unit_is_enabled(root: str, unit: str) -> bool:
    """Whether a link of the administrator's starts it at boot, and no mask forbids it."""
    admin = os.path.join(root, UNIT_FOLDERS[0])
    if os.path.islink(os.path.join(admin, unit)) and os.readlink(os.path.join(admin, unit)) == os.devnull:
        return False
    folders = [name for name in names(root, UNIT_FOLDERS[0]) if name.endswith((".wants", ".requires"))]
    return any(os.path.lexists(os.path.join(admin, folder, unit)) for folder in folders)


def boot_sysctl(root: str, key: str) -> tuple[str, str] | None:
    """Value and file that win at boot for a setting: as systemd-sysctl reads them, exact names before patterns."""
    files: dict[str, str] = {}
    for folder in SYSCTL_FOLDERS:
        for name in names(root, folder):
            if name.endswith(".conf"):
                files.setdefault(name, f"{folder}/{name}")
    exact: tuple[str, str] | None = None
    pattern: tuple[str, str] | None = None
    wanted = key.replace(".", "/")
    for _name, path in sorted(files.items()):
        for line in (read(root, path) or "").splitlines():
            name, separator, value = line.strip().partition("=")
            name = name.strip().lstrip("-")
            if not separator or name.startswith(("#", ";")):
                continue
            first = min((name.find(char) for char in "./" if char in name), default=-1)
            if first >= 0 and name[first] == ".":
                name = name.translate(str.maketrans("./", "/."))
            if name == wanted:
                exact = (value.strip(), f"/{path}")
            elif fnmatch.fnmatchcase(wanted, name):
                pattern = (value.strip(), f"/{path}")
    return exact or pattern


def fstab_swaps(root: str) -> list[str]:
    fields = [line.split() for line in (read(root, "etc/fstab") or "").splitlines()]
    return [row[0] for row in fields if len(row) > 2 and row[2] == "swap" and not row[0].startswith("#")]


def kernel_config(root: str, release: str) -> dict[str, str] | None:
    """The settings that a kernel was built with, None where they are not to be found."""
    for form in KERNEL_CONFIGS:
        text = read(root, form.format(release))
        if text is not None:
            return parse_kernel_config(text)
    return None


def parse_kernel_config(text: str) -> dict[str, str]:
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))


def kernel_releases(root: str) -> list[str]:
    """The kernels that are installed."""
    return names(root, "usr/lib/modules") or names(root, "lib/modules")
