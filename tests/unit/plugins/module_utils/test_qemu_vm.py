# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu_vm without QEMU: the command, the decisions, the record, and waiting on real sockets and processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_command as qemu
from ansible_collections.goldsmith.images.plugins.module_utils import (
    _qemu_host,
    _qemu_process,
    _qemu_vm,
    _qemu_wait,
)
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_state as state
from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process, read_process
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_qmp import parse_forwards

RECORD = state.Record(
    name="vm",
    phase="running",
    token="t0ken",
    machine=qemu.Machine(),
    disk=state.Disk(image="/images/a.qcow2", image_format="qcow2"),
    ssh_port=40001,
    wanted_forwards=[qemu.Forward(80)],
    forwards=[qemu.Forward(80, 40002)],
    extra_disks=[state.Disk("", "qcow2", capacity="1G")],
    pid=4711,
    start_time=99,
)
PROCESS = Process(pid=4711, start_time=99, command="qemu-system-x86_64")
RUNNING = state.Current(RECORD, PROCESS)
DIED = state.Current(RECORD, None)
STOPPED = state.Current(replace(RECORD, phase="stopped", pid=None, start_time=None, ssh_port=None), None)
NOTHING = state.Current(None, None)


def interrupted(phase: str, alive: bool) -> state.Current:
    return state.Current(replace(RECORD, phase=phase), PROCESS if alive else None)


def wanted(name: str, **options: object) -> state.Wanted:
    return state.Wanted(state=name, **options)  # type: ignore[arg-type]


IMAGE = {"image": "/images/a.qcow2"}


@pytest.mark.parametrize(
    ("current", "target", "actions", "reason"),
    [
        (NOTHING, wanted("started", **IMAGE), {"create", "start"}, "did not exist"),
        (NOTHING, wanted("started", warm=True), {"create", "start"}, "did not exist"),
        (RUNNING, wanted("started"), set(), "it runs"),
        (RUNNING, wanted("started", **IMAGE, memory=2048, ssh_port=0), set(), "it runs"),
        (RUNNING, wanted("started", snapshot="warm"), set(), "it runs"),
        (STOPPED, wanted("started"), {"start"}, "it was stopped"),
        (STOPPED, wanted("started", memory=4096), {"start"}, "it was stopped"),
        (DIED, wanted("started"), {"start"}, "process 4711 has ended"),
        (interrupted("creating", False), wanted("started", **IMAGE), {"create", "start"}, "interrupted"),
        (interrupted("removing", True), wanted("started", **IMAGE), {"kill", "create", "start"}, "interrupted"),
        (interrupted("starting", True), wanted("started"), {"kill", "start"}, "interrupted"),
        (interrupted("starting", False), wanted("started"), {"start"}, "interrupted"),
        (interrupted("saving", True), wanted("started"), {"resume"}, "interrupted"),
        (interrupted("saving", False), wanted("started"), {"start"}, "has ended"),
        (NOTHING, wanted("stopped"), set(), "does not exist"),
        (RUNNING, wanted("stopped"), {"stop"}, "it was running"),
        (STOPPED, wanted("stopped"), set(), "it is stopped"),
        (DIED, wanted("stopped"), {"record_death"}, "process 4711 has ended"),
        (interrupted("starting", True), wanted("stopped"), {"kill"}, "interrupted"),
        (interrupted("saving", True), wanted("stopped"), {"kill"}, "interrupted"),
        (NOTHING, wanted("absent"), set(), "does not exist"),
        (RUNNING, wanted("absent"), {"kill", "remove"}, "it was running"),
        (STOPPED, wanted("absent"), {"remove"}, "it was stopped"),
        (interrupted("starting", True), wanted("absent"), {"kill", "remove"}, "it was running"),
        (interrupted("removing", False), wanted("absent"), {"remove"}, "it was stopped"),
        (RUNNING, wanted("snapshot", snapshot="warm"), {"save", "stop"}, "saved anew"),
        (RUNNING, wanted("snapshot", snapshot="warm", keep_running=True), {"save"}, "saved anew"),
        (interrupted("saving", True), wanted("snapshot", snapshot="warm"), {"save", "stop"}, "saved anew"),
    ],
)
def test_decisions(current: state.Current, target: state.Wanted, actions: set[str], reason: str) -> None:
    plan = state.decide(current, target)
    assert {name for name in plan.__dataclass_fields__ if getattr(plan, name) is True} == actions
    assert reason in plan.reason
    assert plan.changed is bool(actions - {"record_death"})


def test_snapshot_that_exists_is_left_alone_once_stopped() -> None:
    assert STOPPED.record is not None
    saved = state.Current(replace(STOPPED.record, snapshots={"warm": {}}), None)
    assert not state.decide(saved, wanted("snapshot", snapshot="warm")).changed


@pytest.mark.parametrize(
    ("current", "target", "message"),
    [
        (NOTHING, wanted("started"), "image or warm_from"),
        (RUNNING, wanted("started", memory=4096), "memory is 2048, not 4096"),
        (RUNNING, wanted("started", ssh_port=22022), "ssh_port is 40001, not 22022"),
        (RUNNING, wanted("started", image="/images/b.qcow2"), "its image is /images/a.qcow2"),
        (STOPPED, wanted("started", overlay=False), "overlay is True, not False"),
        (STOPPED, wanted("started", disks=[]), "its disks are others"),
        (RUNNING, wanted("started", port_forwards=[]), "its port_forwards are others"),
        (RUNNING, wanted("started", machine="pc"), "machine is q35, not pc"),
        (NOTHING, wanted("snapshot", snapshot="warm"), "no VM"),
        (STOPPED, wanted("snapshot", snapshot="warm"), "is stopped"),
        (DIED, wanted("snapshot", snapshot="warm"), "process 4711 has ended"),
        (
            state.Current(replace(RECORD, disk=state.Disk("/a.img", "raw", overlay=False)), PROCESS),
            wanted("snapshot", snapshot="warm"),
            "inside qcow2",
        ),
    ],
)
def test_refusals(current: state.Current, target: state.Wanted, message: str) -> None:
    with pytest.raises(state.VmError, match=message):
        state.decide(current, target)


def test_snapshot_of_another_machine_is_refused() -> None:
    saved = {"machine": {"memory": 2048, "cpus": 2, "cpu_model": "qemu64"}, "qemu_version": "10.0.2"}
    record = replace(RECORD, snapshots={"warm": saved})
    with pytest.raises(state.VmError, match=r"cpu_model is qemu64, not max; QEMU was 10.0.2, not 7.2.1"):
        state.check_snapshot(record, qemu.Machine(), "warm", "7.2.1")
    state.check_snapshot(record, qemu.Machine(cpu_model="qemu64"), "warm", "10.0.2")
    state.check_snapshot(record, qemu.Machine(), "somebody else's", "10.0.2")


def command(**changes: object) -> list[str]:
    wanted = qemu.Invocation(
        binary="qemu", name="vm", machine=qemu.Machine(), disk="overlay.qcow2", disk_format="qcow2"
    )
    return qemu.build_command(replace(wanted, **changes))  # type: ignore[arg-type]


def values(built: list[str], option: str) -> list[str]:
    return [value for name, value in zip(built, built[1:]) if name == option]


def test_command_names_every_device_and_no_path_outside() -> None:
    built = command()
    assert "-nodefaults" in built
    assert values(built, "-machine") == ["q35"]
    assert values(built, "-accel") == ["tcg,thread=multi"]
    assert values(built, "-netdev") == ["user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"]
    assert json.loads(values(built, "-blockdev")[0]) == {
        "node-name": "disk",
        "driver": "qcow2",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {"driver": "file", "filename": "overlay.qcow2", "discard": "unmap"},
    }
    assert not [word for word in built if word.startswith("/") and word != "/dev/urandom"]
    assert "-S" not in built


def test_command_of_a_machine_with_everything() -> None:
    machine = qemu.Machine(
        memory=64, cpus=1, accelerator="kvm", cpu_model="host", extra_args=["-watchdog-action", "none"]
    )
    built = command(
        name="a,b",
        machine=machine,
        disk="/a dir/x=1,y.img",
        disk_format="raw",
        disk_cache="unsafe",
        seed="seed.iso",
        forwards=[qemu.Forward(22, 2222), qemu.Forward(53, protocol="udp")],
        extra_disks=2,
        uefi_code="/usr/share/OVMF/CODE.fd",
        paused=True,
    )
    assert values(built, "-name") == ["a,,b"]
    assert values(built, "-accel") == ["kvm"]
    assert values(built, "-machine") == ["q35,pflash0=uefi_code,pflash1=uefi_vars"]
    devices = {device["node-name"]: device for device in map(json.loads, values(built, "-blockdev"))}
    assert set(devices) == {"uefi_code", "uefi_vars", "disk", "seed", "disk1", "disk2"}
    assert values(built, "-netdev") == [
        "user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:127.0.0.1:0-:53"
    ]
    assert devices["disk2"]["file"]["filename"] == "disk2.qcow2"
    assert "virtio-blk-pci,drive=disk2,serial=disk2" in values(built, "-device")
    assert devices["disk"]["file"]["filename"] == "/a dir/x=1,y.img"
    assert devices["disk"]["cache"] == devices["disk"]["file"]["cache"] == {"no-flush": True}
    assert devices["uefi_code"]["read-only"] is devices["seed"]["read-only"] is True
    assert "read-only" not in devices["uefi_vars"]
    assert built[-3:] == ["-S", "-watchdog-action", "none"]


def test_uefi_firmware_is_taken_as_a_pair(tmp_path: Path) -> None:
    assert qemu.find_uefi(str(tmp_path)) is None
    folder = tmp_path / "usr/share/OVMF"
    folder.mkdir(parents=True)
    (folder / "OVMF_CODE_4M.fd").touch()
    assert qemu.find_uefi(str(tmp_path)) is None
    (folder / "OVMF_VARS_4M.fd").touch()
    assert qemu.find_uefi(str(tmp_path)) == (str(folder / "OVMF_CODE_4M.fd"), str(folder / "OVMF_VARS_4M.fd"))


def test_record_survives_writing_and_reading(tmp_path: Path) -> None:
    record = replace(RECORD, seed={"user_data": "#cloud-config\nü\n"}, snapshots={"warm": {"qemu_version": "10.0.2"}})
    state.save_record(tmp_path, record)
    assert state.load_record(tmp_path) == record
    assert os.listdir(tmp_path) == ["vm.json"]
    assert (tmp_path / "vm.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "machine": {"x": 1}}'])
def test_damaged_record_is_an_error_not_an_absent_machine(tmp_path: Path, text: str) -> None:
    (tmp_path / "vm.json").write_text(text)
    with pytest.raises(state.VmError, match="damaged"):
        state.gather(tmp_path)


def test_record_of_another_version_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vm.json").write_text('{"version": 99}')
    with pytest.raises(state.VmError, match="another version"):
        state.gather(tmp_path)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    command = ["sh", "-c", "echo; exec sleep 60"]
    env = {**os.environ, state.TOKEN_VARIABLE: f"test-{os.getpid()}"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        # The kernel shows an environment only a moment after the program has been started.
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def as_process(child: subprocess.Popen[bytes]) -> Process:
    found = read_process(child.pid)
    assert found is not None
    return found


def test_process_is_known_by_number_and_start_time(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    found = as_process(child)
    record = replace(RECORD, pid=found.pid, start_time=found.start_time)
    state.save_record(tmp_path, record)
    assert state.gather(tmp_path).running
    state.save_record(tmp_path, replace(record, start_time=found.start_time - 1))
    assert not state.gather(tmp_path).running, "the number was given to another process"


def test_process_of_an_interrupted_start_is_found_by_its_token(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    record = replace(RECORD, phase="starting", pid=None, start_time=None, token=f"test-{os.getpid()}")
    state.save_record(tmp_path, record)
    found = state.gather(tmp_path).process
    assert found is not None
    assert found.pid == child.pid
    state.save_record(tmp_path, replace(record, token="another"))
    assert not state.gather(tmp_path).running


def test_process_is_ended_and_one_with_the_same_number_is_not(child: subprocess.Popen[bytes]) -> None:
    found = as_process(child)
    earlier = replace(found, start_time=found.start_time - 1)
    _qemu_process.end(earlier, 0.1)
    assert found.alive()
    assert _qemu_process.wait(earlier, 0)
    assert not _qemu_process.wait(found, 0.05)
    _qemu_process.end(found, 5)
    assert not found.alive()
    assert _qemu_process.wait(found, 0)


def test_forwarded_port_from_what_qemu_prints() -> None:
    text = (
        "Hub -1 (net0):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[ESTABLISHED]   14       127.0.0.1 50022       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]  12       127.0.0.1 40555       10.0.2.15   220     0     0\r\n"
        "  TCP[HOST_FORWARD]  11       127.0.0.1 44051       10.0.2.15    22     0     0\r\n"
    )
    text += "  UDP[HOST_FORWARD]  13       127.0.0.1 40777       10.0.2.15    53     0     0\r\n"
    assert parse_forwards(text) == [qemu.Forward(220, 40555), qemu.Forward(22, 44051), qemu.Forward(53, 40777, "udp")]
    assert parse_forwards("") == []


class Server:
    """Accepts like QEMU does; answers what it is told, from the given connection on."""

    def __init__(self, answer: bytes, first: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._answer, self._first = answer, first
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            if len(self._connections) > self._first:
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def serve() -> Iterator[type[Server]]:
    servers: list[Server] = []

    class Tracked(Server):
        def __init__(self, answer: bytes, first: int = 0) -> None:
            super().__init__(answer, first)
            servers.append(self)

    yield Tracked
    for server in servers:
        server.close()


def test_greeting_of_an_ssh_server(serve: type[Server]) -> None:
    server = serve(b"SSH-2.0-OpenSSH_10.0p2 Debian-7\r\n")
    assert _qemu_wait.read_greeting(server.port, 2) == "SSH-2.0-OpenSSH_10.0p2 Debian-7"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n"])
def test_open_port_without_an_ssh_server_is_no_answer(serve: type[Server], answer: bytes) -> None:
    start = time.monotonic()
    assert _qemu_wait.read_greeting(serve(answer).port, 0.3) is None
    assert time.monotonic() - start < 1


def test_refused_connection_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert _qemu_wait.read_greeting(port, 0.3) is None


def test_wait_goes_on_until_somebody_listens(
    serve: type[Server], child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    server = serve(b"SSH-2.0-x\r\n", first=1)
    assert _qemu_wait.wait_for_ssh(as_process(child), server.port, tmp_path / "console.log", 0, 20) == "SSH-2.0-x"


def test_wait_ends_early_when_the_guest_is_lost(
    serve: type[Server], child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    console = tmp_path / "console.log"
    old = b"Kernel panic - not syncing: of an earlier boot\r\n"
    console.write_bytes(old)
    found, port = as_process(child), serve(b"").port
    with pytest.raises(_qemu_wait.NoAnswer, match="no answer"):
        _qemu_wait.wait_for_ssh(found, port, console, len(old), 0.1)
    console.write_bytes(old + b"\x1b[0;1;31mYou are in emergency mode.\x1b[0m After logging in, ...\r\n")
    with pytest.raises(_qemu_wait.NoAnswer, match=r"will not come up: You are in emergency mode. After"):
        _qemu_wait.wait_for_ssh(found, port, console, len(old), 5)
    child.kill()
    child.wait()
    with pytest.raises(_qemu_wait.NoAnswer, match="has ended"):
        _qemu_wait.wait_for_ssh(found, port, console, len(old), 5)


def test_end_of_cloud_init(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_bytes(
        b"[    9.9] cloud-init[436]: Cloud-init v. 25.1.4 running 'modules:final' at Sat, 21 Nov 2026\r\n"
    )
    with pytest.raises(_qemu_wait.NoAnswer, match="no end of cloud-init on the serial console within 0 s"):
        _qemu_wait.wait_for_cloud_init(as_process(child), console, 0, 0.3)
    with console.open("ab") as log:
        log.write(
            b"vm login: [   10.9] cloud-init[436]: Cloud-init v. 25.1.4 finished at Sat, 21 Nov 2026. Up 9 seconds\r\n"
        )
    found = _qemu_wait.wait_for_cloud_init(as_process(child), console, 0, 5)
    assert found == "Cloud-init v. 25.1.4 finished at Sat, 21 Nov 2026. Up 9 seconds"


@pytest.mark.parametrize(
    ("policy", "found", "accelerator"),
    [
        ("prefer", True, "kvm"),
        ("prefer", False, "tcg"),
        ("require", True, "kvm"),
        ("forbid", None, "tcg"),
        ("tcg", None, "tcg"),
        ("kvm", None, "kvm"),
    ],
)
def test_accelerator(policy: str, found: bool | None, accelerator: str) -> None:
    def check() -> dict[str, object]:
        assert found is not None, "nobody needs to know"
        return {"accelerated": found, "reason": "emulated", "hint": "Use TCG."}

    assert _qemu_host.choose_accelerator(policy, check) == accelerator


def test_required_kvm_that_is_not_accelerated_is_refused() -> None:
    with pytest.raises(state.VmError, match=r"not accelerated here \(emulated\). Use TCG"):
        _qemu_host.choose_accelerator(
            "require", lambda: {"accelerated": False, "usable": True, "reason": "emulated", "hint": "Use TCG."}
        )


def test_accelerator_of_this_host_is_what_the_check_says() -> None:
    expected = "kvm" if _qemu_host.check_kvm()["accelerated"] else "tcg"
    assert _qemu_host.choose_accelerator("prefer") == expected


@pytest.mark.parametrize(
    ("accelerator", "version", "model"),
    [("tcg", "10.0.2", "max"), ("tcg", "7.2.1", "qemu64"), ("kvm", "7.2.1", "max")],
)
def test_default_cpu_model(accelerator: str, version: str, model: str) -> None:
    assert _qemu_host.default_cpu_model(accelerator, version) == model


def test_host_without_memory_or_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _qemu_host.check_memory(1)
    monkeypatch.setattr(_qemu_host._host_memory, "available", lambda: 1000 * 2**20)
    with pytest.raises(state.VmError, match="1280 MiB needed, 1000 MiB available"):
        _qemu_host.check_memory(1024)
    _qemu_host.check_space(tmp_path / "not there/yet", [])


def test_last_lines_of_a_console(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    assert _qemu_wait.last_lines(console, 3) == []
    console.write_bytes(b"\x1b[2J\x1b[01;01Hone\r\n\xff\xfetwo\r\n\r\nthree \r\n")
    assert _qemu_wait.last_lines(console, 3) == ["\ufffd\ufffdtwo", "", "three"]


@pytest.mark.parametrize(
    ("guest", "error"),
    [
        ("date +%s", ""),
        ("echo 1000", "the guest's clock is wrong although it was set"),
        ("true", "the guest's clock is wrong although it was set"),
        ("echo 'date: cannot set date' >&2; exit 1", "cannot set date"),
    ],
)
def test_clock_counts_as_set_only_if_the_guest_shows_the_time(tmp_path: Path, guest: str, error: str) -> None:
    """A program stands in for ssh and answers as the guest does; the real one is in integration/qemu_vm."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\n{guest}\n")
    ssh.chmod(0o755)
    record = replace(RECORD, clock_behind=True)
    state.save_record(tmp_path, record)
    machine = _qemu_vm.Vm(tmp_path, _qemu_vm.Tools("", "", "", str(ssh)))
    if error:
        with pytest.raises(state.VmError, match=error):
            machine.set_clock(record, "root", None, 5)
    else:
        machine.set_clock(record, "root", None, 5)
    after = state.load_record(tmp_path)
    assert after is not None
    assert after.clock_behind is bool(error)
