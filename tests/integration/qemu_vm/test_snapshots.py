# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saved states: restored, and as the template of other machines."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON
from ansible_collections.goldsmith.images.tests.support.processes import alive, wait_until


def test_snapshot_and_restore(vm, image, tmp_path: Path) -> None:
    disk = image(BUTTON)
    running = vm(state="started", image=disk)["vm"]
    console = Path(running["console_log"])
    wait_until(lambda: "BOOT\n." in console.read_text())

    assert vm(state="snapshot", snapshot="warm", _check=True)["changed"] is True
    assert vm(state="snapshot", snapshot="warm", keep_running=True)["vm"]["pid"] == running["pid"]
    saved = vm(state="snapshot", snapshot="warm")
    assert (saved["changed"], saved["vm"]["state"], saved["vm"]["snapshots"]) == (True, "stopped", ["warm"])
    assert not alive(running["pid"])
    assert vm(state="snapshot", snapshot="warm")["changed"] is False
    assert "memory of a running VM" in vm(state="snapshot", snapshot="cold", _ok=False)["msg"]

    console.write_text("")
    restored = vm(state="started", snapshot="warm")
    assert restored["vm"]["restored_snapshot"] == "warm"
    wait_until(lambda: "." in console.read_text())
    assert "BOOT" not in console.read_text(), "it booted instead of going on"
    assert vm(state="started", snapshot="warm")["changed"] is False
    vm(state="stopped", stop_timeout=30)

    # into another directory
    copy = vm(state="started", runtime_dir=str(tmp_path / "copy"), warm_from=running["runtime_dir"], snapshot="warm")
    assert copy["vm"]["restored_snapshot"] == "warm"
    wait_until(lambda: "." in Path(copy["vm"]["console_log"]).read_text())
    assert "BOOT" not in Path(copy["vm"]["console_log"]).read_text()

    # the disk alone, taken elsewhere by somebody else
    moved = tmp_path / "moved.qcow2"
    shutil.copy(Path(running["runtime_dir"]) / "overlay.qcow2", moved)
    elsewhere = {"runtime_dir": str(tmp_path / "elsewhere"), "image": str(moved), "overlay": False}
    third = vm(state="started", snapshot="warm", **elsewhere)
    wait_until(lambda: "." in Path(third["vm"]["console_log"]).read_text())

    # what cannot work
    unknown = vm(state="started", snapshot="nonsense", _ok=False)
    assert "no snapshot nonsense" in unknown["msg"]
    assert "['warm']" in unknown["msg"]
    smaller = vm(state="started", snapshot="warm", memory=64, _ok=False)
    assert "memory is 32, not 64" in smaller["msg"]
    busy = vm(state="started", runtime_dir=str(tmp_path / "busy"), warm_from=copy["vm"]["runtime_dir"], _ok=False)
    assert "is not stopped" in busy["msg"]
    assert not (tmp_path / "busy").exists()


@pytest.mark.slow_matrix  # Molecule begins so, each time
def test_template_is_where_others_begin(vm, image, tmp_path: Path) -> None:
    """Its memory is mapped, not copied: no VM that begins from it may change it, nor miss it when it has gone."""
    template = vm(state="started", image=image(BUTTON), template=True)["vm"]
    directory = Path(template["runtime_dir"])
    wait_until(lambda: "BOOT\n." in Path(template["console_log"]).read_text())
    assert "ends with its snapshot" in vm(state="snapshot", snapshot="warm", keep_running=True, _ok=False)["msg"]
    assert vm(state="snapshot", snapshot="warm")["vm"]["state"] == "stopped"
    assert vm(state="snapshot", snapshot="warm")["changed"] is False
    assert "not restored itself" in vm(state="started", snapshot="warm", _ok=False)["msg"]
    assert "template is True" in vm(state="started", template=False, _ok=False)["msg"]
    memory = (directory / "memory").read_bytes()
    assert len(memory) == 32 * 1024 * 1024

    def begin(name: str, **params: Any) -> dict[str, Any]:
        result = vm(state="started", runtime_dir=str(tmp_path / name), warm_from=str(directory), **params)
        return result.get("vm", result)

    def goes_on(machine: dict[str, Any]) -> None:
        console = Path(machine["console_log"])
        wait_until(lambda: "." in console.read_text())
        assert "BOOT" not in console.read_text(), "it booted instead of going on"

    clones = [begin(name, snapshot="warm") for name in ("one", "two")]
    for clone in clones:
        goes_on(clone)
        assert clone["restored_snapshot"] == "warm"
    assert (directory / "memory").read_bytes() == memory
    assert "no snapshot cold" in begin("three", snapshot="cold", _ok=False)["msg"]
    assert "memory is 32, not 64" in begin("three", snapshot="warm", memory=64, _ok=False)["msg"]

    # a clone is a VM like any other, with snapshots of its own
    one = {"runtime_dir": clones[0]["runtime_dir"]}
    assert vm(state="snapshot", snapshot="own", **one)["vm"]["snapshots"] == ["own"]
    Path(clones[0]["console_log"]).write_text("")
    goes_on(vm(state="started", snapshot="own", **one)["vm"])
    vm(state="stopped", stop_timeout=0, **one)
    Path(clones[0]["console_log"]).write_text("")
    again = vm(state="started", snapshot="warm", **one)
    assert again["reason"] == "it begins anew from its template"
    goes_on(again["vm"])
    vm(state="stopped", stop_timeout=0, **one)
    booted = vm(state="started", **one)["vm"]
    wait_until(lambda: "BOOT" in Path(booted["console_log"]).read_text())

    # a start of the template ends what it was, and nobody who began from it notices
    vm(state="started")
    assert "is not stopped" in begin("four", snapshot="warm", _ok=False)["msg"]
    vm(state="stopped", stop_timeout=0)
    assert "no snapshot warm" in begin("four", snapshot="warm", _ok=False)["msg"]
    vm(state="absent")
    assert not directory.exists()
    before = Path(clones[1]["console_log"]).read_text()
    wait_until(lambda: len(Path(clones[1]["console_log"]).read_text()) > len(before))


def test_template_that_is_incomplete_begins_nothing(vm, image, tmp_path: Path) -> None:
    template = vm(state="started", image=image(BUTTON), template=True)["vm"]
    directory = Path(template["runtime_dir"])
    vm(state="snapshot", snapshot="warm")
    clone = {"runtime_dir": str(tmp_path / "clone"), "warm_from": str(directory), "snapshot": "warm"}
    devices = (directory / "devices").read_bytes()
    (directory / "devices").write_bytes(devices[: len(devices) // 2])
    refused = vm(state="started", _ok=False, **clone)
    assert refused["phase"] == "start"
    (directory / "devices").write_bytes(devices)
    assert vm(state="started", **clone)["vm"]["restored_snapshot"] == "warm"
    vm(state="absent", runtime_dir=clone["runtime_dir"])
    (directory / "memory").unlink()
    assert "found: []" in vm(state="started", _ok=False, **clone)["msg"]


def test_template_whose_state_arrives_late(vm, image, tmp_path: Path) -> None:
    """On a busy host QEMU waits for the first bytes of it, and has no status until then."""
    directory = Path(vm(state="started", image=image(BUTTON), template=True)["vm"]["runtime_dir"])
    vm(state="snapshot", snapshot="warm")
    devices = directory / "devices"
    state = devices.read_bytes()
    devices.unlink()
    os.mkfifo(devices)

    def send() -> None:
        time.sleep(0.5)
        devices.write_bytes(state)

    threading.Thread(target=send, daemon=True).start()
    clone = vm(state="started", runtime_dir=str(tmp_path / "clone"), warm_from=str(directory), snapshot="warm")["vm"]
    wait_until(lambda: "." in Path(clone["console_log"]).read_text())


def test_clock_that_could_not_be_set_is_not_forgotten(vm, image) -> None:
    """The guest has no SSH server, so setting fails; the next run must not report a machine that is as wanted."""
    user = {"ssh_user": "root", "timeout": 1}
    vm(state="started", image=image(BUTTON))
    vm(state="snapshot", snapshot="warm")
    failed = vm(state="started", snapshot="warm", _ok=False, **user)
    assert failed["phase"] == "wait_for_ssh"
    assert vm(state="started", snapshot="warm")["changed"] is False, "nobody asked for the clock"
    predicted = vm(state="started", snapshot="warm", _check=True, **user)
    assert predicted["changed"] is True
    assert "its clock was never set" in predicted["reason"]
    again = vm(state="started", snapshot="warm", _ok=False, **user)
    assert (again["phase"], again["clock_set"]) == ("wait_for_ssh", False)
    vm(state="stopped", stop_timeout=0)
    booted = vm(state="started", _check=True, ssh_user="root")
    assert booted["reason"] == "it was stopped", "a boot sets the clock"
