# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as somebody gets it who installs it: built, installed into an empty path, used from there."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]

NAME = "goldsmith.images"
SHIPPED = {
    *("MANIFEST.json", "FILES.json", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("meta", "plugins", "roles", "playbooks", "docs"),
}
# Kinds of plugins that ansible-doc knows; the others have no documentation of their own.
DOCUMENTED = ("callback", "connection", "filter", "inventory", "lookup", "test")


@pytest.fixture(scope="module")
def archive(run: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run("ansible-galaxy", "collection", "build", "--output-path", folder)
    (built,) = folder.glob("goldsmith-images-*.tar.gz")
    return built


@pytest.fixture(scope="module")
def used(run: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a command as a user who has no checkout, and whose collections path is the folder `installed` alone."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "ansible.cfg").touch()

    def used(*command: str | Path) -> str:
        return run(
            *command,
            cwd=elsewhere,
            ANSIBLE_CONFIG=str(elsewhere / "ansible.cfg"),
            ANSIBLE_COLLECTIONS_PATH=str(elsewhere / "installed"),
            ANSIBLE_INJECT_FACT_VARS="false",
        )

    return used


@pytest.fixture(scope="module", autouse=True)
def installed(used: Callable[..., str], archive: Path) -> None:
    # What it depends on is in the Python package `ansible`; a user's ansible-galaxy would download it.
    used("ansible-galaxy", "collection", "install", archive, "-p", "installed", "--no-deps", "--offline")


def plugins(kind: str) -> list[str]:
    return sorted(path.stem for path in (CHECKOUT / "plugins" / kind).glob("*.py") if path.stem != "__init__")


def test_only_what_a_user_needs_is_shipped(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = [name for name in tar.getnames() if name != "."]
    assert {name.split("/")[0] for name in names} <= SHIPPED
    assert not [name for name in names if name.endswith((".pyc", ".qcow2", ".log"))]


def test_plugins_are_documented_there(used: Callable[..., str]) -> None:
    kinds = {kind: plugins(kind) for kind in DOCUMENTED}
    kinds["module"] = plugins("modules")
    assert kinds["module"]
    for kind, names in kinds.items():
        if not names:
            continue
        wanted = [f"{NAME}.{name}" for name in names]
        # A plugin that cannot be documented is left out with a warning, in front of the JSON.
        said = used("ansible-doc", "--json", "-t", kind, *wanted)
        found = json.loads(said[said.index("{") :])
        assert sorted(found) == wanted, said[: said.index("{")]
        for name, entry in found.items():
            assert "/installed/" in entry["doc"]["filename"], f"{name} was not taken from the installed copy"
            assert entry["examples"] or kind == "callback", f"{name} has no examples"


def test_roles_are_documented_there(used: Callable[..., str]) -> None:
    roles = sorted(path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir())
    assert roles
    for role in roles:
        said = used("ansible-doc", "--json", "-t", "role", f"{NAME}.{role}")
        entry_points = json.loads(said[said.index("{") :])[f"{NAME}.{role}"]["entry_points"]
        assert entry_points["main"]["short_description"], role
        assert entry_points["main"]["description"], role


def test_playbooks_are_found_by_name(used: Callable[..., str]) -> None:
    # A file name with a dash has no such name; those only import one of these.
    playbooks = [path.stem for path in (CHECKOUT / "playbooks").glob("*.yml") if "-" not in path.stem]
    assert "build_image" in playbooks
    for name in playbooks:
        used("ansible-playbook", f"{NAME}.{name}", "--syntax-check")


def test_collections_that_are_used_are_declared() -> None:
    galaxy = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text(encoding="utf-8"))
    declared = {NAME, "ansible.builtin", *galaxy["dependencies"]}
    used_name = re.compile(
        r"^\s*(?:- )?(?:ansible_)?(?:(?:connection|become_method): )?([a-z][a-z_]*\.[a-z_]+)\.[a-z_]+\b:?", re.M
    )
    tasks = [
        *CHECKOUT.glob("playbooks/*.yml"),
        *CHECKOUT.glob("roles/*/tasks/**/*.yml"),
        *CHECKOUT.glob("roles/*/handlers/*.yml"),
    ]
    for path in sorted(tasks):
        strangers = set(used_name.findall(path.read_text(encoding="utf-8"))) - declared
        assert not strangers, f"{path.relative_to(CHECKOUT)} uses {strangers}: declare them in galaxy.yml"
