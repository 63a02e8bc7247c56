# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What README and docs say is there, is there, and what is there is in the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.goldsmith.images.plugins.module_utils._image_definition import SCHEMA, load_definition

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("folder", ["plugins/modules", "roles"])
def test_the_readme_names_every_module_and_role(folder: str):
    names = [path.stem for path in (CHECKOUT / folder).iterdir() if not path.name.startswith(("_", "."))]
    assert not [name for name in names if f"`{name}`" not in README]


def test_the_example_definition_is_valid():
    [example] = re.findall(r"```yaml\n(# my_node\.yml\n.*?)```", README, re.DOTALL)
    defaults = yaml.safe_load((CHECKOUT / "playbooks/images/defaults.yml").read_text(encoding="utf-8"))
    roles = [path.name for path in (CHECKOUT / "roles").iterdir()]
    assert (
        load_definition(yaml.safe_load(example), defaults, source="README.md", known_roles=roles)["name"] == "my_node"
    )


def test_the_example_of_an_ami_is_valid():
    page = (CHECKOUT / "docs/amazon_ebs.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(# my_host\.yml\n.*?)```", page, re.DOTALL)
    defaults = yaml.safe_load((CHECKOUT / "playbooks/images/defaults.yml").read_text(encoding="utf-8"))
    roles = [path.name for path in (CHECKOUT / "roles").iterdir()]
    definition = load_definition(yaml.safe_load(example), defaults, source="amazon_ebs.md", known_roles=roles)
    assert definition["builder"] == "amazon-ebs"
    settings = SCHEMA["properties"]["amazon_ebs"]["properties"]
    keys = [key for key in settings if key != "source_ami"] + ["source_ami.owner", "source_ami.name"]
    assert not [key for key in keys if f"`{key}`" not in page]


def test_every_key_of_a_definition_is_documented():
    page = (CHECKOUT / "docs/image_definition.md").read_text(encoding="utf-8")
    base = [f"base.{key}" for key in SCHEMA["properties"]["base"]["properties"]]
    keys = [key for key in SCHEMA["properties"] if key not in ("base", "budgets")] + base + ["budgets.size"]
    assert not [key for key in keys if f"`{key}`" not in page]


def test_the_commands_of_the_readme_are_targets_of_make():
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]+)", README)) - {"it", "an"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
