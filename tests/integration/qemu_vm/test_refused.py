# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is refused, in check mode too, and nothing is begun."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON, HANG


@pytest.mark.parametrize("check", [True, False])
def test_host_without_memory_is_refused(vm, image, check: bool) -> None:
    refused = vm(state="started", image=image(HANG), memory=99_999_999, _check=check, _ok=False)
    assert "too little memory: 100000255 MiB needed" in refused["msg"]
    assert "MiB available" in refused["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_host_without_room_is_refused(vm, image, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        for check in (True, False):
            refused = vm(state="started", image=image(HANG), runtime_dir=str(small / "vm"), _check=check, _ok=False)
            assert "64 MiB needed, 20 MiB free" in refused["msg"]
            assert not (small / "vm").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"state": "started"}, "image or warm_from is needed"),
        ({"state": "started", "image": "/nonexistent.qcow2"}, "No such file"),
        ({"state": "snapshot", "snapshot": "x"}, "no VM in this directory"),
        ({"state": "snapshot"}, "snapshot"),
        ({"state": "started", "warm_from": "/nonexistent"}, "there is no VM in /nonexistent"),
        ({"state": "started", "runtime_dir": "/dev/null/vm", "image": "/x"}, "/dev/null is not a directory"),
        ({"state": "started", "cpus": 0}, "cpus must be at least 1"),
        ({"state": "started", "ssh_port": 65536}, "65536 is not a port"),
        ({"state": "started", "port_forwards": [{"guest_port": 22}]}, "port 22 is forwarded twice"),
        ({"state": "started", "disks": [{"size": "big"}]}, "not 'big'"),
        ({"state": "started", "disks": [{}]}, "one of the following is required: size, image"),
        ({"state": "started", "disks": [{"size": "1M"}] * 10}, "9 further disks"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_what_cannot_work_fails_in_check_mode_too(vm, tmp_path: Path, params, message: str, check: bool) -> None:
    directory = tmp_path / "refused"
    failed = vm(**{"runtime_dir": str(directory), **params}, _check=check, _ok=False)
    assert message in failed["msg"]
    assert not failed.get("changed")
    assert not directory.exists()


def test_image_that_changed_under_its_overlay_is_refused(vm, image) -> None:
    disk = image(HANG)
    vm(state="started", image=disk)
    vm(state="stopped", stop_timeout=0)
    Path(disk).write_bytes(BUTTON.ljust(1024 * 1024, b"\0"))
    assert "has changed since the overlay" in vm(state="started", _ok=False)["msg"]


@pytest.mark.parametrize("check", [True, False])
def test_damaged_disk_says_what_qemu_says(vm, tmp_path: Path, check: bool) -> None:
    disk = tmp_path / "broken.qcow2"
    disk.write_bytes(b"QFI\xfb" + b"\xff" * 4096)
    failed = vm(state="started", image=str(disk), overlay=False, _ok=False, _check=check)
    assert "Unsupported qcow2 version" in failed["msg"]
    assert vm(state="stopped")["changed"] is False


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"machine": "nonsense"}, "unsupported machine type"),
        ({"cpu_model": "nonsense"}, "unable to find CPU model"),
        ({"machine": "isapc", "cpus": 9}, "Invalid SMP CPUs 9"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_machine_that_qemu_does_not_make_fails_in_check_mode_too(vm, image, params, message: str, check: bool) -> None:
    failed = vm(state="started", image=image(HANG), _ok=False, _check=check, **params)
    assert message in failed["msg"]
