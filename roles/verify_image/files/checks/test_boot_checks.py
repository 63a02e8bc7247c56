# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of this boot ran, told everybody, and their verdict is the unit's state."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from gather import gather, properties

if TYPE_CHECKING:
    from testinfra.host import Host

UNIT = "goldsmith-boot-checks.service"
GATHER = r"""
section unit; systemctl show --property=ActiveState,SubState,Result,UnitFileState,ExecMainStatus "$1"
section log; cat "$(python3 -c 'import json; print(json.load(open("/etc/goldsmith-images/boot_checks.json"))["log"])')"
section journal; journalctl --boot --unit="$1" --output=cat --no-pager
section console; cat /sys/class/tty/console/active
section boot; systemctl is-active multi-user.target
section cycles; journalctl --boot --no-pager --output=cat _PID=1 --grep='ordering cycle' || :
"""
DEADLINE = 900


@pytest.fixture(scope="module")
def checks(host: Host) -> dict[str, str]:
    """What the machine says of its checks, once they have ended."""
    end = time.monotonic() + DEADLINE
    while True:
        found = gather(host, GATHER, UNIT)
        # Type=exec: "running" is a check that still waits, for cloud-init above all.
        if properties(found["unit"])["SubState"] in ("exited", "failed", "dead") or time.monotonic() > end:
            return found
        time.sleep(2)


@pytest.fixture(scope="module")
def report(checks: dict[str, str]) -> dict[str, Any]:
    """The last line of the log."""
    found: dict[str, Any] = json.loads(checks["log"].splitlines()[-1])
    return found


@pytest.mark.reboot
def test_they_run_at_every_boot_and_end(checks: dict[str, str]) -> None:
    unit = properties(checks["unit"])
    assert unit["UnitFileState"] == "enabled"
    # Either verdict is an end; a unit that was killed has no verdict.
    assert (unit["SubState"], unit["Result"]) in (("exited", "success"), ("failed", "exit-code")), checks["journal"]
    assert unit["ExecMainStatus"] in ("0", "1"), checks["journal"]


@pytest.mark.reboot
def test_the_unit_s_state_is_the_verdict(checks: dict[str, str]) -> None:
    state = properties(checks["unit"])["ActiveState"]
    assert state == ("failed" if "boot checks: FAILED" in checks["log"] else "active")


@pytest.mark.reboot
def test_text_and_json_say_the_same(checks: dict[str, str], report: dict[str, Any]) -> None:
    assert report["checks"]
    for entry in report["checks"]:
        assert f"{entry['status'].upper():4} {entry['name']} {entry['target']}" in checks["log"]
        assert entry["status"] == "pass" or entry["hint"], entry
    assert sum(report["summary"].values()) == len(report["checks"])


@pytest.mark.reboot
def test_the_journal_has_them_too(checks: dict[str, str]) -> None:
    assert checks["log"].splitlines()[-1] in checks["journal"]


@pytest.mark.reboot
def test_the_serial_line_is_among_those_who_are_told(checks: dict[str, str]) -> None:
    assert "ttyS0" in checks["console"].split()


@pytest.mark.reboot
def test_the_boot_did_not_wait_for_them(checks: dict[str, str]) -> None:
    assert checks["boot"] == "active"
    assert checks["cycles"] == ""


@pytest.mark.reboot
def test_what_was_asked_for_was_looked_at(report: dict[str, Any], expect: dict[str, Any]) -> None:
    asked = set(expect.get("boot_checks", []))
    assert asked <= {entry["name"] for entry in report["checks"]}


@pytest.mark.reboot
def test_the_network_of_the_machine_works(report: dict[str, Any]) -> None:
    # What is asked of the outside is the definition's own affair; these two make the machine reachable.
    bad = [
        entry
        for entry in report["checks"]
        if entry["name"] in ("interface", "default_route") and entry["status"] != "pass"
    ]
    assert bad == []
