# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All EXAMPLES of the collection are plays or tasks that Ansible takes, with options that the module has.

tests/integration/test_examples.py runs those of the modules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (CHECKOUT / "plugins/modules").glob("*.py"))
FILTERS = sorted(path.stem for path in (CHECKOUT / "plugins/filter").glob("*.py"))
PREFIX = "goldsmith.images."


@pytest.fixture(scope="session")
def documentation(run: Callable[..., str], source_copy: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, names in (("module", NAMES), ("filter", FILTERS)):
        command = ["ansible-doc", "--json", "-t", kind, *(PREFIX + name for name in names)]
        found |= json.loads(run(*command, ANSIBLE_COLLECTIONS_PATH=str(source_copy.parents[2])))
    return found


def tasks_of(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All tasks in plays and blocks."""
    for item in items:
        lists = [item[key] for key in ("tasks", "pre_tasks", "post_tasks", "handlers") if key in item]
        lists += [item[key] for key in ("block", "rescue", "always") if key in item]
        if not lists:
            yield item
        for inner in lists:
            yield from tasks_of(inner)


def test_every_example_is_valid(
    run: Callable[..., str], source_copy: Path, documentation: dict[str, Any], tmp_path: Path
) -> None:
    playbooks = []
    for name in NAMES + FILTERS:
        items = yaml.safe_load(documentation[PREFIX + name]["examples"])
        assert isinstance(items, list) and items, f"{name} has no examples"
        if not any("hosts" in item for item in items):
            items = [{"name": "Examples", "hosts": "localhost", "gather_facts": False, "tasks": items}]
        uses = json.dumps if name in FILTERS else list
        assert any(PREFIX + name in uses(task) for task in tasks_of(items)), f"the examples of {name} do not use it"
        playbooks.append(tmp_path / f"{name}.yml")
        playbooks[-1].write_text(yaml.safe_dump(items))
    command = ["ansible-playbook", "--syntax-check", "-i", "localhost,", *playbooks]
    run(*command, cwd=tmp_path, ANSIBLE_COLLECTIONS_PATH=str(source_copy.parents[2]))


@pytest.mark.parametrize("name", NAMES)
def test_examples_use_options_that_exist(documentation: dict[str, Any], name: str) -> None:
    unknown = []
    for task in tasks_of(yaml.safe_load(documentation[PREFIX + name]["examples"])):
        for key, value in task.items():
            if key in documentation and isinstance(value, dict):
                options = documentation[key]["doc"].get("options", {})
                names = {*options, *(alias for option in options.values() for alias in option.get("aliases", []))}
                unknown += [f"{task.get('name')}: {key} has no option {option}" for option in sorted({*value} - names)]
    assert not unknown
