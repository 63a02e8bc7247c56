# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Carry out what ``_qemu_state.decide`` has decided.

vm.json is written before each step with the step's name and after it with the result: a run that was killed midway is
found and repaired by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import typing as t
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_command as qemu
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_host as host
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_process as process
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_wait as waiting
from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process, read_process
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_qmp import Monitor, MonitorError, session
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_state import (
    RECORD,
    TOKEN_VARIABLE,
    Current,
    Disk,
    Plan,
    Record,
    VmError,
    Wanted,
    check_snapshot,
    load_record,
    same_disks,
    save_record,
    wanted_machine,
)

START_TIMEOUT = 30.0
JOB_TIMEOUT = 300.0
QUIT_TIMEOUT = 30.0
LOCK_TIMEOUT = 120.0
SSH = 22
SET_CLOCK = "sh -c 'date -s @$(cat /sys/class/rtc/rtc0/since_epoch) >&2 && date +%s'"
CLOCK_TOLERANCE = 5.0  # seconds
NOT_RUNNING: dict[str, t.Any] = {
    "phase": "stopped",
    "pid": None,
    "start_time": None,
    "ssh_port": None,
    "forwards": [],
}

DISK_FILES = (qemu.OVERLAY, "disk[1-9].qcow2", qemu.UEFI_VARIABLES)
OWN_FILES = (
    *DISK_FILES,
    qemu.SEED,
    qemu.CONSOLE,
    qemu.QMP_SOCKET,
    qemu.QEMU_LOG,
    qemu.PID_FILE,
    qemu.SCREENSHOT,
    qemu.MEMORY,
    qemu.DEVICES,
)


@dataclass(frozen=True)
class Tools:
    qemu: str
    qemu_img: str
    xorriso: str
    ssh: str = "ssh"


@contextlib.contextmanager
def locked(directory: Path) -> t.Iterator[None]:
    """One run at a time in a runtime directory; the lock is the directory itself and ends with the process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise VmError(f"another run has worked in {directory} for more than {LOCK_TIMEOUT:.0f} s") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


class Vm:
    """A VM in a runtime directory."""

    def __init__(self, directory: Path, tools: Tools, stop_timeout: float = 60.0) -> None:
        self.directory = directory
        self.tools = tools
        self.stop_timeout = stop_timeout
        self.stopped_by: str | None = None

    # -- what would be: no changes, used in check mode too ---------------------------------------------------------

    def prepare(self, current: Current, plan: Plan, wanted: Wanted, warm_from: Path | None) -> Record | None:
        """The record as it will be; refuses here what would fail later."""
        record = current.record
        if plan.create:
            record = self._new_record(wanted, warm_from)
        if record is None or not plan.start:
            return record
        if record.template and wanted.snapshot is not None:
            raise VmError("a template is not restored itself: other VMs are (warm_from)")
        machine = wanted_machine(record.machine, wanted)
        disk = record.disk
        for one in [] if plan.create else [disk, *record.extra_disks]:
            if one.overlay and one.image and _identity(one.image) != (one.size, one.mtime_ns):
                raise VmError(f"{one.image} has changed since the overlay on it was made: remove the VM (state absent)")
        if machine.firmware == "uefi" and qemu.find_uefi() is None:
            raise VmError("no UEFI firmware found: install OVMF (Debian, Ubuntu: apt install ovmf)")
        host.check_memory(machine.memory)
        ssh_port = record.wanted_ssh_port if wanted.ssh_port is None else wanted.ssh_port
        forwards = record.wanted_forwards if wanted.port_forwards is None else wanted.port_forwards
        for one in [] if plan.kill else [qemu.Forward(SSH, ssh_port), *forwards]:
            host.check_port(one)
        if plan.create and warm_from is None:
            for one in [record.disk, *record.extra_disks]:
                self._check_image(one)
        copies = _copied_files(warm_from) if plan.create and warm_from else []
        host.check_space(self.directory, copies, machine.memory if record.template else 0)
        record = replace(
            record,
            machine=machine,
            disk=replace(disk, cache=wanted.disk_cache or disk.cache),
            seed=record.seed if wanted.seed is None else wanted.seed,
            wanted_ssh_port=ssh_port,
            wanted_forwards=forwards,
            lifetime=wanted.lifetime or record.lifetime,
            restored_snapshot=wanted.snapshot,
            clock_behind=wanted.snapshot is not None,
        )
        if wanted.snapshot is not None:
            template = warm_from if plan.create and record.begun_from else None
            saved = load_record(template) if template else record
            check_snapshot(saved or record, machine, wanted.snapshot, self._qemu_version())
            place: Path | None
            if template is not None:
                place = template / qemu.MEMORY
                known = list(saved.snapshots) if saved and place.is_file() else []
            else:
                place = self._disk_with_snapshots(record, plan, warm_from)
                known = self._snapshots_in(place) if place else []
            if wanted.snapshot not in known:
                raise VmError(f"there is no snapshot {wanted.snapshot} in {place or 'a new overlay'}; found: {known}")
        return record

    def _new_record(self, wanted: Wanted, warm_from: Path | None) -> Record:
        base: Record | None = None
        if warm_from is not None:
            base = load_record(warm_from)
            if base is None:
                raise VmError(f"warm_from: there is no VM in {warm_from}")
            if base.phase != "stopped":
                raise VmError(f"warm_from: the VM in {warm_from} is not stopped")
            if not base.disk.overlay:
                raise VmError(f"warm_from: the VM in {warm_from} has no overlay that could be copied")
            if wanted.image is not None and wanted.image != base.disk.image:
                raise VmError(f"warm_from: the VM in {warm_from} was made from {base.disk.image}")
            if wanted.disks is not None and not same_disks(wanted.disks, base.extra_disks):
                raise VmError(f"warm_from: the VM in {warm_from} has other disks")
        begins = base is not None and base.template and wanted.snapshot is not None
        image = wanted.image or (base.disk.image if base else "")
        size, mtime_ns = _identity(image)
        overlay = wanted.overlay is not False
        return Record(
            name=wanted.name or (base.name if base else self.directory.name),
            phase="creating",
            token=uuid.uuid4().hex,
            machine=wanted_machine(base.machine if base else self._default_machine(wanted), wanted),
            disk=Disk(
                image=image,
                image_format=wanted.image_format or (base.disk.image_format if base else detect_format(image)),
                overlay=overlay,
                cache=wanted.disk_cache or ("unsafe" if overlay else "writeback"),
                size=size,
                mtime_ns=mtime_ns,
            ),
            extra_disks=base.extra_disks if base else [_identified(disk) for disk in wanted.disks or []],
            template=bool(wanted.template),
            begun_from=str(warm_from) if begins else None,
            seed=base.seed if base else None,
            wanted_forwards=base.wanted_forwards if base else [],
            snapshots=dict(base.snapshots) if base and not base.template else {},
        )

    def _default_machine(self, wanted: Wanted) -> qemu.Machine:
        accelerator = wanted.accelerator or host.choose_accelerator("prefer")
        return qemu.Machine(
            accelerator=accelerator, cpu_model=host.default_cpu_model(accelerator, self._qemu_version())
        )

    def _disk_with_snapshots(self, record: Record, plan: Plan, warm_from: Path | None) -> Path | None:
        if not record.disk.overlay:
            return Path(record.disk.image)
        if plan.create:
            return warm_from / qemu.OVERLAY if warm_from else None
        return self.directory / qemu.OVERLAY

    def _check_image(self, disk: Disk) -> None:
        """Have QEMU look at an image and at all that it is based on."""
        if disk.image:
            look = [self.tools.qemu_img, "info", "-U", "--backing-chain", "-f", disk.image_format]
            self._run([*look, disk.image])

    def try_machine(self, machine: qemu.Machine) -> None:
        """Refuse a machine that QEMU does not make; it is made without disks and ended at once."""
        command = [self.tools.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-monitor", "stdio"]
        command += ["-machine", machine.machine, "-accel", machine.accelerator, "-cpu", machine.cpu_model]
        self._run([*command, "-smp", str(machine.cpus), "-m", str(machine.memory)], START_TIMEOUT, "quit\n")

    def _snapshots_in(self, disk: Path) -> list[str]:
        info = json.loads(self._run([self.tools.qemu_img, "info", "-U", "--output=json", str(disk)]))
        return [found["name"] for found in info.get("snapshots", [])]

    def _qemu_version(self) -> str:
        words = self._run([self.tools.qemu, "--version"]).split()
        return words[words.index("version") + 1]

    # -- changes ---------------------------------------------------------------------------------------------------

    def apply(
        self, current: Current, plan: Plan, planned: Record | None, wanted: Wanted, warm_from: Path | None
    ) -> Record | None:
        if plan.kill and current.process is not None:
            process.end(current.process, grace=5.0)
            self.stopped_by = "signal"
        record = planned
        if plan.remove:
            self._remove(record)
            return None
        if record is None:  # nothing there, and nothing wanted
            return None
        if plan.kill and not plan.start:
            record = self._save(record, **NOT_RUNNING)
        # Until QEMU has opened them, nobody may change the files that it begins from.
        with locked(warm_from) if plan.create and warm_from else contextlib.nullcontext():
            if plan.create:
                record = self._create(record, warm_from)
            if plan.start:
                record = self._start(record, wanted.snapshot, record.begun_from if plan.create else None)
        if plan.resume:
            record = self._resume(record)
        if plan.save:
            record = self._snapshot(record, wanted.snapshot or "", wanted.keep_running)
        if plan.stop and current.process is not None:
            # After a snapshot the guest must not write any more: no orderly shutdown.
            record = self._stop(record, current.process, graceful=not plan.save)
        if plan.record_death:
            record = self._save(record, **NOT_RUNNING)
        return record

    def _save(self, record: Record, **changes: t.Any) -> Record:
        record = replace(record, **changes)
        save_record(self.directory, record)
        return record

    def _create(self, record: Record, warm_from: Path | None) -> Record:
        record = self._save(record, phase="creating")
        for name in (qemu.SEED, *DISK_FILES):
            for old in self.directory.glob(name):
                old.unlink()
        if warm_from is not None:
            for source in _copied_files(warm_from):
                # cp, because it clones on file systems that can and keeps the holes on the others
                target = self.directory / source.name
                self._run(["cp", "--reflink=auto", "--sparse=always", "--", str(source), str(target)])
            return record
        if record.disk.overlay:
            self._create_disk(qemu.OVERLAY, record.disk)
        for number, disk in enumerate(record.extra_disks, 1):
            self._create_disk(qemu.extra_disk(number), disk)
        return record

    def _create_disk(self, name: str, disk: Disk) -> None:
        backing = ["-F", disk.image_format, "-b", disk.image] if disk.image else []
        target = [str(self.directory / name), *([disk.capacity] if disk.capacity else [])]
        self._run([self.tools.qemu_img, "create", "-q", "-f", "qcow2", *backing, *target])

    def _start(self, record: Record, snapshot: str | None, template: str | None) -> Record:
        if record.template:
            # New files: VMs that began from the old ones still read those.
            for name in (qemu.MEMORY, qemu.DEVICES):
                (self.directory / name).unlink(missing_ok=True)
            record = replace(record, snapshots={})
        console = self.directory / qemu.CONSOLE
        offset = console.stat().st_size if console.exists() else 0
        record = self._save(
            record, **{**NOT_RUNNING, "phase": "starting"}, token=uuid.uuid4().hex, console_offset=offset
        )
        self._write_seed(record)
        uefi = qemu.find_uefi() if record.machine.firmware == "uefi" else None
        if uefi is not None and not (self.directory / qemu.UEFI_VARIABLES).exists():
            shutil.copyfile(uefi[1], self.directory / qemu.UEFI_VARIABLES)
        command = qemu.build_command(
            qemu.Invocation(
                binary=self.tools.qemu,
                name=record.name,
                machine=record.machine,
                disk=qemu.OVERLAY if record.disk.overlay else record.disk.image,
                disk_format="qcow2" if record.disk.overlay else record.disk.image_format,
                disk_cache=record.disk.cache,
                extra_disks=len(record.extra_disks),
                seed=qemu.SEED if record.seed is not None else None,
                forwards=[qemu.Forward(SSH, record.wanted_ssh_port), *record.wanted_forwards],
                uefi_code=uefi[0] if uefi else None,
                memory_file=qemu.MEMORY if record.template else template and str(Path(template) / qemu.MEMORY),
                memory_shared=record.template,
                paused=snapshot is not None,
                incoming=template is not None,
            )
        )
        record = self._save(record, command=command)
        child = self._spawn(record)
        try:
            self._wait_for_monitor(child, record)

            async def finish(monitor: Monitor) -> tuple[list[qemu.Forward], str]:
                if template is not None:
                    await monitor.load_template(str(Path(template) / qemu.DEVICES), JOB_TIMEOUT)
                elif snapshot is not None:
                    await monitor.load(snapshot, JOB_TIMEOUT)
                if snapshot is not None:
                    await monitor.execute("cont")
                return await monitor.forwards(), await monitor.qemu_version()

            forwards, version = session(self.directory, finish)
            found = read_process(child.pid)
            if found is None:
                raise VmError("QEMU ended right after its start")
            record = self._save(
                record,
                phase="running",
                pid=found.pid,
                start_time=found.start_time,
                **_ports(forwards),
                qemu_version=version,
            )
            if record.lifetime == "play":
                process.guard(found)
        except BaseException as exc:
            child.kill()
            child.wait()
            self._save(record, **NOT_RUNNING)
            if isinstance(exc, (VmError, MonitorError)):
                raise self._start_error(record, exc) from exc
            raise
        child.returncode = 0  # it lives on: subprocess must not warn about it
        return record

    def _start_error(self, record: Record, exc: Exception) -> VmError:
        log = waiting.last_lines(self.directory / qemu.QEMU_LOG, 10)
        text = "; ".join(line for line in log if line) or "QEMU wrote nothing"
        return VmError(f"the VM {record.name} did not start: {exc}: {text}", **self.evidence(record), phase="start")

    def evidence(self, record: Record) -> dict[str, t.Any]:
        """What a failed VM leaves to look at."""
        return {
            "command_line": shlex.join(record.command),
            "console_tail": waiting.last_lines(self.directory / qemu.CONSOLE, 50, record.console_offset),
            "screenshot": self._screenshot() if record.process() is not None else None,
        }

    def _screenshot(self) -> str | None:
        try:
            session(self.directory, Monitor.screenshot)
        except MonitorError:
            return None  # QEMU hangs, or is older than 7.1
        return str(self.directory / qemu.SCREENSHOT)

    def set_clock(self, record: Record, user: str, key: str | None, timeout: int) -> None:
        """The guest's clock stood still since the snapshot; its hardware clock did not: QEMU emulates the host's."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        # Key exchanges that resist quantum computers take an emulated processor far longer.
        options += ["KexAlgorithms=^curve25519-sha256", f"ConnectTimeout={timeout}"]
        options += [f"IdentityFile={key}", "IdentitiesOnly=yes"] if key else []
        command = [self.tools.ssh, "-F", "none", "-p", str(record.ssh_port)]
        for option in options:
            command += ["-o", option]
        sudo = "" if user == "root" else "sudo -n "
        before = time.time()
        answer = self._run([*command, "--", f"{user}@127.0.0.1", sudo + SET_CLOCK], timeout)
        clock = re.search(r"(\d+)\s*$", answer)
        if clock is None or not before - CLOCK_TOLERANCE <= int(clock[1]) <= time.time() + CLOCK_TOLERANCE:
            raise VmError(f"the guest's clock is wrong although it was set: it is {time.time():.0f}, not {answer!r}")
        with locked(self.directory):
            now = load_record(self.directory)
            if now is not None and now.token == record.token:
                self._save(now, clock_behind=False)

    def _spawn(self, record: Record) -> subprocess.Popen[bytes]:
        (self.directory / qemu.QMP_SOCKET).unlink(missing_ok=True)
        with open(self.directory / qemu.QEMU_LOG, "wb") as log:
            return subprocess.Popen(
                record.command,
                cwd=self.directory,
                env={**os.environ, TOKEN_VARIABLE: record.token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for_monitor(self, child: subprocess.Popen[bytes], record: Record) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        socket_path = self.directory / qemu.QMP_SOCKET
        while not socket_path.exists():
            if child.poll() is not None:
                raise VmError(f"QEMU ended with status {child.returncode}")
            if time.monotonic() > deadline:
                raise VmError(f"QEMU opened no monitor within {START_TIMEOUT:.0f} s")
            time.sleep(0.01)

    def _write_seed(self, record: Record) -> None:
        if record.seed is None:
            return
        target = self.directory / qemu.SEED
        with tempfile.TemporaryDirectory(prefix=".seed.", dir=self.directory) as folder:
            texts = {
                "user-data": record.seed.get("user_data") or "#cloud-config\n{}\n",
                "meta-data": record.seed.get("meta_data") or f"instance-id: {record.name}\n",
                "network-config": record.seed.get("network_config"),
            }
            names = [name for name, text in texts.items() if text is not None]
            for name in names:
                (Path(folder) / name).write_text(texts[name] or "", encoding="utf-8")
            self._run(
                [
                    *(self.tools.xorriso, "-as", "genisoimage", "-quiet", "-output", f"{target}.new"),
                    *("-volid", "cidata", "-joliet", "-rock", folder),
                ]
            )
        os.chmod(f"{target}.new", 0o600)  # user-data may hold secrets
        os.replace(f"{target}.new", target)

    def _resume(self, record: Record) -> Record:
        async def work(monitor: Monitor) -> list[qemu.Forward]:
            await monitor.settle_jobs(JOB_TIMEOUT)
            await monitor.execute("cont")
            return await monitor.forwards()

        try:
            forwards = session(self.directory, work)
        except MonitorError as exc:
            raise VmError(
                f"the interrupted snapshot could not be undone: {exc}", **self.evidence(record), phase="resume"
            ) from exc
        return self._save(record, phase="running", **_ports(forwards))

    def _snapshot(self, record: Record, name: str, keep_running: bool) -> Record:
        record = self._save(record, phase="saving")

        async def work(monitor: Monitor) -> None:
            await monitor.execute("stop")
            try:
                if record.template:
                    await monitor.save_template(qemu.DEVICES, JOB_TIMEOUT)
                else:
                    await monitor.save(name, JOB_TIMEOUT)
            except BaseException:
                await monitor.execute("cont")
                raise
            if keep_running:
                await monitor.execute("cont")

        try:
            session(self.directory, work)
        except MonitorError as exc:
            self._save(record, phase="running")
            raise VmError(
                f"the snapshot {name} was not made: {exc}", **self.evidence(record), phase="snapshot"
            ) from exc
        if record.template:
            for path in (self.directory / qemu.MEMORY, self.directory / qemu.DEVICES):
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())  # its users never look whether it is whole
        saved = {"machine": asdict(record.machine), "qemu_version": record.qemu_version}
        return self._save(
            record,
            phase="running",
            snapshots={**record.snapshots, name: saved},
        )

    def _stop(self, record: Record, running: Process, graceful: bool) -> Record:
        self.stopped_by = None
        if graceful and self.stop_timeout > 0:
            with contextlib.suppress(MonitorError):
                session(self.directory, lambda monitor: monitor.execute("system_powerdown"))
                if process.wait(running, self.stop_timeout):
                    self.stopped_by = "acpi"
        if self.stopped_by is None:
            with contextlib.suppress(MonitorError):
                session(self.directory, Monitor.quit)
                if process.wait(running, QUIT_TIMEOUT):
                    self.stopped_by = "quit"
        if self.stopped_by is None:
            process.end(running, grace=5.0)
            self.stopped_by = "signal"
        return self._save(record, **NOT_RUNNING)

    def _remove(self, record: Record | None) -> None:
        if record is not None:
            self._save(record, phase="removing")
        for leftover in self.directory.glob(".seed.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for pattern in (*OWN_FILES, f"{qemu.SEED}.new", f".{RECORD}.*"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)
        (self.directory / RECORD).unlink(missing_ok=True)  # last: until now the next run could go on here
        with contextlib.suppress(OSError):
            self.directory.rmdir()  # only if nothing else is in it

    def _run(self, command: list[str], timeout: float | None = None, stdin: str = "") -> str:
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            raise VmError(f"{shlex.join(command)} has not ended after {timeout:.0f} s") from exc
        if done.returncode != 0:
            raise VmError(f"{shlex.join(command)} failed ({done.returncode}): {(done.stderr or done.stdout).strip()}")
        return done.stdout


def _ports(forwards: list[qemu.Forward]) -> dict[str, t.Any]:
    """SSH's port apart from the others, for the record."""
    ssh = [one for one in forwards if (one.protocol, one.guest_port) == ("tcp", SSH)]
    return {"ssh_port": ssh[0].host_port if ssh else None, "forwards": [one for one in forwards if one not in ssh]}


def _copied_files(warm_from: Path) -> list[Path]:
    """The files of a VM that another one starts from."""
    return [path for pattern in DISK_FILES for path in warm_from.glob(pattern)]


def _identified(disk: Disk) -> Disk:
    if not disk.image:
        return disk
    size, mtime_ns = _identity(disk.image)
    return replace(disk, image_format=disk.image_format or detect_format(disk.image), size=size, mtime_ns=mtime_ns)


def _identity(image: str) -> tuple[int, int]:
    try:
        found = os.stat(image)
    except OSError as exc:
        raise VmError(f"image {image}: {exc.strerror}") from exc
    return found.st_size, found.st_mtime_ns


def detect_format(image: str) -> str:
    """qcow2 says so in its first bytes; anything else is taken as it is."""
    try:
        with open(image, "rb") as handle:
            return "qcow2" if handle.read(4) == b"QFI\xfb" else "raw"
    except OSError as exc:
        raise VmError(f"image {image}: {exc.strerror}") from exc
