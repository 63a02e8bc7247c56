# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""What is known about a test VM (vm.json and its process), and what a wanted state asks for."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import typing as t
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process, read_process
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_command import Forward, Machine

RECORD = "vm.json"
RECORD_VERSION = 1
TOKEN_VARIABLE = "GOLDSMITH_IMAGES_VM"

SETTLED = ("running", "stopped")
INTERRUPTED = ("creating", "starting", "saving", "removing")


class VmError(Exception):
    """What was asked for cannot be done; details go into the module's result."""

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Disk:
    """The image a VM was made from, and whether it works on the image itself or on an overlay.

    An extra disk may also be an empty one: then it has a capacity, as qemu-img understands it, and no image.
    """

    image: str
    image_format: str
    overlay: bool = True
    cache: str = "unsafe"
    size: int = 0
    mtime_ns: int = 0
    capacity: str | None = None


@dataclass(frozen=True)
class Record:
    """The content of vm.json."""

    name: str
    phase: str
    token: str
    machine: Machine
    disk: Disk
    extra_disks: list[Disk] = field(default_factory=list)
    template: bool = False
    """The guest's memory is a file, and its snapshot another VM's start."""
    begun_from: str | None = None
    """The runtime directory of the template whose memory the VM was restored from."""
    seed: dict[str, str] | None = None
    wanted_ssh_port: int = 0
    wanted_forwards: list[Forward] = field(default_factory=list)
    lifetime: str = "permanent"
    ssh_port: int | None = None
    forwards: list[Forward] = field(default_factory=list)
    pid: int | None = None
    start_time: int | None = None
    command: list[str] = field(default_factory=list)
    console_offset: int = 0
    restored_snapshot: str | None = None
    clock_behind: bool = False
    """The guest was restored, and nobody has set its clock since."""
    qemu_version: str | None = None
    snapshots: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    """Name -> the machine and QEMU version it was saved with."""

    def process(self) -> Process | None:
        """The VM's process if it still is the one that was started."""
        if self.pid is None or self.start_time is None:
            return None
        found = read_process(self.pid)
        return found if found is not None and found.start_time == self.start_time else None


@dataclass(frozen=True)
class Current:
    record: Record | None
    process: Process | None

    @property
    def running(self) -> bool:
        return self.process is not None


@dataclass(frozen=True)
class Wanted:
    """The module's parameters; None means: as it is recorded, else the default."""

    state: str
    name: str | None = None
    image: str | None = None
    image_format: str | None = None
    overlay: bool | None = None
    disk_cache: str | None = None
    disks: list[Disk] | None = None
    template: bool | None = None
    seed: dict[str, str] | None = None
    machine: str | None = None
    memory: int | None = None
    cpus: int | None = None
    accelerator: str | None = None
    cpu_model: str | None = None
    firmware: str | None = None
    extra_args: list[str] | None = None
    ssh_port: int | None = None
    port_forwards: list[Forward] | None = None
    snapshot: str | None = None
    keep_running: bool = False
    lifetime: str | None = None
    warm: bool = False
    """Start from the overlay of another, stopped VM."""


@dataclass(frozen=True)
class Plan:
    """What to do, in this order."""

    kill: bool = False
    create: bool = False
    start: bool = False
    resume: bool = False
    save: bool = False
    stop: bool = False
    record_death: bool = False
    remove: bool = False
    reason: str = ""

    @property
    def changed(self) -> bool:
        return self.kill or self.create or self.start or self.resume or self.save or self.stop or self.remove


def decide(current: Current, wanted: Wanted) -> Plan:
    """From what is to what is wanted."""
    return _DECISIONS[wanted.state](current, wanted)


def _describe_death(record: Record) -> str:
    return f"its process {record.pid} has ended (the guest powered itself off, or QEMU died)"


def _decide_started(current: Current, wanted: Wanted) -> Plan:
    record = current.record
    if record is None or record.phase in ("creating", "removing"):
        interrupted = record is not None
        if wanted.image is None and not wanted.warm:
            raise VmError("there is no VM in this directory yet: image or warm_from is needed to make one")
        reason = "an earlier run was interrupted while it made or removed the VM" if interrupted else "it did not exist"
        return Plan(kill=current.running, create=True, start=True, reason=reason)
    again = wanted.snapshot is not None and wanted.snapshot not in record.snapshots
    if record.begun_from is not None and again and (record.phase == "starting" or not current.running):
        # The memory fits the disk as it was: both are taken from the template again.
        return Plan(kill=current.running, create=True, start=True, reason="it begins anew from its template")
    differences = _immutable_differences(record, wanted)
    if differences:
        raise VmError(f"the VM was made differently ({'; '.join(differences)}): remove it first (state absent)")
    if record.phase == "starting":
        return Plan(kill=current.running, start=True, reason="an earlier start was interrupted")
    if not current.running:
        if record.phase == "stopped":
            return Plan(start=True, reason="it was stopped")
        return Plan(start=True, reason=_describe_death(record))
    differences = [
        *record.machine.differences(wanted_machine(record.machine, wanted)),
        *_port_differences(record, wanted),
    ]
    if differences:
        raise VmError(f"the running VM differs ({'; '.join(differences)}): stop it first (state stopped)")
    if record.phase == "saving":
        return Plan(resume=True, reason="an earlier snapshot was interrupted")
    return Plan(reason="it runs")


def _decide_stopped(current: Current, wanted: Wanted) -> Plan:
    if current.record is None:
        return Plan(reason="it does not exist")
    if current.record.phase in INTERRUPTED and current.running:
        return Plan(kill=True, reason="an earlier run was interrupted")
    if current.running:
        return Plan(stop=True, reason="it was running")
    if current.record.phase == "stopped":
        return Plan(reason="it is stopped")
    return Plan(record_death=True, reason=_describe_death(current.record))


def _decide_absent(current: Current, wanted: Wanted) -> Plan:
    if current.record is None:
        return Plan(reason="it does not exist")
    return Plan(kill=current.running, remove=True, reason="it was running" if current.running else "it was stopped")


def _decide_snapshot(current: Current, wanted: Wanted) -> Plan:
    record = current.record
    if record is None:
        raise VmError("there is no VM in this directory to take a snapshot of")
    if record.template and wanted.keep_running:
        raise VmError("a template ends with its snapshot: its memory must not change any more (keep_running: false)")
    if record.disk.overlay is False and record.disk.image_format != "qcow2":
        raise VmError(f"snapshots are kept inside qcow2 disks; this VM's is {record.disk.image_format}")
    if current.running and record.phase in ("running", "saving"):
        stop = not wanted.keep_running
        return Plan(save=True, stop=stop, reason="a running VM is saved anew every time")
    if record.phase == "stopped" and wanted.snapshot in record.snapshots and not wanted.keep_running:
        return Plan(reason="the snapshot exists and the VM is stopped")
    state = "is stopped" if record.phase == "stopped" else f"does not run: {_describe_death(record)}"
    raise VmError(f"a snapshot holds the memory of a running VM, but this one {state}")


_DECISIONS: dict[str, t.Callable[[Current, Wanted], Plan]] = {
    "started": _decide_started,
    "stopped": _decide_stopped,
    "absent": _decide_absent,
    "snapshot": _decide_snapshot,
}


def _immutable_differences(record: Record, wanted: Wanted) -> list[str]:
    found = []
    if wanted.image is not None and wanted.image != record.disk.image:
        found.append(f"its image is {record.disk.image}, not {wanted.image}")
    if wanted.overlay is not None and wanted.overlay != record.disk.overlay:
        found.append(f"overlay is {record.disk.overlay}, not {wanted.overlay}")
    if wanted.template is not None and wanted.template != record.template:
        found.append(f"template is {record.template}, not {wanted.template}")
    if wanted.disks is not None and not same_disks(wanted.disks, record.extra_disks):
        found.append("its disks are others")
    return found


def same_disks(one: list[Disk], other: list[Disk]) -> bool:
    return [(disk.image, disk.capacity) for disk in one] == [(disk.image, disk.capacity) for disk in other]


def _port_differences(record: Record, wanted: Wanted) -> list[str]:
    found = []
    if wanted.ssh_port not in (None, 0, record.ssh_port):
        found.append(f"ssh_port is {record.ssh_port}, not {wanted.ssh_port}")
    if wanted.port_forwards is not None and wanted.port_forwards != record.wanted_forwards:
        found.append("its port_forwards are others")
    return found


def wanted_machine(base: Machine, wanted: Wanted) -> Machine:
    """The machine with what was asked for put over what it is."""
    given = {name: getattr(wanted, name) for name in Machine.__dataclass_fields__}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def check_snapshot(record: Record, machine: Machine, snapshot: str, qemu_version: str) -> None:
    """A saved state fits only the machine it was saved on; QEMU may crash, or worse run on, with another one."""
    saved = record.snapshots.get(snapshot)
    if saved is None:
        return  # a disk with a snapshot somebody else made: QEMU will tell
    differences = Machine(**saved["machine"]).differences(machine)
    if saved["qemu_version"] != qemu_version:
        differences.append(f"QEMU was {saved['qemu_version']}, not {qemu_version}")
    if differences:
        raise VmError(f"the snapshot {snapshot} belongs to another machine: {'; '.join(differences)}")


def load_record(directory: Path) -> Record | None:
    """Read vm.json; None if there is none."""
    path = directory / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise VmError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        data = json.loads(text)
        if data.pop("version") != RECORD_VERSION:
            raise VmError(f"{path} was written by another version of this module")
        machine, disk = Machine(**data.pop("machine")), Disk(**data.pop("disk"))
        extra_disks = [Disk(**one) for one in data.pop("extra_disks", [])]
        ports = {name: [Forward(**one) for one in data.pop(name, [])] for name in ("wanted_forwards", "forwards")}
        return Record(machine=machine, disk=disk, extra_disks=extra_disks, **ports, **data)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise VmError(f"{path} is damaged ({exc}): end the VM by hand and remove the directory") from exc


def save_record(directory: Path, record: Record) -> None:
    """Write vm.json so that a reader sees the old or the new one, and nobody else sees anything."""
    text = json.dumps({"version": RECORD_VERSION, **asdict(record)}, indent=2, sort_keys=True) + "\n"
    descriptor, temporary = tempfile.mkstemp(prefix=f".{RECORD}.", dir=directory)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
        os.replace(temporary, directory / RECORD)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def gather(directory: Path) -> Current:
    """The record and the process that belongs to it, also when the run that started it did not come to record it."""
    record = load_record(directory)
    if record is None:
        return Current(None, None)
    process = record.process()
    if process is None and record.phase in INTERRUPTED:
        process = find_by_token(record.token)
    return Current(record, process)


def find_by_token(token: str) -> Process | None:
    """The process that carries this token in its environment; a process number alone proves nothing."""
    entry = f"{TOKEN_VARIABLE}={token}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                return read_process(int(folder.name))
        except OSError:
            continue
    return None
