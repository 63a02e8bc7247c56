# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""What the console of a machine says about its boot: faults that are known, with their lines and what to look at."""

from __future__ import annotations

import dataclasses
import re
import typing as t

#: Lines that are kept of each fault; a machine in a loop repeats its fault for ever.
LINES = 5


@dataclasses.dataclass(frozen=True)
class Fault:
    """A known fault of a boot."""

    name: str
    pattern: str
    hint: str
    #: fail: this machine is broken. warn: something of it is.
    level: str = "fail"


FAULTS = (
    Fault(
        "kernel_panic",
        r"Kernel panic - not syncing",
        "Boot the image in a local machine and read the lines before the panic.",
    ),
    Fault(
        "root_not_found",
        r"VFS: (?:Cannot open|Unable to mount) root|ALERT! +\S+ does not exist|Gave up waiting for (?:root|suspend)",
        "The kernel finds no root file system: compare root= with the disk, and look for the NVMe "
        "and ENA drivers in the initramfs.",
    ),
    Fault(
        "boot_loader",
        r"grub rescue>|error: no such (?:device|partition)|No bootable device",
        "Compare the boot mode of the image (legacy-bios or uefi) with what is on its disk.",
    ),
    Fault(
        "emergency_mode",
        r"You are in emergency mode|Entering emergency mode",
        "A mount of /etc/fstab failed, or a file system needs a check.",
    ),
    Fault(
        "shell_syntax",
        r"redirection unexpected|Syntax error: |(?:source|\[\[|pushd|shopt): not found|Bad substitution|"
        r"Illegal option -o pipefail",
        "A script of bash ran under /bin/sh, which stopped half way: begin it with #!/bin/bash; cloud_init_validate "
        "finds the line in the user-data.",
    ),
    Fault(
        "cloud_init",
        r"cloud-init\S*: .*(?:ERROR|CRITICAL)|\bFailed to start cloud-(?:init|config|final)|failed run of \S+ module|"
        r"Failed running .*/(?:runcmd|part-\d+)|\[WARNING\]: .*cloud-init.*Failed",
        "Run 'cloud-init status --long' in the machine and read /var/log/cloud-init-output.log.",
    ),
    Fault(
        "network_never_up",
        r"No DHCPOFFERS received|Failed to start systemd-networkd-wait-online|Timed? ?out waiting for network|"
        r"No instance datasource found|Access the CML UI from https:///",
        "Look for a configuration that pins the name or the MAC address of the build machine's interface.",
    ),
    Fault("disk_full", r"No space left on device", "The root volume is too small, or its file system did not grow."),
    Fault(
        "file_system",
        r"EXT4-fs error|XFS \(\S+\): (?:Corruption|metadata I/O)|I/O error, dev ",
        "The file system or its volume is damaged: compare the digest of the image that was imported.",
    ),
    Fault(
        "out_of_memory",
        r"Out of memory: Killed process|invoked oom-killer",
        "Take an instance type with more memory.",
        "warn",
    ),
    Fault(
        "unit_failed",
        r"\[ *FAILED *\] Failed to (?:start|mount|listen)|Failed with result '",
        "Run 'systemctl --failed' in the machine.",
        "warn",
    ),
)

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault that the console shows."""

    fault: Fault
    #: The first lines that show it, without escape sequences.
    lines: tuple[str, ...]
    #: How many lines show it.
    count: int


def plain_lines(console: str) -> list[str]:
    """The lines of a serial console, without colours and control characters."""
    return [_ESCAPES.sub("", line).rstrip() for line in re.split(r"\r*\n", console)]


def scan(console: str, faults: t.Sequence[Fault] = FAULTS) -> list[Finding]:
    """The faults that a console shows, in the order of `faults`."""
    lines = plain_lines(console)
    found = []
    for fault in faults:
        matching = [line for line in lines if re.search(fault.pattern, line)]
        if matching:
            found.append(Finding(fault, tuple(matching[:LINES]), len(matching)))
    return found
