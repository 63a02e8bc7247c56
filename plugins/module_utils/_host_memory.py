# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""How much memory this process may still use: what the host has, within the limits of its control groups."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

if t.TYPE_CHECKING:
    from collections.abc import Iterator

#: Names of the files of a control group: the limit and the use, both in bytes. Version 2, version 1.
FILES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}

#: A root tree with its packages, twice: below this it is not worth trying.
PLENTY = 4 * 1024**3


def available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The bytes that can be used before the kernel ends something; None where nobody says."""
    found = list(_left_in_groups(proc, groups))
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(proc / "meminfo"), re.MULTILINE)
    if match is not None:
        found.append(int(match[1]) * 1024)
    return min(found, default=None)


def spare() -> int:
    """The bytes that a file system in memory may grow to: half of what is free, or 0 where that is not plenty."""
    half = (available() or 0) // 2
    return half if half >= PLENTY else 0


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each control group that this process is in has left."""
    for line in _read(proc / "self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers not in FILES:
            continue
        limit, used = FILES[controllers]
        top = groups / controllers
        # A container sees its own group as the top, whatever the path says.
        for folder in {top, *(top / path.lstrip("/")).parents, top / path.lstrip("/")}:
            if folder.is_relative_to(top):
                yield from _left(folder, limit, used)


def _left(group: Path, limit: str, used: str) -> Iterator[int]:
    """What one group has left, if it has a limit."""
    numbers = [_read(group / name).strip() for name in (limit, used)]
    if not all(number.isdecimal() for number in numbers):
        return
    # The cache of files counts as used, but goes when it has to.
    cache = re.search(r"^(?:total_)?inactive_file (\d+)", _read(group / "memory.stat"), re.MULTILINE)
    yield max(0, int(numbers[0]) - int(numbers[1]) + (int(cache[1]) if cache else 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
