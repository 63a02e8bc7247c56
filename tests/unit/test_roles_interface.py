# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's interface is told three times (defaults, argument specs, README); here they are held together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (CHECKOUT / "roles").glob("*") if path.is_dir())

every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


class Loader(yaml.SafeLoader):
    """Plain YAML, with Ansible's tags read as the string they stand before."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) if path.is_file() else None


def defaults_of(role: Path) -> dict[str, Any]:
    return load(role / "defaults" / "main.yml") or {}


def options_of(role: Path) -> dict[str, Any]:
    specs = load(role / "meta" / "argument_specs.yml")
    assert specs, f"roles/{role.name}/meta/argument_specs.yml is missing or empty"
    options: dict[str, Any] = {}
    for entry_point in specs["argument_specs"].values():
        options.update(entry_point.get("options") or {})
    return options


def test_there_are_roles() -> None:
    assert ROLES


@every_role
def test_every_variable_bears_the_name_of_its_role(role: Path) -> None:
    strangers = [name for name in {**defaults_of(role), **options_of(role)} if not name.startswith(f"{role.name}_")]
    assert not strangers
    # Ansible reads vars/main.yml, or all of vars/main/.
    files = [role / "vars" / "main.yml", *(role / "vars" / "main").glob("*.yml")]
    constants = [name for path in files for name in load(path) or {}]
    assert not [name for name in constants if not name.startswith(f"__{role.name}_")]
    assert len(constants) == len(set(constants))


@every_role
def test_specified_defaults_are_the_defaults(role: Path) -> None:
    specified = {name: option["default"] for name, option in options_of(role).items() if "default" in option}
    # A computed default is documentation in the specification: how it reads is free, that it is there is not.
    actual = defaults_of(role)
    computed = {name for name, value in actual.items() if isinstance(value, str) and "{{" in value}
    assert {name: value for name, value in specified.items() if name not in computed} == {
        name: value for name, value in actual.items() if name not in computed
    }
    assert computed <= set(options_of(role))


@every_role
def test_an_option_without_default_is_required_or_told_in_the_defaults_file(role: Path) -> None:
    path = role / "defaults" / "main.yml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name, option in options_of(role).items():
        if "default" in option or name in defaults_of(role):
            assert not option.get("required"), f"{name} is required and has a default"
        else:
            assert option.get("required") or re.search(rf"^# *{name}:", text, re.MULTILINE), (
                f"{name} has no default: make it required, or show it commented out in {path.relative_to(CHECKOUT)}"
            )


@every_role
def test_every_option_is_described(role: Path) -> None:
    def check(options: dict[str, Any], where: str) -> None:
        for name, option in options.items():
            assert option.get("description"), f"{where}{name} has no description"
            assert option.get("type"), f"{where}{name} has no type"
            if option["type"] == "list":
                assert option.get("elements"), f"{where}{name} is a list without `elements`"
            check(option.get("options") or {}, f"{where}{name}.")

    check(options_of(role), "")


@every_role
def test_the_readme_shows_the_specification(role: Path) -> None:
    script = CHECKOUT / "scripts" / "role_readme.py"
    done = subprocess.run([sys.executable, script, "--check", role.name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


INTO_AN_IMAGE = [role for role in ROLES if role.name not in ("base_disk", "packer", "publish_ami", "verify_image")]


@pytest.mark.parametrize("role", INTO_AN_IMAGE, ids=lambda role: role.name)
def test_no_fact_about_the_build_host_can_get_into_an_image(role: Path) -> None:
    # Over the chroot connection the kernel, the devices and the addresses in the facts are those of the build host.
    text = "".join(path.read_text(encoding="utf-8") for path in role.rglob("*") if path.suffix in (".yml", ".j2"))
    used = set(re.findall(r"ansible_facts(?:\.|\[')(\w+)", text))
    assert used <= {"distribution", "distribution_major_version", "distribution_version", "is_chroot"}
