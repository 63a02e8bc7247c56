# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a guest: for SSH, for the end of cloud-init, and in vain."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.tests.support.boot_sector import HANG, boot_sector


@pytest.mark.parametrize(
    ("sector", "timeout", "message"),
    [
        (
            boot_sector("[    1.0] Kernel panic - not syncing: no root\r\n"),
            60,
            "will not come up: [    1.0] Kernel panic",
        ),
        (boot_sector("BOOT\r\n", ticks=30), 60, "QEMU has ended while the guest was booting"),
        (HANG, 3, "no answer of an SSH server within 3 s"),
    ],
)
def test_guest_that_never_answers(vm, image, sector: bytes, timeout: int, message: str) -> None:
    start = time.monotonic()
    failed = vm(state="started", image=image(sector), wait_for="ssh", timeout=timeout, _ok=False)
    assert time.monotonic() - start < 25
    assert message in failed["msg"]
    assert failed["phase"] == "wait_for_ssh"
    assert "qemu-system-x86_64 -name" in failed["command_line"]
    assert "The last lines of the console" in failed["msg"]
    assert "qemu-system-x86_64 -name" in failed["msg"]
    assert any("BOOT" in line or "panic" in line for line in failed["console_tail"])
    assert failed["changed"] is True
    if "has ended" in message:
        assert failed["screenshot"] is None
    else:
        assert Path(failed["screenshot"]).read_bytes().startswith(b"\x89PNG\r\n")
        assert failed["screenshot"] in failed["msg"]


def test_end_of_cloud_init_is_read_from_the_console(vm, image) -> None:
    last = "Cloud-init v. 25.1.4 finished at Sat, 21 Nov 2026 19:41:22 +0000. Up 100.93 seconds"
    disk = image(boot_sector(f"[  100.9] cloud-init[4]: {last}\r\n"))
    first = vm(state="started", image=disk, wait_for="cloud_init", timeout=60)
    assert (first["cloud_init"], first["ssh_banner"]) == (last, None)
    assert vm(state="started", wait_for="cloud_init", timeout=1)["cloud_init"] == last
    vm(state="snapshot", snapshot="warm")
    for check in (True, False):
        restored = vm(state="started", snapshot="warm", wait_for="cloud_init", _ok=False, _check=check)
        assert "a restored VM does not boot" in restored["msg"]


def test_end_of_cloud_init_that_never_comes(vm, image) -> None:
    failed = vm(state="started", image=image(HANG), wait_for="cloud_init", timeout=2, _ok=False)
    assert "no end of cloud-init on the serial console within 2 s" in failed["msg"]
    assert (failed["phase"], failed["vm"]["state"]) == ("wait_for_cloud_init", "running")
    assert Path(failed["screenshot"]).is_file()
