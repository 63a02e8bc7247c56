# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _root_tree


def test_a_native_architecture_needs_no_emulator(tmp_path: Path):
    assert _root_tree.architecture_problem("amd64", "x86_64", tmp_path) == ""
    assert _root_tree.architecture_problem("arm64", "aarch64", tmp_path) == ""


def test_a_foreign_architecture_needs_a_registered_emulator(tmp_path: Path):
    problem = _root_tree.architecture_problem("amd64", "aarch64", tmp_path)
    assert "qemu-x86_64 is not registered" in problem
    assert "apt-get install qemu-user-static" in problem
    entry = tmp_path / "qemu-x86_64"
    entry.write_text("disabled\n")
    assert _root_tree.architecture_problem("amd64", "aarch64", tmp_path) == problem
    entry.write_text("enabled\ninterpreter /usr/bin/qemu-x86_64-static\n")
    assert _root_tree.architecture_problem("amd64", "aarch64", tmp_path) == ""


@pytest.mark.parametrize("there", [False, True])
def test_services_are_blocked_and_nothing_stays(tmp_path: Path, there: bool):
    folder = tmp_path / "usr/sbin"
    folder.mkdir(parents=True)
    policy = folder / "policy-rc.d"
    if there:
        policy.write_text("the tree's own")
    os.utime(folder, (1, 1))
    with pytest.raises(KeyboardInterrupt), _root_tree.services_blocked(tmp_path):
        assert policy.exists()
        raise KeyboardInterrupt
    assert policy.exists() is there
    assert folder.stat().st_mtime == 1


def test_the_time_of_a_folder_that_the_build_changed_stays(tmp_path: Path):
    folder = tmp_path / "usr/sbin"
    folder.mkdir(parents=True)
    os.utime(folder, (1, 1))
    with _root_tree.services_blocked(tmp_path):
        (folder / "tool").write_text("of a package")
        os.utime(folder, (5, 5))
    assert folder.stat().st_mtime > 1


def test_a_missing_folder_is_a_problem(tmp_path: Path):
    assert "No such file" in _root_tree.problem(tmp_path / "none")
