# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_console import FAULTS, LINES, scan

HEALTHY = """\
[    0.000000] Linux version 6.12.0-cloud-amd64\r
[\x1b[0;32m  OK  \x1b[0m] Started ssh.service - OpenBSD Secure Shell server.\r
cloud-init[512]: Cloud-init v. 25.1.4 running 'modules:final' at Fri, 27 Nov 2026 01:00:00 +0000. Up 20.1 seconds.\r
cloud-init[512]: Cloud-init v. 25.1.4 finished at Fri, 27 Nov 2026 01:00:01 +0000. Datasource DataSourceEc2Local.\r
node login: \r
"""

# As machines print them; a new fault wants a line here.
SEEN = {
    "kernel_panic": "[    1.204] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    "root_not_found": "ALERT!  PARTUUID=4f68bce3 does not exist.  Dropping to a shell!",
    "boot_loader": "error: no such device: 1b2c3d4e.\r\ngrub rescue> ",
    "emergency_mode": "You are in emergency mode. After logging in, type \"journalctl -xb\" to view",
    "shell_syntax": "/var/lib/cloud/instance/scripts/runcmd: 3: Syntax error: redirection unexpected",
    "cloud_init": "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start cloud-final.service - Cloud-init: Final Stage.",
    "network_never_up": "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start systemd-networkd-wait-online.service.",
    "disk_full": "tar: ./usr/lib/x: Cannot write: No space left on device",
    "file_system": "[   12.1] EXT4-fs error (device nvme0n1p1): ext4_lookup:1858: inode #2: comm systemd",
    "out_of_memory": "[  100.1] Out of memory: Killed process 812 (java) total-vm:4194304kB",
    "unit_failed": "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start nginx.service - A high performance web server.",
}  # fmt: skip


def test_a_healthy_boot_has_no_fault():
    assert scan(HEALTHY) == []
    assert scan("") == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_found_and_its_line_is_readable(fault):
    found = {finding.fault.name: finding for finding in scan(f"{HEALTHY}{SEEN[fault.name]}\r\n{HEALTHY}")}
    assert fault.name in found
    assert all(line.isprintable() and line in SEEN[fault.name].replace("\x1b[0;1;31m", "").replace("\x1b[0m", "")
               for line in found[fault.name].lines)  # fmt: skip


def test_a_network_that_was_only_late_is_no_fault():
    late = "url_helper.py[WARNING]: Calling 'http://169.254.169.254/' failed [0/120s]: [Network is unreachable]\r\n"
    assert scan(late + HEALTHY) == []


def test_a_fault_in_a_loop_is_counted_but_not_repeated():
    [finding] = scan("EXT4-fs error (device sda)\n" * 1000)
    assert (finding.count, len(finding.lines)) == (1000, LINES)
