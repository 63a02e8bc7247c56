# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""What the host has for a VM: an accelerator, memory and room on the disk."""

from __future__ import annotations

import os
import shutil
import socket
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _host_memory, _kvm
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_command import Forward
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_state import VmError

KVM_DEVICE = "/dev/kvm"
MIB = 1024 * 1024
QEMU_MEMORY = 256  # MiB that QEMU itself takes beside the guest's memory, the buffer of translated code above all
START_SPACE = 64  # MiB that a guest writes before it answers


def check_kvm() -> dict[str, t.Any]:
    """What kvm_check returns with its defaults, as far as it is of use for a VM of this module."""
    host = _kvm.gather_host(KVM_DEVICE)
    if host.machine not in ("x86_64", "amd64"):
        hint = f"KVM of {host.machine} does not run x86-64 guests."
        return {"accelerated": False, "reason": "unsupported_architecture", "hint": hint}
    max_ns = 50.0
    try:
        seen = _kvm.probe(KVM_DEVICE, host.machine, 1000, max_ns, 2.0)
    except _kvm.KvmError as exc:
        return {"accelerated": False, "reason": "unknown", "hint": f"{exc}."}
    return _kvm.report(_kvm.judge(seen, max_ns), seen, host)


def choose_accelerator(policy: str, check: t.Callable[[], dict[str, t.Any]] = check_kvm) -> str:
    """What a policy means on this host. KVM that emulates in software is slower than TCG, so it does not count."""
    if policy in ("kvm", "tcg"):
        return policy
    if policy == "forbid":
        return "tcg"
    found = check()
    if found["accelerated"]:
        return "kvm"
    if policy == "require":
        raise VmError(f"KVM is required, but it is not accelerated here ({found['reason']}). {found['hint']}")
    return "tcg"


def default_cpu_model(accelerator: str, qemu_version: str) -> str:
    # QEMU 7.2's emulation of newer CPUs panics Linux 6.12 (double fault around cmpxchg16b).
    return "qemu64" if accelerator == "tcg" and int(qemu_version.split(".")[0]) < 8 else "max"


def check_memory(memory: int) -> None:
    """Refuse a guest that the host has no memory for; the kernel would end some process instead."""
    found = _host_memory.available()
    needed = memory + QEMU_MEMORY
    if found is not None and found // MIB < needed:
        raise VmError(f"too little memory: {needed} MiB needed, {found // MIB} MiB available")


def check_port(forward: Forward) -> None:
    """Refuse a port of the loopback interface that somebody listens on."""
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        # As QEMU does it: connections that have ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", forward.host_port))
            if forward.protocol == "tcp":
                probe.listen()
        except OSError as exc:
            raise VmError(f"the {forward.protocol} port {forward.host_port} cannot be had: {exc.strerror}") from exc


def check_directory(directory: Path) -> None:
    """Refuse a directory that can be neither made nor written to."""
    existing = [parent for parent in (directory, *directory.parents) if parent.exists()][0]
    if not existing.is_dir():
        raise VmError(f"cannot make {directory}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise VmError(f"cannot write to {existing}")


def check_space(directory: Path, copies: t.Iterable[Path], memory: int = 0) -> None:
    """Refuse a start without room for the copies, for *memory* (MiB) in a file, and for what a guest writes at boot."""
    existing = [parent for parent in (directory, *directory.parents) if parent.exists()][0]
    copied = sum(path.stat().st_blocks * 512 for path in copies)
    needed = copied // MIB + memory + START_SPACE
    free = shutil.disk_usage(existing).free // MIB
    if free < needed:
        raise VmError(f"too little room in {existing}: {needed} MiB needed, {free} MiB free")
