# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make bench-roles` reads out of a play, and the script that it writes from it."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.bench import roles

START = "2026-11-27T07:00:00.000000Z"
END = "2026-11-27T07:00:09.000000Z"


def play(*results: dict[str, Any]) -> list[dict[str, Any]]:
    """As ansible.posix.json writes it."""
    tasks = [{"task": {"name": "x"}, "hosts": {"vm": result}} for result in results]
    return [{"play": {"name": "hardening", "duration": {"start": START, "end": END}}, "tasks": tasks}]


def units(*commands: list[str]) -> dict[str, Any]:
    return {"action": "goldsmith.images.systemd_units", "changed_units": [], "commands": list(commands)}


def test_costs_are_those_of_the_tasks_that_ran_in_the_machine() -> None:
    outcomes: list[dict[str, Any]] = [{"changed": True}, {"changed": False}, {"skipped": True}, {"changed": True}]
    ran = [{"action": "ansible.builtin.command", **outcome} for outcome in outcomes]
    found = roles.costs(play({"action": "ansible.builtin.assert"}, *ran))
    assert found == {"hardening": {"tasks": 3, "changed": 2, "seconds": 9.0, "seconds_per_task": 3.0}}


def test_one_call_of_systemctl_a_verb() -> None:
    plays = play(
        units(["enable", "--no-reload", "a.service"], ["daemon-reload"], ["start", "a.service", "b.service"]),
        units(["enable", "--no-reload", "b.service"], ["restart", "b.service"]),
    )
    expected = {
        "enable": ["a.service", "b.service"],
        "daemon-reload": [],
        "start": ["a.service"],
        "restart": ["b.service"],
    }
    assert roles.systemctl(plays) == expected
    with pytest.raises(SystemExit, match="systemctl isolate"):
        roles.systemctl(play(units(["isolate", "x.target"])))


def test_the_script_makes_the_files_again(tmp_path: Path) -> None:
    made, packed = tmp_path / "made", io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, mode, content in (("a/file", 0o644, b"$HOME `x` \\\n'y'\n"), ("b/secret", 0o600, b"no newline")):
            member = tarfile.TarInfo(f"{made}/{name}")
            member.mode, member.size = mode, len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(f"{made}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/lib/x"
        archive.addfile(link)
        folder = tarfile.TarInfo(f"{made}/folder")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        script = "set -eu; umask 022\n" + "\n".join(roles.file_lines(archive))
    for _again in range(2):
        subprocess.run(["sh", "-c", script], check=True)
    assert (made / "a/file").read_bytes() == b"$HOME `x` \\\n'y'\n"
    assert (made / "b/secret").read_bytes() == b"no newline"
    assert [(made / name).stat().st_mode & 0o777 for name in ("a/file", "b/secret", "folder")] == [0o644, 0o600, 0o700]
    assert (made / "link").readlink() == Path("/usr/lib/x")
