# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After settings that would have locked everybody out: everybody gets in as before."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host


def test_sshd_has_its_former_settings(host: Host) -> None:
    assert not host.file("/etc/ssh/sshd_config.d/00-goldsmith.conf").exists
    assert host.service("ssh").is_running


def test_the_firewall_is_off_also_at_the_next_boot(host: Host) -> None:
    assert host.run("nft list table inet goldsmith").rc != 0
    assert host.run("systemctl is-enabled goldsmith-firewall.service").rc != 0
    assert not host.file("/etc/nftables.d/goldsmith.nft").exists


def test_a_new_login_works() -> None:
    options = ["-F", os.environ["GOLDSMITH_SSH_CONFIG"], "-o", "ControlMaster=no", "-o", "ControlPath=none"]
    command = ["ssh", *options, "vm", "echo in"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)
    assert done.stdout.strip() == "in", done.stderr
