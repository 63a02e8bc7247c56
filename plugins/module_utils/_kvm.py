# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Can this machine run VMs through KVM, and is that faster than emulating them?"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import select
import signal
import stat
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _kvm_ec2
from ansible_collections.goldsmith.images.plugins.module_utils._kvm_ioctl import (
    API_VERSION,
    EXIT_NAMES,
    Layer,
    Observation,
    observe,
)

ARM64_MACHINES = ("aarch64", "arm64")
BACKENDS = ("kvm_intel", "kvm_amd", "kvm_pvm")

REASONS = (
    "ok",
    "emulated",
    "no_device",
    "eacces",
    "eperm",
    "enodev",
    "ebusy",
    "open_failed",
    "api_version",
    "create_vm_failed",
    "run_failed",
    "unsupported_architecture",
)

# What must have succeeded; the two highest levels are the verdict's own.
_LEVELS = {"device": ("open",), "api": ("open", "api_version"), "vm": ("open", "api_version", "create_vm")}
LEVELS = (*_LEVELS, "run", "accelerated")

_OPEN_REASONS = {
    errno.ENOENT: "no_device",
    errno.ENOTDIR: "no_device",
    errno.EACCES: "eacces",
    errno.EPERM: "eperm",
    errno.ENODEV: "enodev",
    errno.ENXIO: "enodev",
    errno.EBUSY: "ebusy",
}


class KvmError(Exception):
    """The check itself could not be made (not: KVM does not work)."""


@dataclass(frozen=True)
class Verdict:
    usable: bool
    accelerated: bool
    reason: str


@dataclass(frozen=True)
class Device:
    path: str
    exists: bool
    mode: str | None = None
    owner: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Host:
    """What the machine says about itself, without the device being opened."""

    machine: str
    device: Device
    backend: str
    cpu_flags: list[str]
    hypervisor: str | None
    nested_param: bool | None
    instance: _kvm_ec2.Instance

    @property
    def has_flag(self) -> bool:
        return bool({"vmx", "svm"} & set(self.cpu_flags))


def judge(seen: Observation, max_ns: float) -> Verdict:
    """The verdict on what the probe saw."""
    if seen.step == "done" and seen.ns_per_iteration is not None:
        accelerated = seen.ns_per_iteration <= max_ns
        return Verdict(usable=True, accelerated=accelerated, reason="ok" if accelerated else "emulated")
    if seen.step == "architecture":
        reason = "unsupported_architecture"
    elif seen.step == "open":
        reason = _OPEN_REASONS.get(seen.errno or 0, "open_failed")
    elif seen.step == "api_version":
        # An ordinary file in place of the device answers ENOTTY.
        reason = _OPEN_REASONS.get(seen.errno or 0, "api_version")
    elif seen.errno == errno.EBUSY:
        reason = "ebusy"
    elif seen.step == "create_vm":
        reason = "create_vm_failed"
    else:
        reason = "run_failed"
    return Verdict(usable=False, accelerated=False, reason=reason)


def reaches(level: str, verdict: Verdict, seen: Observation) -> bool:
    """Whether the probe came as far as the level demands."""
    if level == "accelerated":
        return verdict.accelerated
    if level == "run":
        return verdict.usable
    return seen.step not in _LEVELS[level]


def probe(
    path: str, machine: str, iterations: int, max_ns: float, timeout: float, layer: Layer | None = None
) -> Observation:
    """Run the probe in a child process, so that nothing it does can hang this one or leave a descriptor in it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _probe_in_child(writer, path, machine, iterations, max_ns, timeout, layer or Layer())
    os.close(writer)
    try:
        # The child's own timer comes first; this one is for a system call that no signal can interrupt.
        answer = _read_all(reader, time.monotonic() + timeout + 1.0)
    finally:
        os.close(reader)
        status = _end(child)
    if answer:
        # Unfinished states are sent as they are reached: the last complete line is how far it came.
        seen = Observation(**json.loads(answer.splitlines()[-1]))
        if seen.step != "done" and seen.errno is None and status is not None and os.WIFSIGNALED(status):
            seen.errno = errno.ETIMEDOUT if os.WTERMSIG(status) == signal.SIGKILL else errno.EINTR
        return seen
    raise KvmError(f"the probe of {path} ended without an answer (status {status})")


def _probe_in_child(
    writer: int, path: str, machine: str, iterations: int, max_ns: float, timeout: float, layer: Layer
) -> t.NoReturn:
    class Expired(Exception):
        pass

    def expire(_signal: int, _frame: object) -> None:
        raise Expired

    seen = _Reporting(writer)
    try:
        signal.signal(signal.SIGALRM, expire)
        # Repeated, because the first signal is lost if it comes just before KVM_RUN is entered.
        signal.setitimer(signal.ITIMER_REAL, timeout, 0.05)
        observe(layer, path, machine, iterations, max_ns, seen)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen.report()
        os._exit(0)
    except Expired:
        seen.errno = errno.ETIMEDOUT
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen.report()
        os._exit(0)
    except BaseException:  # never return into the parent's code
        os._exit(70)


class _Reporting(Observation):
    """Sends every new step at once: the parent then knows where a killed child was."""

    def __init__(self, writer: int) -> None:
        self._writer = -1
        super().__init__()
        self._writer = writer
        self.report()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "step" and self._writer >= 0:
            self.report()

    def report(self) -> None:
        line = {name: getattr(self, name) for name in Observation.__dataclass_fields__}
        os.write(self._writer, json.dumps(line).encode() + b"\n")


def _read_all(reader: int, deadline: float) -> bytes:
    chunks = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        chunks += chunk
    return chunks[: chunks.rfind(b"\n") + 1]


def _end(child: int) -> int | None:
    """Reap the child; one that hangs in the kernel is killed and, if even that does not help, left behind."""
    for attempt in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if attempt == 20:  # it closed the pipe or ran over the deadline: 20 ms are enough for an exit
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.001 if attempt < 100 else 0.01)
    return None


def gather_host(
    path: str,
    machine: str | None = None,
    root: str = "/",
    ec2: t.Mapping[str, t.Any] | None = None,
    imds_endpoint: str | None = None,
) -> Host:
    """Facts from /proc and /sys, and from the network if an endpoint is given; ``root`` is another folder in tests."""
    machine = machine or platform.machine()
    base = Path(root)
    flags = _cpu_flags(base / "proc/cpuinfo")
    vendor = _read(base / "sys/class/dmi/id/sys_vendor")
    product = _read(base / "sys/class/dmi/id/product_name")
    modules = base / "sys/module"
    backend = next((name for name in BACKENDS if (modules / name).exists()), "unknown")
    device = gather_device(path)
    if machine in ARM64_MACHINES and device.exists:
        backend = "arm64"
    nested = _read(modules / backend / "parameters/nested")
    hypervisor = None
    if "hypervisor" in flags or (base / "sys/hypervisor/type").exists():
        hypervisor = _read(base / "sys/hypervisor/type") or vendor or "unknown"
    return Host(
        machine=machine,
        device=device,
        backend=backend,
        cpu_flags=[flag for flag in ("vmx", "svm", "hypervisor") if flag in flags],
        hypervisor=hypervisor,
        nested_param=None if nested is None else nested in ("Y", "1"),
        instance=_kvm_ec2.gather(ec2, imds_endpoint, product if vendor == "Amazon EC2" else None),
    )


def gather_device(path: str) -> Device:
    try:
        found = os.stat(path)
    except OSError:
        return Device(path=path, exists=False)
    return Device(
        path=path,
        exists=True,
        mode=f"{stat.S_IMODE(found.st_mode):04o}",
        owner=_account("pwd", found.st_uid),
        group=_account("grp", found.st_gid),
    )


def _account(database: str, number: int) -> str:
    try:
        if database == "pwd":
            import pwd

            return pwd.getpwuid(number).pw_name
        import grp

        return grp.getgrgid(number).gr_name
    except (ImportError, KeyError):
        return str(number)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _cpu_flags(path: Path) -> set[str]:
    for line in (_read(path) or "").splitlines():
        name, _colon, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def kvm_ok_equivalent(host: Host) -> dict[str, t.Any]:
    """What kvm-ok (cpu-checker) would say: it opens nothing and runs nothing."""
    if host.machine not in ARM64_MACHINES and not host.has_flag:
        return {"usable": False, "message": "Your CPU does not support KVM extensions"}
    if host.device.exists:
        return {"usable": True, "message": "KVM acceleration can be used"}
    return {"usable": False, "message": f"{host.device.path} does not exist"}


def hint(verdict: Verdict, seen: Observation, host: Host) -> str:
    """What to do about it, in one or two sentences; empty if there is nothing to do."""
    device = host.device
    if verdict.reason == "ok":
        return ""
    if verdict.reason == "emulated":
        return (
            f"KVM runs guests here, but in software: {seen.ns_per_iteration:.0f} ns for what takes hardware 1 ns. "
            "Use TCG (accelerator tcg), which is much faster than this."
        )
    if verdict.reason == "no_device":
        return _hint_no_device(host)
    if verdict.reason == "eacces":
        group = device.group if device.group not in (None, "root") else "kvm"
        return (
            f"{device.path} has mode {device.mode} and belongs to {device.owner}:{device.group}. "
            f"Join the group {group} (usermod -aG {group} USER, then log in again)"
            + ("; the udev rule that gives the device to that group is missing." if device.group == "root" else ".")
        )
    if verdict.reason == "eperm":
        return (
            f"The kernel refuses {device.path} although its mode would allow it: a container's device policy or "
            f"a seccomp filter. Give the container the device (--device {device.path})."
        )
    if verdict.reason == "enodev":
        return f"{device.path} is a node without a driver behind it. " + _hint_no_device(host)
    if verdict.reason == "ebusy":
        return "Another hypervisor on this machine (VirtualBox, VMware) holds the CPU's virtualisation; stop it."
    if verdict.reason == "api_version":
        return f"{device.path} is not the KVM device: API version {seen.api_version}, expected {API_VERSION}."
    if verdict.reason == "unsupported_architecture":
        return f"There is no timed guest for {host.machine}; whether KVM is fast here is not known."
    if seen.errno == errno.ETIMEDOUT:
        return f"The guest did not come back (step {seen.step}). Use TCG (accelerator tcg)."
    detail = os.strerror(seen.errno) if seen.errno else f"exit reason {exit_name(seen.exit_reason)}"
    return f"KVM failed in the step {seen.step}: {detail}. Use TCG (accelerator tcg) and see the kernel's log."


def _hint_no_device(host: Host) -> str:
    ec2_hint = diagnose_ec2(host, accelerated=False)[1]
    if ec2_hint:
        return ec2_hint
    if host.machine in ARM64_MACHINES:
        return "KVM on arm64 needs a kernel that was booted in EL2; a virtual machine usually is not."
    if not host.has_flag:
        where = "in the hypervisor's settings of this VM (nested)" if host.hypervisor else "in the firmware's setup"
        return f"The CPU shows neither vmx nor svm: switch virtualisation on {where}."
    module = "kvm_intel" if "vmx" in host.cpu_flags else "kvm_amd"
    return f"The CPU can do it, but the module is not loaded: modprobe {module} (if it refuses: the firmware's setup)."


def diagnose_ec2(host: Host, accelerated: bool) -> tuple[str | None, str]:
    return _kvm_ec2.diagnose(host.instance, accelerated, host.has_flag, module_loaded=host.backend != "unknown")


def exit_name(number: int | None) -> str | None:
    return None if number is None else EXIT_NAMES.get(number, str(number))


def report(verdict: Verdict, seen: Observation, host: Host) -> dict[str, t.Any]:
    """The module's return values."""
    return {
        "usable": verdict.usable,
        "accelerated": verdict.accelerated,
        "reason": verdict.reason,
        "backend": host.backend,
        "errno": None if seen.errno is None else errno.errorcode.get(seen.errno, str(seen.errno)),
        "api_version": seen.api_version,
        "caps": seen.capabilities,
        "device": asdict(host.device),
        "cpu_flags": host.cpu_flags,
        "hypervisor": host.hypervisor,
        "nested_param": host.nested_param,
        "probe": {
            "step": seen.step,
            "exit_reason": exit_name(seen.exit_reason),
            "ns_per_iteration": seen.ns_per_iteration,
        },
        "kvm_ok_equivalent": kvm_ok_equivalent(host),
        "hint": hint(verdict, seen, host),
        "ec2": _kvm_ec2.report(host.instance, diagnose_ec2(host, verdict.accelerated)[0]),
    }
