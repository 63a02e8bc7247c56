# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module config_files, run by Ansible against real files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunModule = Callable[..., dict[str, Any]]


def entry(path: Path, **options: Any) -> dict[str, Any]:
    return {"path": str(path), "owner": str(os.getuid()), "group": str(os.getgid()), **options}


def test_a_list_of_everything_once_and_then_nothing(run_module: RunModule, tmp_path: Path) -> None:
    old = tmp_path / "old.conf"
    old.write_text("old\n")
    plugin = tmp_path / "bin" / "portmap"
    plugin.parent.mkdir()
    plugin.write_text("somebody else's")
    files = [
        entry(tmp_path / "etc/a.conf", content="umlaut: ä\n", mode="0640", directory_mode="0750"),
        entry(tmp_path / "etc/b.conf", content="", validate="test -e %s"),
        entry(tmp_path / "bin/loopback", state="link", src="/usr/lib/cni/loopback", force=False),
        entry(plugin, state="link", src="/usr/lib/cni/portmap", force=False),
        entry(tmp_path / "etc/empty", state="directory"),
        entry(old, state="absent"),
        entry(tmp_path / "never.conf", state="absent"),
    ]
    changed = [str(tmp_path / name) for name in ("etc/a.conf", "etc/b.conf", "bin/loopback", "etc/empty", "old.conf")]

    predicted = run_module("config_files", _check=True, _diff=True, files=files)
    assert (predicted["changed"], predicted["changed_paths"]) == (True, changed)
    assert not (tmp_path / "etc").exists()
    assert old.exists()
    assert {"before": "", "after": "umlaut: ä\n"}.items() <= predicted["diff"][0].items()

    done = run_module("config_files", files=files)
    assert (done["changed"], done["changed_paths"]) == (True, changed)
    assert (tmp_path / "etc/a.conf").read_text(encoding="utf-8") == "umlaut: ä\n"
    assert (tmp_path / "etc/a.conf").stat().st_mode & 0o7777 == 0o640
    assert (tmp_path / "etc").stat().st_mode & 0o7777 == 0o750
    assert os.readlink(tmp_path / "bin/loopback") == "/usr/lib/cni/loopback"
    assert plugin.read_text() == "somebody else's"
    assert not old.exists()

    again = run_module("config_files", _diff=True, files=files)
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])


@pytest.mark.parametrize("check", [True, False])
def test_a_refused_content_leaves_every_file_as_it_was(run_module: RunModule, tmp_path: Path, check: bool) -> None:
    first = tmp_path / "first.conf"
    first.write_text("old\n")
    result = run_module(
        "config_files",
        _check=check,
        files=[
            entry(first, content="new\n"),
            entry(tmp_path / "second.conf", content="bad\n", validate="grep -q good %s"),
        ],
    )
    assert result["failed"]
    assert "second.conf" in result["msg"]
    assert "grep -q good" in result["msg"]
    assert first.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["first.conf"]


def test_a_validator_that_is_not_installed_yet(run_module: RunModule, tmp_path: Path) -> None:
    files = [entry(tmp_path / "x", content="x", validate="no-such-program-here %s")]
    assert run_module("config_files", _check=True, files=files)["changed"]
    assert run_module("config_files", files=files)["failed"]
    assert not (tmp_path / "x").exists()


def test_a_file_that_gets_narrower_is_never_wider_than_before(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("public")
    path.chmod(0o644)
    # A link to the old inode shows whether the secret ever went into the file that everybody could read.
    os.link(path, tmp_path / "witness")
    assert run_module("config_files", files=[entry(path, content="secret", mode="0600")])["changed"]
    assert path.stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "witness").read_text() == "public"


def test_an_unquoted_mode_is_refused(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module("config_files", files=[entry(tmp_path / "x", content="x", mode=0o644)])
    assert result["failed"]
    assert "quoted octal" in result["msg"]
