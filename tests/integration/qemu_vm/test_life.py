# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a machine: it starts, stops, dies, is repaired, and nothing is left of it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_qmp, _qemu_state, _qemu_vm
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON, HANG, boot_sector
from ansible_collections.goldsmith.images.tests.support.processes import alive, ended, wait_until


def test_life_of_a_machine(vm, image) -> None:
    run = functools.partial(vm, _ansible=True)
    disk = image(BUTTON)
    before = Path(disk).read_bytes()

    planned = run(state="started", image=disk, _check=True)
    assert planned["changed"] is True
    assert planned["vm"]["pid"] is None
    directory = Path(planned["vm"]["runtime_dir"])
    assert not directory.exists()

    first = run(state="started", image=disk)
    assert first["changed"] is True
    assert set(first) == set(planned)
    machine = first["vm"]
    assert machine["state"] == "running"
    assert alive(machine["pid"])
    assert machine["ssh_port"] > 0
    assert len(machine["qmp_socket"]) > 107
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in directory.iterdir() if path.is_file() and path.stat().st_mode & 0o077} == set()
    wait_until(lambda: "BOOT" in Path(machine["console_log"]).read_text())

    again = run(state="started", image=disk)
    assert (again["changed"], again["vm"]) == (False, machine)
    assert run(state="started", _check=True)["changed"] is False
    other = run(state="started", memory=64, _ok=False)
    assert "memory is 32, not 64" in other["msg"]

    assert run(state="stopped", _check=True)["changed"] is True
    assert alive(machine["pid"])
    stopped = run(state="stopped", stop_timeout=30)
    assert (stopped["changed"], stopped["stopped_by"], stopped["vm"]["state"]) == (True, "acpi", "stopped")
    assert not alive(machine["pid"])
    assert run(state="stopped")["changed"] is False

    restarted = run(state="started", memory=64)
    assert restarted["changed"] is True
    assert "64" in restarted["vm"]["command"]

    foreign = directory / "somebody else's file"
    foreign.touch()
    assert run(state="absent", _check=True)["changed"] is True
    assert (directory / "vm.json").exists()
    absent = run(state="absent")
    assert (absent["changed"], absent["vm"]["state"]) == (True, "absent")
    assert not alive(restarted["vm"]["pid"])
    assert os.listdir(directory) == [foreign.name]
    foreign.unlink()
    directory.rmdir()
    assert run(state="absent")["changed"] is False
    assert run(state="stopped")["changed"] is False
    assert not directory.exists()
    assert Path(disk).read_bytes() == before


def test_guest_that_ignores_the_power_button_is_stopped_all_the_same(vm, image) -> None:
    pid = vm(state="started", image=image(HANG))["vm"]["pid"]
    assert vm(state="stopped", stop_timeout=1)["stopped_by"] == "quit"
    assert not alive(pid)


def test_process_that_hangs_is_ended_by_a_signal(vm, image, monkeypatch: pytest.MonkeyPatch) -> None:
    started = vm(state="started", image=image(HANG))["vm"]
    os.kill(started["pid"], signal.SIGSTOP)
    monkeypatch.setattr(_qemu_qmp, "ANSWER_TIMEOUT", 1.0)
    directory = Path(started["runtime_dir"])
    machine = _qemu_vm.Vm(directory, _qemu_vm.Tools("", "", ""), stop_timeout=1)
    current, wanted = _qemu_state.gather(directory), _qemu_state.Wanted(state="stopped")
    machine.apply(current, _qemu_state.decide(current, wanted), current.record, wanted, None)
    assert machine.stopped_by == "signal"
    assert not alive(started["pid"])


def test_process_that_hangs_is_removed(vm, image) -> None:
    pid = vm(state="started", image=image(HANG))["vm"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert vm(state="absent")["stopped_by"] == "signal"
    assert not alive(pid)


def test_machine_that_died_is_reported_and_started_again(vm, image) -> None:
    disk = image(boot_sector("BOOT\r\n", ticks=4))
    first = vm(state="started", image=disk)["vm"]
    wait_until(ended(first["pid"]))
    stopped = vm(state="stopped", _check=True)
    assert stopped["changed"] is False
    assert f"process {first['pid']} has ended" in stopped["reason"]
    second = vm(state="started")
    assert second["changed"] is True
    assert f"process {first['pid']} has ended" in second["reason"]
    wait_until(ended(second["vm"]["pid"]))
    vm(state="stopped")
    assert vm(state="stopped")["reason"] == "it is stopped"
    assert Path(first["console_log"]).read_text().count("BOOT") == 2, "the log is appended to"


def test_reused_process_number_is_neither_trusted_nor_killed(vm, image) -> None:
    started = vm(state="started", image=image(HANG))["vm"]
    os.kill(started["pid"], signal.SIGKILL)
    wait_until(ended(started["pid"]))
    with subprocess.Popen(["sleep", "60"]) as stranger:
        path = Path(started["runtime_dir"]) / "vm.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "pid": stranger.pid}))
        again = vm(state="started")
        assert "has ended" in again["reason"]
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": stranger.pid}))
        vm(state="absent")
        assert stranger.poll() is None
        stranger.kill()
    os.kill(again["vm"]["pid"], signal.SIGKILL)  # the altered record had hidden it


@pytest.mark.parametrize("state", ["started", "stopped", "absent"])
def test_run_that_was_killed_before_it_recorded_the_process_is_repaired(vm, image, state: str) -> None:
    first = vm(state="started", image=image(HANG))["vm"]
    path = Path(first["runtime_dir"]) / "vm.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "phase": "starting", "pid": None, "start_time": None}))
    repaired = vm(state=state)
    assert repaired["changed"] is True
    assert not alive(first["pid"])
    if state == "started":
        assert alive(repaired["vm"]["pid"])


def test_machine_that_must_not_outlive_the_play(vm, image) -> None:
    started = vm(state="started", image=image(HANG), lifetime="play", _ansible=True)["vm"]
    wait_until(ended(started["pid"]))
    assert "has ended" in vm(state="stopped")["reason"]


def test_many_starts_and_stops_leave_nothing(image, tmp_path: Path) -> None:
    tools = _qemu_vm.Tools(*(shutil.which(name) or name for name in ("qemu-system-x86_64", "qemu-img", "xorriso")))
    directory = tmp_path / "vm"
    directory.mkdir()
    disk = image(HANG)

    def reach(target: str) -> _qemu_state.Record | None:
        wanted = _qemu_state.Wanted(state=target, image=disk, memory=32, cpus=1)
        machine = _qemu_vm.Vm(directory, tools, stop_timeout=0)
        with _qemu_vm.locked(directory):
            current = _qemu_state.gather(directory)
            plan = _qemu_state.decide(current, wanted)
            assert plan.changed
            return machine.apply(current, plan, machine.prepare(current, plan, wanted, None), wanted, None)

    before = sorted(os.listdir("/proc/self/fd"))
    pids = []
    for _turn in range(20):
        record = reach("started")
        assert record is not None
        pids.append(record.pid)
        reach("stopped")
    reach("absent")
    assert not [pid for pid in pids if pid is None or alive(pid)]
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not directory.exists()
