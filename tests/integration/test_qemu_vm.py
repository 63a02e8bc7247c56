# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu_vm with a real QEMU; the guests are boot sectors, so that a boot takes a moment and not a minute."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]
pytest.importorskip("qemu.qmp")
from ansible_collections.goldsmith.images.plugins.module_utils import (  # noqa: E402
    _kvm,
    _qemu_qmp,
    _qemu_state,
    _qemu_vm,
)
from ansible_collections.goldsmith.images.tests.support import documented  # noqa: E402
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON, HANG, boot_sector  # noqa: E402


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], str]:
    def make(sector: bytes, name: str = "disk, with = comma.img") -> str:
        path = tmp_path / name
        path.write_bytes(sector.ljust(1024 * 1024, b"\0"))
        return str(path)

    return make


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ended(pid: int) -> Callable[[], bool]:
    return lambda: not alive(pid)


DIRECTLY = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from ansible.module_utils.testing import patch_module_args
from ansible_collections.goldsmith.images.plugins.modules import qemu_vm
with patch_module_args(json.loads(sys.argv[2])):
    qemu_vm.main()
"""


def run_directly(params: dict[str, Any]) -> dict[str, Any]:
    """The module in a process of its own, without the second or two that the ansible command adds to each call."""
    check = params.pop("_check", False)
    arguments = json.dumps({**params, "_ansible_check_mode": check})
    command = [sys.executable, "-c", DIRECTLY, json.dumps(sys.path), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    result.setdefault("failed", False)
    return result


@pytest.fixture
def vm(run_module, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """``vm(state="started", ...)`` in a runtime directory with a long path; nothing is left of it afterwards.

    Run by the ansible command if ``_ansible`` is given.
    """
    default = tmp_path / ("a long name, " * 8).strip() / "vm"
    used = set()

    def run(_ok: bool = True, _ansible: bool = False, **params: Any) -> dict[str, Any]:
        params = {"runtime_dir": str(default), "memory": 32, "cpus": 1, **params}
        if params.get("state") not in (None, "started"):
            params = {name: params[name] for name in params if name not in ("memory", "cpus")}
        used.add(params["runtime_dir"])
        result = run_module("qemu_vm", **params) if _ansible else run_directly(params)
        assert result["failed"] is not _ok, result.get("msg", "") + result.get("exception", "")
        documented.check_returned("qemu_vm", result)
        return result

    yield run
    pids = []
    for directory in used:
        record = Path(directory) / "vm.json"
        if not record.exists():
            continue
        pids.append(json.loads(record.read_text())["pid"])
        run_directly({"state": "absent", "runtime_dir": directory})
        assert not record.exists()
    assert not [pid for pid in pids if pid and alive(pid)]


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


def test_taken_port_is_an_error_and_free_ones_do_not_collide(vm, image, tmp_path: Path) -> None:
    disk = image(HANG)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for check in (True, False):
            taken = vm(state="started", image=disk, ssh_port=port, _ok=False, _check=check)
            assert f"tcp port {port} cannot be had: Address already in use" in taken["msg"]
    free = vm(state="started", image=disk, ssh_port=port)["vm"]
    assert free["ssh_port"] == port
    others = [vm(state="started", image=disk, runtime_dir=str(tmp_path / name))["vm"] for name in ("one", "two")]
    assert len({free["ssh_port"], *(other["ssh_port"] for other in others)}) == 3


def test_parallel_starts_do_not_collide(vm, image, tmp_path: Path) -> None:
    disk = image(HANG)
    with ThreadPoolExecutor(6) as pool:
        places = [*(str(tmp_path / f"vm{number}") for number in range(4)), str(tmp_path / "vm0")]
        runs = [
            pool.submit(vm, state="started", image=disk, runtime_dir=place, port_forwards=[{"guest_port": 80}])
            for place in places
        ]
        results = [run.result() for run in runs]
    machines = {result["vm"]["pid"]: result["vm"] for result in results}
    assert len(machines) == 4, "two runs for one directory made one VM"
    assert sorted(result["changed"] for result in results) == [False, True, True, True, True]
    ports = [vm["ssh_port"] for vm in machines.values()]
    ports += [vm["port_forwards"][0]["host_port"] for vm in machines.values()]
    assert len(set(ports)) == 8


def test_machine_with_everything(vm, image, tmp_path: Path) -> None:
    data = tmp_path / "data.img"
    data.write_bytes(b"data".ljust(1024 * 1024, b"\0"))
    options = {
        "image": image(BUTTON),
        "machine": "pc",
        "cpu_model": "qemu64",
        "accelerator": "forbid",
        "disks": [{"size": "16M"}, {"image": str(data)}],
        "port_forwards": [{"guest_port": 80}, {"guest_port": 53, "protocol": "udp"}],
        "extra_args": ["-watchdog-action", "none"],
    }
    planned = vm(state="started", _check=True, **options)["vm"]
    assert (planned["accelerator"], planned["port_forwards"]) == ("tcg", [])
    started = vm(state="started", **options)["vm"]
    assert [(one["guest_port"], one["protocol"]) for one in started["port_forwards"]] == [(80, "tcp"), (53, "udp")]
    socket.create_connection(("127.0.0.1", started["port_forwards"][0]["host_port"]), 5).close()
    assert vm(state="started", **options)["changed"] is False
    assert "port_forwards are others" in vm(state="started", port_forwards=[], _ok=False)["msg"]
    assert "disks are others" in vm(state="started", disks=[{"size": "32M"}], _ok=False)["msg"]
    directory = Path(started["runtime_dir"])
    wait_until(lambda: "BOOT" in Path(started["console_log"]).read_text())
    vm(state="snapshot", snapshot="warm")
    assert vm(state="started", snapshot="warm")["vm"]["restored_snapshot"] == "warm"
    vm(state="stopped", stop_timeout=0)

    copy = vm(state="started", runtime_dir=str(tmp_path / "copy"), warm_from=str(directory), snapshot="warm")["vm"]
    assert copy["restored_snapshot"] == "warm"
    assert [one["guest_port"] for one in copy["port_forwards"]] == [80, 53]
    assert (tmp_path / "copy/disk2.qcow2").exists()
    other = {"runtime_dir": str(tmp_path / "other"), "warm_from": str(directory), "disks": []}
    assert "has other disks" in vm(state="started", _ok=False, **other)["msg"]

    vm(state="absent")
    assert not directory.exists()
    assert data.read_bytes().startswith(b"data")


def test_accelerator_is_what_kvm_check_says(vm, image, tmp_path: Path) -> None:
    seen = _kvm.probe("/dev/kvm", platform.machine(), 1000, 50.0, 2.0)
    accelerated = _kvm.judge(seen, 50.0).accelerated
    disk = image(HANG)
    assert vm(state="started", image=disk)["vm"]["accelerator"] == ("kvm" if accelerated else "tcg")
    assert vm(state="started", accelerator="prefer")["changed"] is False
    required = {"image": disk, "accelerator": "require", "runtime_dir": str(tmp_path / "required")}
    for check in (True, False):
        result = vm(state="started", _ok=accelerated, _check=check, **required)
        assert accelerated or "KVM is required" in result["msg"]


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


def test_seed_is_a_nocloud_disk(vm, image) -> None:
    seed = {"user_data": "#cloud-config\nhostname: probe\n", "network_config": "version: 2\n"}
    started = vm(state="started", image=image(HANG), seed=seed, name="probe")["vm"]
    iso = Path(started["runtime_dir"]) / "seed.iso"
    assert iso.stat().st_mode & 0o777 == 0o600
    raw = iso.read_bytes()
    assert raw[0x8028:0x802E] == b"cidata"
    listing = subprocess.run(
        ["xorriso", "-indev", str(iso), "-find", "/", "-type", "f"], capture_output=True, text=True, check=True
    ).stdout
    assert set(listing.split()) == {"'/meta-data'", "'/network-config'", "'/user-data'"}
    assert b"hostname: probe" in raw
    assert b"instance-id: probe" in raw
    assert not list(Path(started["runtime_dir"]).glob(".seed.*"))


def test_uefi_machine_has_variables_of_its_own(vm, image) -> None:
    if not Path("/usr/share/OVMF").is_dir():
        pytest.skip("OVMF is not installed")
    started = vm(state="started", image=image(HANG), firmware="uefi", memory=128)["vm"]
    assert (Path(started["runtime_dir"]) / "uefi_vars.fd").exists()
    assert alive(started["pid"])
    # Its state can be saved although its variables are a writable raw disk.
    vm(state="snapshot", snapshot="warm")
    assert vm(state="started", memory=128, snapshot="warm")["vm"]["restored_snapshot"] == "warm"


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


def test_machine_that_must_not_outlive_the_play(vm, image) -> None:
    started = vm(state="started", image=image(HANG), lifetime="play", _ansible=True)["vm"]
    wait_until(ended(started["pid"]))
    assert "has ended" in vm(state="stopped")["reason"]


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
