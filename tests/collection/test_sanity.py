# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ansible-test sanity``, the collection's entry examination."""

from __future__ import annotations

import configparser
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]

# ansible-test would download this script by the name below; Python brings all that it is wanted for.
GET_PIP = "import ensurepip\n\nensurepip.bootstrap(upgrade=True, default_pip=True)\n"


@pytest.fixture(scope="session")
def sanity_home() -> Path:
    """The home that ansible-test sees. It keeps its environments there, so that a second run takes them up again."""
    home = CHECKOUT / ".cache" / "ansible-test"
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for name in get_pip_names():
        (cache / name).write_text(GET_PIP, encoding="utf-8")
    write_pip_settings(home / ".config" / "pip" / "pip.conf")
    return home


def get_pip_names() -> list[str]:
    """Under which names this ansible-test looks for the script: they carry the version of pip it wants."""
    spec = find_spec("ansible_test")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "_internal" / "python_requirements.py"
    versions = re.findall(r"pip='([\d.]+)'", source.read_text(encoding="utf-8"))
    assert versions, f"{source} no longer says which pip it wants"
    return [f"get_pip_{version.replace('.', '_')}.py" for version in versions]


def write_pip_settings(path: Path) -> None:
    """The user's settings of pip (file and environment), which ansible-test would not hand on."""
    settings = configparser.RawConfigParser()
    settings.read([Path.home() / ".pip" / "pip.conf", Path.home() / ".config" / "pip" / "pip.conf"])
    if not settings.has_section("global"):
        settings.add_section("global")
    for name, value in os.environ.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE":
            settings.set("global", name[4:].lower().replace("_", "-"), "\n".join(value.split()))
    settings.set("global", "quiet", "1")  # what it installs is not what a failure is about
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # it may hold the password of an index
    with path.open("w", encoding="utf-8") as stream:
        settings.write(stream)


def test_nothing_is_ignored() -> None:
    ignored = {path.name: path.read_text(encoding="utf-8") for path in (CHECKOUT / "tests" / "sanity").glob("ignore-*")}
    assert not any(text.strip() for text in ignored.values()), ignored


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--skip-test", "pylint"], id="all but pylint"),
        pytest.param(["--test", "pylint", "plugins/", "roles/"], id="pylint"),
        # What is not published, and as much again.
        pytest.param(
            ["--test", "pylint", "molecule/", "scripts/", "tests/"],
            id="pylint of the tests",
            marks=pytest.mark.slow_matrix,
        ),
    ],
)
def test_sanity(run: Callable[..., str], source_copy: Path, sanity_home: Path, arguments: list[str]) -> None:
    # Named: `default` would try every python3.x on PATH, the shims of a version manager too.
    version = "{}.{}".format(*sys.version_info[:2])
    command = ["ansible-test", "sanity", "--local", "--python", version, "--color", "no", *arguments]
    run(*command, cwd=source_copy, HOME=str(sanity_home))
