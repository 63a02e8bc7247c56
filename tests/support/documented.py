# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module's documentation promises, held against what the module returns and what its examples do."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml

MODULES = Path(__file__).resolve().parents[2] / "plugins" / "modules"
# What Ansible itself adds or every module may return.
COMMON = {"action", "changed", "deprecations", "diff", "exception", "failed", "invocation", "msg", "warnings"}
# What Ansible adds where a module returns a path.
OF_A_PATH = {"gid", "group", "mode", "owner", "size", "state", "uid"}
TYPES: dict[str, type | tuple[type, ...]] = {
    "raw": object,
    "bool": bool,
    "dict": dict,
    "float": (int, float),
    "int": int,
    "list": list,
    "path": str,
    "str": str,
}


def section(module_name: str, name: str) -> Any:
    """DOCUMENTATION, EXAMPLES or RETURN of a module, parsed."""
    for statement in ast.parse((MODULES / f"{module_name}.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == [name]:
            return yaml.safe_load(ast.literal_eval(statement.value))
    raise AssertionError(f"{module_name} has no {name}")


def blocks(page: str) -> list[Any]:
    """The YAML blocks of a page in docs/, parsed."""
    text = (MODULES.parents[1] / "docs" / page).read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def check_returned(module_name: str, result: dict[str, Any]) -> None:
    """Every key that is documented for this outcome is there, has its type, and there are no others."""
    found = {key: value for key, value in result.items() if key not in COMMON and not key.startswith("_ansible_")}
    documented = section(module_name, "RETURN")
    if "path" in found:
        found = {key: value for key, value in found.items() if key in documented or key not in OF_A_PATH}
    problems = _differences(documented, found, failed=bool(result.get("failed")))
    assert not problems, problems


def _differences(documented: dict[str, Any], found: dict[str, Any], failed: bool, place: str = "") -> list[str]:
    problems = [f"{place}{key} is not documented" for key in found if key not in documented]
    for key, entry in documented.items():
        returned = entry.get("returned", "always")
        if key not in found:
            if returned.startswith("always") or (returned.startswith("success") and not failed):
                problems.append(f"{place}{key} is missing (returned: {returned})")
            continue
        value = found[key]
        if value is None:
            continue
        kind = entry["type"]
        if not isinstance(value, TYPES[kind]) or (kind != "bool" and isinstance(value, bool)):
            problems.append(f"{place}{key} is {value!r}, not of type {kind}")
        elif kind == "dict" and "contains" in entry:
            problems += _differences(entry["contains"], value, failed, f"{place}{key}.")
        elif kind == "list" and "contains" in entry:
            for number, item in enumerate(value):
                problems += _differences(entry["contains"], item, failed, f"{place}{key}[{number}].")
    return problems
