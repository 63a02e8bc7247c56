# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a root tree is built: in memory while that suffices. Whole builds are in tests/e2e."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _rootfs_build

MIB = 2**20


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``build(MiB to write, ...)`` returns the file systems that a build was tried on."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    tried: list[str] = []

    def run(megabytes: int, error: Exception | None = None, private: bool = True) -> list[str]:
        class Build:
            def __init__(self, _spec: object, work: Path, *_rest: object) -> None:
                self.work = work

            def run(self) -> object:
                command = ["stat", "--file-system", "--format=%T", str(self.work)]
                tried.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
                (self.work / "tree").write_bytes(bytes(megabytes * MIB))
                if error is not None:
                    raise error
                return self

        monkeypatch.setattr(_rootfs_build, "Build", Build)
        monkeypatch.setattr(_rootfs_build, "FULL", MIB)
        monkeypatch.setattr(_rootfs_build._host_memory, "spare", lambda: 8 * MIB)
        try:
            _rootfs_build.build_in_memory_or_on_disk(None, tmp_path, None, None, private)  # type: ignore[arg-type]
        finally:
            assert not os.path.ismount(tmp_path)
        return tried

    return run


def test_tree_that_fits_is_built_in_memory(build: Callable[..., list[str]], tmp_path: Path) -> None:
    assert build(4) == ["tmpfs"]
    assert not list(tmp_path.iterdir()), "it went with the file system"


def test_tree_that_does_not_fit_is_built_on_the_disk(build: Callable[..., list[str]], tmp_path: Path) -> None:
    first, second = build(12)
    assert (first, second == "tmpfs") == ("tmpfs", False)
    assert (tmp_path / "tree").stat().st_size == 12 * MIB


def test_failure_for_another_reason_is_not_tried_again(build: Callable[..., list[str]]) -> None:
    with pytest.raises(_rootfs_build.BuildError, match="a role failed"):
        build(4, _rootfs_build.BuildError("a role failed"))


def test_interrupted_build_is_not_tried_again(build: Callable[..., list[str]]) -> None:
    with pytest.raises(_rootfs_build.Interrupted):
        build(7, _rootfs_build.Interrupted("SIGTERM"))


def test_nothing_is_mounted_outside_a_namespace_of_its_own(build: Callable[..., list[str]]) -> None:
    assert "tmpfs" not in build(4, private=False)
