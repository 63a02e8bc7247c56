# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools are run as a developer would run them, on the files that belong to the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


class Run(Protocol):
    def __call__(self, *command: str | Path, cwd: Path = CHECKOUT, **env: str) -> str: ...


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command that must succeed, and return its output; when it fails, the test shows all it said."""
    ansible_home = tmp_path_factory.mktemp("ansible_home")

    def run(*command: str | Path, cwd: Path = CHECKOUT, **env: str) -> str:
        environment = {
            **os.environ,
            # The tools of the environment that runs the tests, whatever else is installed.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
            "ANSIBLE_HOME": str(ansible_home),
        }
        # Inherited ones could make the checkout visible where it should not be.
        for name in ("PYTHONPATH", "ANSIBLE_CONFIG", "ANSIBLE_COLLECTIONS_PATH"):
            environment.pop(name, None)
        environment.update(env)
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            name = " ".join(Path(part).name if Path(part).is_absolute() else str(part) for part in command[:4])
            pytest.fail(f"{name}: exit status {done.returncode}\n{done.stdout.strip()}", pytrace=False)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """The project's files, relative to the checkout: tracked ones, and new ones that are not ignored."""
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [Path(name) for name in sorted(set(listed.stdout.split("\0"))) if name]
    return [path for path in paths if (CHECKOUT / path).is_file()]


@pytest.fixture(scope="session")
def source_copy(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project where ansible-test insists to find it, which a link is not enough for."""
    copy = tmp_path_factory.mktemp("source") / "ansible_collections" / "goldsmith" / "images"
    for path in files:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / path, copy / path)
    return copy
