# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module's RETURN block promises, held against what the module returns."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MODULES = Path(__file__).parents[2] / "plugins" / "modules"
# Ansible's own, which no module documents.
COMMON = {"changed", "failed", "msg", "invocation", "diff", "warnings", "deprecations", "exception", "action"}


def block(module: str, name: str) -> Any:
    """A block of YAML in a module's file: DOCUMENTATION, EXAMPLES or RETURN."""
    for node in ast.parse((MODULES / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return yaml.safe_load(ast.literal_eval(node.value))
    raise LookupError(f"{module} has no {name}")


def differences(module: str, result: Mapping[str, Any]) -> list[str]:
    """Keys of a result that are not documented, and documented ones that it should have but has not."""
    returned = {key: value for key, value in result.items() if key not in COMMON and not key.startswith("_ansible_")}
    return _compare(block(module, "RETURN"), returned, "")


def _compare(documented: Mapping[str, Any], value: Any, where: str) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in _compare(documented, item, where)]
    if not isinstance(value, Mapping):
        return []
    always = {
        key for key, about in documented.items() if key not in COMMON and about.get("returned", "always") == "always"
    }
    found = [f"{where}{key} is not documented" for key in sorted(set(value) - set(documented))]
    found += [f"{where}{key} is documented, but not returned" for key in sorted(always - set(value))]
    for key, about in documented.items():
        if "contains" in about and key in value:
            found += _compare(about["contains"], value[key], f"{where}{key}.")
    return found
