# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cml_check_rows
short_description: Turn the result of cml_gui_check into the rows of a table
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - One row for each level, for the certificate, the version and each port, with what was found.
  - Before them, one row for each check of the instance that the controller runs on, if that was looked at.
options:
  _input:
    description: What M(goldsmith.images.cml_gui_check) returned.
    type: dict
    required: true
  level:
    description: The level that was asked for.
    type: str
    required: true
  instance:
    description: What M(goldsmith.images.ec2_launch_check) returned. Without checks it gives no rows.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show the rows
  ansible.builtin.debug:
    msg: "{{ result | goldsmith.images.cml_check_rows('ready') }}"
"""

RETURN = r"""
_value:
  description:
    - Rows with C(check), C(result) and C(detail). The result is V(pass), V(warn), V(fail), or V(skip) for what was not
      reached.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import BROWSER, LEVELS, way_to

Row = dict[str, str]
#: A certificate that ends sooner is worth a warning.
DAYS = 14


def cml_check_rows(
    result: t.Mapping[str, t.Any], level: str, instance: t.Mapping[str, t.Any] | None = None
) -> list[Row]:
    """Return the rows of a table."""
    if level not in {*LEVELS, *BROWSER} or "state" not in result:
        raise AnsibleFilterError(f"cml_check_rows: needs a result of cml_gui_check and one of {', '.join(LEVELS)}")
    way = way_to(level)
    reached = -1 if result["level"] is None else way.index(result["level"])
    rows = [
        _row(f"{check['name']} {check['target']}".rstrip(), check["status"], check["detail"])
        for check in (instance or {}).get("checks", [])
    ]
    for number, name in enumerate(way):
        if number <= reached:
            rows.append(_row(name, "pass", _found(name, result)))
        elif number == reached + 1:
            rows.append(_row(name, "fail", _reason(result)))
        else:
            rows.append(_row(name, "skip", f"{way[reached + 1]} comes first"))
        if name == "tcp" and result["certificate"]:
            rows.append(_certificate(result["certificate"]))
    for problem in result["problems"]:
        if problem.startswith("the version"):
            rows.append(_row("version", "fail", problem))
    for port in result["ports"]:
        bad = [problem for problem in result["problems"] if problem.startswith(f"port {port['port']} ")]
        detail = bad[0] if bad else ", ".join(filter(None, (port["service"], port["banner"])))
        rows.append(_row(f"port {port['port']}", "fail" if bad else "pass", detail))
    return rows


def _row(check: str, result: str, detail: str) -> Row:
    return {"check": check, "result": result, "detail": detail}


def _found(level: str, result: t.Mapping[str, t.Any]) -> str:
    if level == "web":
        return f"{result['page']['url']}: status {result['page']['status']}, {result['page']['title'] or 'no title'}"
    if level == "api":
        return f"{result['api']['url']}: version {result['version']}"
    return {
        "tcp": "accepts connections",
        "browser": "can be used to log in",
        "ready": "true",
        "auth": "accepted",
        "health": "healthy and licensed",
    }[level]


def _reason(result: t.Mapping[str, t.Any]) -> str:
    found = next((problem for problem in result["problems"] if problem.startswith("level ")), result["state"])
    reason = result["never_ready_reason"]
    return found + (f" (will not change: {reason})" if reason else "")


def _certificate(certificate: t.Mapping[str, t.Any]) -> Row:
    until = f"{certificate['subject']}, until {certificate['not_after']}, SHA-256 {certificate['fingerprint']}"
    problems = ", ".join(certificate["problems"])
    detail = f"{problems}: {until}" if problems else until
    if not certificate["verified"]:
        return _row("certificate", "fail" if problems else "warn", detail)
    soon = certificate["days_left"] is not None and certificate["days_left"] < DAYS
    return _row("certificate", "warn" if soon or problems else "pass", detail)


class FilterModule:
    """Offers the filter to Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters of this file."""
        return {"cml_check_rows": cml_check_rows}
