# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""The QEMU command line of a test VM, as a pure function of its description."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

# Names in the runtime directory. QEMU runs with that directory as its current one, so its sockets have short addresses
# (a UNIX socket's is limited to 107 bytes) and a comma in the directory's path cannot break an option.
OVERLAY = "overlay.qcow2"
SEED = "seed.iso"
CONSOLE = "console.log"
QMP_SOCKET = "qmp.sock"
QEMU_LOG = "qemu.log"
PID_FILE = "qemu.pid"
UEFI_VARIABLES = "uefi_vars.fd"
SCREENSHOT = "screenshot.png"
MEMORY = "memory"
DEVICES = "devices"

DISK_NODE = "disk"
MEMORY_NODE = "pc.ram"
MOST_DISKS = 9  # extra ones: their files and nodes have one digit
# The same for all: user-mode networks do not see each other, and a machine restored from another one's snapshot must
# find its own address again when it restarts.
MAC_ADDRESS = "52:54:00:12:34:56"

_UEFI_PAIRS = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
)


@dataclass(frozen=True)
class Machine:
    """What a VM is made of; all of it must be the same when a saved state is restored."""

    machine: str = "q35"
    memory: int = 2048
    cpus: int = 2
    accelerator: str = "tcg"
    cpu_model: str = "max"
    firmware: str = "bios"
    extra_args: list[str] = field(default_factory=list)

    def differences(self, other: Machine) -> list[str]:
        return [
            f"{name} is {getattr(self, name)}, not {getattr(other, name)}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True)
class Forward:
    """A port of the loopback interface (0: a free one) that leads to one of the guest."""

    guest_port: int
    host_port: int = 0
    protocol: str = "tcp"


@dataclass(frozen=True)
class Invocation:
    """One start of a machine: paths are absolute or relative to the runtime directory."""

    binary: str
    name: str
    machine: Machine
    disk: str
    disk_format: str
    disk_cache: str = "writeback"
    extra_disks: int = 0
    seed: str | None = None
    forwards: list[Forward] = field(default_factory=lambda: [Forward(22)])
    uefi_code: str | None = None
    memory_file: str | None = None
    memory_shared: bool = False
    """Whether what the guest writes goes to the file of its memory; else the file stays as it is."""
    paused: bool = False
    incoming: bool = False


def find_uefi(root: str = "/") -> tuple[str, str] | None:
    """The firmware's code and the template of its variables."""
    for code, variables in _UEFI_PAIRS:
        pair = (str(Path(root) / code.lstrip("/")), str(Path(root) / variables.lstrip("/")))
        if all(Path(path).is_file() for path in pair):
            return pair
    return None


def extra_disk(number: int) -> str:
    """The file of the extra disk *number*, counted from 1."""
    return f"disk{number}.qcow2"


def build_command(wanted: Invocation) -> list[str]:
    """The command as a list. Only devices that are named here exist, so a new QEMU does not change the machine."""
    machine = wanted.machine
    board = machine.machine
    flash: list[str] = []
    if wanted.uefi_code is not None:
        board += ",pflash0=uefi_code,pflash1=uefi_vars"
        flash = [
            *_blockdev("uefi_code", "raw", wanted.uefi_code, {"read-only": True}),
            *_blockdev("uefi_vars", "raw", UEFI_VARIABLES, {}),
        ]
    writable: dict[str, t.Any] = {"discard": "unmap", "detect-zeroes": "unmap"}
    if wanted.disk_cache == "unsafe":
        writable["cache"] = {"no-flush": True}
    memory: list[str] = []
    if wanted.memory_file is not None:
        # The name that QEMU's own memory has, so that snapshots inside the disk fit with and without the file.
        backend = {"qom-type": "memory-backend-file", "id": MEMORY_NODE, "size": machine.memory * 1024 * 1024}
        backend |= {"mem-path": wanted.memory_file, "share": wanted.memory_shared}
        board += f",memory-backend={MEMORY_NODE}"
        memory = ["-object", json.dumps(backend)]
    forwards = [f"hostfwd={one.protocol}:127.0.0.1:{one.host_port}-:{one.guest_port}" for one in wanted.forwards]
    thread = ",thread=multi" if machine.accelerator == "tcg" and machine.cpus > 1 else ""
    command = [
        wanted.binary,
        *("-name", wanted.name.replace(",", ",,")),
        *("-nodefaults", "-no-user-config"),
        *("-machine", board),
        *("-accel", machine.accelerator + thread),
        *("-cpu", machine.cpu_model),
        *("-smp", str(machine.cpus)),
        *("-m", str(machine.memory)),
        *memory,
        *("-display", "none", "-device", "VGA"),
        *("-chardev", f"file,id=console,path={CONSOLE},append=on", "-serial", "chardev:console"),
        *("-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"),
        *("-pidfile", PID_FILE),
        *("-rtc", "base=utc"),
        *flash,
        *_blockdev(DISK_NODE, wanted.disk_format, wanted.disk, writable),
        *("-device", f"virtio-blk-pci,drive={DISK_NODE},bootindex=1"),
        *("-netdev", ",".join(["user,id=net,ipv6=off", *forwards])),
        *("-device", f"virtio-net-pci,netdev=net,mac={MAC_ADDRESS}"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
    ]
    for number in range(1, wanted.extra_disks + 1):
        command += _blockdev(f"{DISK_NODE}{number}", "qcow2", extra_disk(number), writable)
        command += ["-device", f"virtio-blk-pci,drive={DISK_NODE}{number},serial={DISK_NODE}{number}"]
    if wanted.seed is not None:
        # No CD: the kernel that Debian 12 has for clouds knows no drive of one. Last, or it would rename the others.
        command += _blockdev("seed", "raw", wanted.seed, {"read-only": True})
        command += ["-device", "virtio-blk-pci,drive=seed"]
    if wanted.paused:
        command.append("-S")
    if wanted.incoming:
        command += ["-incoming", "defer"]
    return [*command, *machine.extra_args]


def _blockdev(node: str, driver: str, path: str, options: dict[str, t.Any]) -> list[str]:
    """As JSON, because a path may contain commas and equals signs."""
    file_options = {name: options[name] for name in ("read-only", "discard", "cache") if name in options}
    description = {"node-name": node, "driver": driver, **options}
    description["file"] = {"driver": "file", "filename": path, **file_options}
    return ["-blockdev", json.dumps(description)]
