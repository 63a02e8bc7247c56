# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the contract of the clean-up, which is a file of the collection, and hand its rules to the module."""

from __future__ import annotations

import typing as t
from pathlib import Path

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

CONTRACT = Path(__file__).resolve().parents[2] / "roles/cleanup/files/contract.yml"


class ActionModule(ActionBase):
    """Fill in `rules`, and in `choices` what was not chosen."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return what the module returns."""
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if "rules" not in arguments:
            contract = self._contract(arguments.pop("contract", None))
            arguments["rules"] = contract["rules"]
            arguments["choices"] = self._choices(contract.get("choices", {}), arguments.get("choices") or {})
        module = {"module_name": "goldsmith.images.image_hygiene", "module_args": arguments, "task_vars": task_vars}
        return {**result, **self._execute_module(**module)}

    def _contract(self, path: str | None) -> dict[str, t.Any]:
        file = Path(self._find_needle("files", path)) if path else CONTRACT
        try:
            contract = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise AnsibleActionFail(f"{file}: the contract cannot be read: {error}") from error
        if not isinstance(contract, dict) or not isinstance(contract.get("rules"), list):
            raise AnsibleActionFail(f"{file}: a contract is a mapping with a list 'rules'")
        return contract

    @staticmethod
    def _choices(known: dict[str, list[str]], made: dict[str, t.Any]) -> dict[str, str]:
        for name, value in made.items():
            if str(value) not in known.get(name, []):
                wanted = f"one of {', '.join(known[name])}" if name in known else f"not a choice: {', '.join(known)}"
                raise AnsibleActionFail(f"choices: {name}: {value} is {'not ' if name in known else ''}{wanted}")
        return {**{name: values[0] for name, values in known.items()}, **made}
