# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._host_memory import available

MIB = 1024 * 1024


def write(top: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4000),
        # a limit of the whole machine is no limit of a group
        ({"g/memory.max": "max\n", "g/memory.current": "1\n"}, 4000),
        # version 2: the group, one above it, and a container that sees its own group as the top
        ({"g/a/b/memory.max": f"{900 * MIB}", "g/a/b/memory.current": f"{400 * MIB}"}, 500),
        ({"g/a/memory.max": f"{900 * MIB}", "g/a/memory.current": f"{100 * MIB}"}, 800),
        ({"g/memory.max": f"{700 * MIB}", "g/memory.current": f"{100 * MIB}"}, 600),
        # the cache of files goes when it has to
        (
            {
                "g/memory.max": f"{700 * MIB}",
                "g/memory.current": f"{600 * MIB}",
                "g/memory.stat": f"active_file 7\ninactive_file {500 * MIB}\n",
            },
            600,
        ),
        # version 1
        (
            {
                "g/memory/c/memory.limit_in_bytes": f"{900 * MIB}",
                "g/memory/c/memory.usage_in_bytes": f"{300 * MIB}",
            },
            600,
        ),
        # over its limit
        ({"g/memory.max": "1", "g/memory.current": "2"}, 0),
    ],
)
def test_the_least_of_host_and_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path, {"p/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {4000 * 1024} kB\n"})
    write(tmp_path, {"p/self/cgroup": "9:name=systemd:/\n4:memory:/c\n0::/a/b\n", **files})
    assert available(tmp_path / "p", tmp_path / "g") == expected * MIB


def test_nobody_says(tmp_path: Path) -> None:
    assert available(tmp_path, tmp_path) is None
    assert available()
