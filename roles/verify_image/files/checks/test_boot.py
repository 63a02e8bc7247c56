# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image boots, and neither cloud-init nor systemd has anything to complain about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cloud_init import STATUS, complaints

if TYPE_CHECKING:
    from testinfra.host import Host


@pytest.mark.reboot
def test_cloud_init_ended_without_errors(host: Host) -> None:
    assert complaints(host.run(STATUS).stdout) == []


@pytest.mark.reboot
def test_no_unit_failed(host: Host) -> None:
    failed = host.check_output("systemctl list-units --failed --plain --no-legend --no-pager")
    assert not failed, failed
