# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oldest Python that a target may have, wherever this machine keeps one."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

VERSION = "3.9"
# Version managers know Pythons that are not on PATH, or are there only as a shim that refuses to run.
MANAGERS = (["uv", "python", "find", "--no-python-downloads", VERSION], ["pyenv", "prefix", VERSION])
IDENTIFY = "import sys; print(*sys.version_info[:2], sep='.'); print(sys.executable)"


def _printed(command: list[str]) -> list[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _candidates() -> Iterator[str]:
    yield from (f"{folder}/python{VERSION}" for folder in os.get_exec_path())
    for manager in MANAGERS:
        for found in map(Path, _printed(manager)):
            yield str(found / "bin" / f"python{VERSION}" if found.is_dir() else found)


@functools.cache
def find() -> str | None:
    """The path of one that runs."""
    for candidate in _candidates():
        identity = _printed([candidate, "-c", IDENTIFY])
        if identity[:1] == [VERSION]:
            return identity[1]
    return None


def required() -> str:
    """The same; the test is skipped where there is none."""
    path = find()
    if path is None:
        pytest.skip(f"no Python {VERSION} here: on PATH, or known to uv or pyenv")
    return path
