# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.goldsmith.images.plugins.filter.cml_check_rows import cml_check_rows

RESULT: dict[str, Any] = {
    "state": "refused",
    "level": None,
    "problems": ["level ready is not reached (refused): cml port 443: Connection refused"],
    "certificate": None,
    "never_ready_reason": None,
    "ports": [],
}
CERTIFICATE = {
    "subject": "commonName=cml",
    "not_after": "2036-01-01T00:00:00Z",
    "fingerprint": "00" * 32,
    "verified": True,
    "problems": [],
    "days_left": 300,
}


def test_nothing_reached():
    rows = cml_check_rows(RESULT, "web")
    assert [(row["check"], row["result"]) for row in rows] == [("tcp", "fail"), ("web", "skip")]
    assert "Connection refused" in rows[0]["detail"]


def test_the_instance_comes_first():
    checks = [
        {"name": "ssm", "target": "", "status": "pass", "detail": "Online"},
        {"name": "console", "target": "shell_syntax", "status": "fail", "detail": "redirection unexpected"},
    ]
    rows = cml_check_rows(RESULT, "tcp", {"checks": checks})
    assert [(row["check"], row["result"]) for row in rows] == [
        ("ssm", "pass"),
        ("console shell_syntax", "fail"),
        ("tcp", "fail"),
    ]
    assert cml_check_rows(RESULT, "tcp", {"skipped": True}) == cml_check_rows(RESULT, "tcp")


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, "pass"),
        ({"days_left": 5}, "warn"),
        ({"days_left": None}, "pass"),
        ({"problems": ["expired on 2026-01-01"]}, "warn"),  # pinned, so it is good all the same
        ({"verified": False}, "warn"),
        ({"verified": False, "problems": ["self-signed"]}, "fail"),
    ],
)
def test_certificate(changes: dict[str, Any], result: str):
    rows = cml_check_rows({**RESULT, "level": "tcp", "certificate": {**CERTIFICATE, **changes}}, "tcp")
    assert [(row["check"], row["result"]) for row in rows] == [("tcp", "pass"), ("certificate", result)]


@pytest.mark.parametrize(("result", "level"), [({}, "tcp"), (RESULT, "all")])
def test_what_is_no_result(result: dict[str, Any], level: str):
    with pytest.raises(AnsibleFilterError, match="needs a result of cml_gui_check"):
        cml_check_rows(result, level)
