# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from pathlib import Path

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.collection_loader._collection_finder import _get_collection_role_path
from ansible_collections.goldsmith.images.plugins.module_utils._image_definition import (
    BUILDERS,
    DefinitionError,
    builders_of,
    load_definition,
    output_name,
)

COLLECTION = Path(__file__).resolve().parents[2]
# What makes an image is no part of one.
BUILD_ROLES = {"base_disk", "packer", "verify_image", "cleanup"}


def find_definition(image: str, folders: list[Path]) -> Path:
    """Return the path of the definition *image*; DefinitionError lists the known ones."""
    if "/" in image or image.endswith((".yml", ".yaml")):
        path = Path(image).expanduser()
        if path.is_file():
            return path
        raise DefinitionError(f"There is no image definition {path.absolute()}.")
    for folder in folders:
        if (folder / f"{image}.yml").is_file():
            return folder / f"{image}.yml"
    known = {path.stem for folder in folders for path in folder.glob("*.yml")} - {"defaults"}
    raise DefinitionError(
        f"There is no image definition '{image}'. Known images: {', '.join(sorted(known))}. "
        "A definition of your own is given as a path: -e image=./my_image.yml"
    )


def read_yaml(path: Path) -> t.Any:
    """Return the content of *path*; DefinitionError says where it is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise DefinitionError(f"{path} cannot be read: {exc}") from exc


def role_folder(role: str) -> Path | None:
    """Return the folder of a role of this or, with a dot in its name, of another collection."""
    if "." not in role:
        return COLLECTION / "roles" / role
    namespace, collection, name = role.split(".", 2)
    found = _get_collection_role_path(name, [f"{namespace}.{collection}"])
    return Path(found[1]) if found else None


def running_system_roles(roles: list[str]) -> dict[str, str]:
    """Return the roles that say in meta/image_build.yml that they cannot work on a root tree, and why."""
    found = {}
    for role in roles:
        folder = role_folder(role)
        declared = folder / "meta" / "image_build.yml" if folder else None
        if declared and declared.is_file():
            content = read_yaml(declared) or {}
            if content.get("requires_running_system"):
                found[role] = str(content.get("reason", "it says so"))
    return found


class ActionModule(ActionBase):
    """Reads the definition on the controller."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the definition, or fail with all that is wrong in it."""
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            argument_spec={
                "image": {"type": "str", "required": True},
                "folders": {"type": "list", "elements": "path", "default": []},
                "builder": {"type": "str", "choices": BUILDERS},
                "amazon_ebs": {"type": "dict", "default": {}},
            }
        )
        own = COLLECTION / "playbooks" / "images"
        try:
            path = find_definition(arguments["image"], [*map(Path, arguments["folders"]), own])
            data, defaults = read_yaml(path), read_yaml(own / "defaults.yml")
            # A mistake in the definition itself is reported by its own schema.
            if isinstance(data, dict) and isinstance(data.get("amazon_ebs", {}), dict) and arguments["amazon_ebs"]:
                data["amazon_ebs"] = {**data.get("amazon_ebs", {}), **arguments["amazon_ebs"]}
            definition = load_definition(
                data,
                defaults,
                source=str(path),
                known_roles=sorted(p.name for p in (COLLECTION / "roles").iterdir() if p.name not in BUILD_ROLES),
                known_checks=sorted(
                    p.stem.removeprefix("test_")
                    for p in (COLLECTION / "roles/verify_image/files/checks").glob("test_*.py")
                ),
                builder=arguments["builder"],
            )
            tied = running_system_roles(definition["roles"])
        except DefinitionError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        return {
            "changed": False,
            "definition": definition,
            "output_name": output_name(definition, builders_of({**defaults, **data})),
            "path": str(path),
            "running_system_roles": tied,
        }
