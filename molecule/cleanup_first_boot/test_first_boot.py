# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine without cloud-init, cleaned so that its next boot is a first one for systemd: after that and another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host


def test_it_was_a_first_boot(host: Host) -> None:
    assert host.file("/var/lib/first-boot-seen").exists


def test_disabled_unit_is_still_disabled(host: Host) -> None:
    assert host.run("systemctl is-enabled apt-daily.timer").stdout.strip() == "disabled"


def test_the_machine_has_an_identity_of_its_own(host: Host) -> None:
    assert len(bytes.fromhex(host.file("/etc/machine-id").content_string.strip())) == 16
    assert host.run("ls /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_ecdsa_key").rc == 0
