# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image boots, and neither cloud-init nor systemd has anything to complain about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testinfra.host import Host


@pytest.mark.reboot
def test_cloud_init_ended_without_errors(host: Host) -> None:
    done = host.run("cloud-init status --format=json")
    status = json.loads(done.stdout)
    # Exit code 2, `degraded done`, is a success for cloud-init; here it is somebody's broken first boot.
    complaints = {level: lines for level, lines in status.get("recoverable_errors", {}).items() if lines}
    assert (done.rc, status["status"], status.get("errors", []), complaints) == (0, "done", [], {})


@pytest.mark.reboot
def test_no_unit_failed(host: Host) -> None:
    failed = host.check_output("systemctl list-units --failed --plain --no-legend --no-pager")
    assert not failed, failed
