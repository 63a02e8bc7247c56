# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work folders with a template, and a look at what a build leaves."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    FILE_TEMPLATE,
    HANG,
    POWER_OFF,
    QEMU_TEMPLATE,
    Module,
    Result,
    boot_disk,
    marked,
)
from ansible_collections.goldsmith.images.tests.support.processes import wait_until


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    (path / "out").mkdir(parents=True)
    return path


@pytest.fixture
def file_template(work: Path) -> Path:
    path = work / "file.pkr.hcl"
    path.write_text(FILE_TEMPLATE)
    return path


@pytest.fixture
def qemu_template(work: Path) -> Path:
    (work / "out").rmdir()
    boot_disk(work / "off.raw", POWER_OFF)
    boot_disk(work / "hang.raw", HANG)
    path = work / "q.pkr.hcl"
    path.write_text(QEMU_TEMPLATE)
    return path


@pytest.fixture
def no_leftovers() -> Iterator[dict[str, str]]:
    """An environment for the build; afterwards no process has it and nothing is left in its temporary directory."""
    with tempfile.TemporaryDirectory(prefix="gpt-", dir="/tmp") as directory:
        environment = {"MARK": uuid.uuid4().hex, "TMPDIR": directory}
        yield environment
        wait_until(lambda: not marked(environment["MARK"]), 60, "the end of all processes of the build")
        wait_until(lambda: not os.listdir(directory), 5, f"removal of {os.listdir(directory)}")


@pytest.fixture
def build(collections_path: str, tmp_path: Path) -> Callable[..., Result]:
    """One run of the module: ``build(template=...)``, in check mode with ``build(_ansible_check_mode=True, ...)``."""

    def run(**params: Any) -> Result:
        return Module(collections_path, tmp_path, **params).result()

    return run
