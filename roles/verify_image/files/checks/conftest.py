# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every check of an image may use: the expectations, and the way into the machine.

The same files check a role's Molecule machine and a finished image, so nothing here knows which of the two it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from testinfra.host import Host


@pytest.fixture(scope="session")
def expect() -> dict[str, Any]:
    """What the image definition promises (the JSON object in the file that GOLDSMITH_EXPECT names)."""
    path = os.environ.get("GOLDSMITH_EXPECT")
    if not path:
        return {}
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise TypeError(f"{path} (GOLDSMITH_EXPECT) must hold a JSON object, not {type(found).__name__}")
    return found


def ssh_arguments(name: str) -> list[str]:
    """Return the ssh command line up to, and without, the remote command."""
    config = os.environ.get("GOLDSMITH_SSH_CONFIG")
    if not config:
        raise RuntimeError("GOLDSMITH_SSH_CONFIG must name the ssh configuration that knows the machine")
    return ["ssh", "-F", config, name]


@pytest.fixture(scope="module")
def ssh_command(host: Host) -> list[str]:
    """The ssh command line into `host`, for checks that must stream data (an image tar) into a remote command."""
    return ssh_arguments(host.backend.get_hostname())


@pytest.fixture(scope="session")
def clones() -> dict[str, list[str]]:
    """ssh command lines of the machines that were started from one image at the same time, by name."""
    names = os.environ.get("GOLDSMITH_CLONES", "").split()
    if len(names) < 2:
        pytest.fail("GOLDSMITH_CLONES must name two machines started from the same image")
    return {name: ssh_arguments(name) for name in names}
