# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvm_check's verdicts, on a device layer that answers as kernels do (errno values as measured or documented)."""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm, _kvm_ioctl

HARDWARE_NS = 0.4
SOFTWARE_NS = 1100.0
MAX_NS = 50.0


@dataclass
class FakeKvm:
    """A kernel whose guest takes ns_per_iteration plus an entry cost; errors: request -> errno."""

    machine: str = "x86_64"
    errors: dict[int, int] = field(default_factory=dict)
    open_errno: int | None = None
    api_version: int = 12
    ns_per_iteration: float = HARDWARE_NS
    entry_ns: float = 30_000.0
    exit_reason: int | None = None
    small_ipa: bool = False
    now: float = 0.0
    open_descriptors: set[int] = field(default_factory=set)
    created_with: list[int] = field(default_factory=list)
    interruptions: int = 0

    def _new(self) -> int:
        fd = 100 + len(self.open_descriptors)
        self.open_descriptors.add(fd)
        return fd

    def open(self, path: str) -> int:
        if self.open_errno:
            raise OSError(self.open_errno, os.strerror(self.open_errno))
        return self._new()

    def close(self, fd: int) -> None:
        self.open_descriptors.remove(fd)

    def clock(self) -> float:
        return self.now

    def guest_memory(self, size: int) -> tuple[bytearray, int]:
        return bytearray(size), 0x7F0000000000

    def vcpu_state(self, fd: int, size: int) -> bytearray:
        self.state = bytearray(size)
        return self.state

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        assert fd in self.open_descriptors
        if request == _kvm_ioctl.KVM_CREATE_VM:
            assert isinstance(argument, int)
            self.created_with.append(argument)
            if self.small_ipa and argument == 0:
                raise OSError(errno.EINVAL, "Invalid argument")
        if request in self.errors:
            code = self.errors[request]
            raise OSError(code, os.strerror(code))
        if request == _kvm_ioctl.KVM_GET_API_VERSION:
            return self.api_version
        if request == _kvm_ioctl.KVM_CHECK_EXTENSION:
            return 36 if argument == _kvm_ioctl.KVM_CAP_ARM_VM_IPA_SIZE else 1
        if request == _kvm_ioctl.KVM_GET_VCPU_MMAP_SIZE:
            return 12288
        if request in (_kvm_ioctl.KVM_CREATE_VM, _kvm_ioctl.KVM_CREATE_VCPU):
            return self._new()
        if request == _kvm_ioctl.KVM_SET_REGS:
            self.count = struct.unpack("<18Q", argument)[2]
        if request == _kvm_ioctl.KVM_SET_ONE_REG:
            register, address = struct.unpack("<QQ", argument)
            assert register >> 48 == 0x6030
            assert address
            self.count = 1000
        if request == _kvm_ioctl.KVM_RUN:
            if self.interruptions:
                self.interruptions -= 1
                raise InterruptedError(errno.EINTR, "Interrupted system call")
            self.now += (self.entry_ns + self.count * self.ns_per_iteration) / 1e9
            usual = _kvm_ioctl.EXIT_MMIO if self.machine == "aarch64" else _kvm_ioctl.EXIT_HLT
            self.state[8:12] = struct.pack("<I", usual if self.exit_reason is None else self.exit_reason)
        return 0


def check(kvm: FakeKvm, max_ns: float = MAX_NS) -> tuple[_kvm.Verdict, _kvm_ioctl.Observation]:
    seen = _kvm_ioctl.observe(kvm, "/dev/kvm", kvm.machine, 1000, max_ns)
    assert not kvm.open_descriptors, "a file descriptor was left"
    return _kvm.judge(seen, max_ns), seen


def test_hardware_is_accelerated() -> None:
    verdict, seen = check(FakeKvm())
    assert verdict == _kvm.Verdict(usable=True, accelerated=True, reason="ok")
    assert seen.ns_per_iteration == pytest.approx(HARDWARE_NS, rel=0.01)


def test_slow_entries_as_in_nested_virtualisation_do_not_count() -> None:
    verdict, seen = check(FakeKvm(entry_ns=200_000.0))
    assert verdict.accelerated
    assert seen.ns_per_iteration == pytest.approx(HARDWARE_NS, rel=0.01)


def test_software_kvm_is_usable_but_not_accelerated_and_decided_quickly() -> None:
    kvm = FakeKvm(ns_per_iteration=SOFTWARE_NS)
    verdict, seen = check(kvm)
    assert verdict == _kvm.Verdict(usable=True, accelerated=False, reason="emulated")
    assert seen.ns_per_iteration == pytest.approx(SOFTWARE_NS, rel=0.01)
    assert kvm.now < 0.1


def test_interrupted_run_is_resumed() -> None:
    verdict, _seen = check(FakeKvm(interruptions=3))
    assert verdict.accelerated


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOENT, "no_device"),
        (errno.ENOTDIR, "no_device"),
        (errno.EACCES, "eacces"),
        (errno.EPERM, "eperm"),
        (errno.ENODEV, "enodev"),
        (errno.ENXIO, "enodev"),
        (errno.EBUSY, "ebusy"),
        (errno.EMFILE, "open_failed"),
    ],
)
def test_open_errors(code: int, reason: str) -> None:
    verdict, seen = check(FakeKvm(open_errno=code))
    assert verdict == _kvm.Verdict(usable=False, accelerated=False, reason=reason)
    assert seen.errno == code


@pytest.mark.parametrize(
    ("request_code", "code", "reason", "step"),
    [
        (_kvm_ioctl.KVM_GET_API_VERSION, errno.ENOTTY, "api_version", "api_version"),
        (_kvm_ioctl.KVM_GET_API_VERSION, errno.EPERM, "eperm", "api_version"),
        (_kvm_ioctl.KVM_CREATE_VM, errno.EBUSY, "ebusy", "create_vm"),
        (_kvm_ioctl.KVM_CREATE_VM, errno.ENOMEM, "create_vm_failed", "create_vm"),
        (_kvm_ioctl.KVM_CREATE_VM, errno.EINVAL, "create_vm_failed", "create_vm"),
        (_kvm_ioctl.KVM_SET_USER_MEMORY_REGION, errno.EINVAL, "run_failed", "guest_memory"),
        (_kvm_ioctl.KVM_CREATE_VCPU, errno.EBUSY, "ebusy", "create_vcpu"),
        (_kvm_ioctl.KVM_CREATE_VCPU, errno.ENOMEM, "run_failed", "create_vcpu"),
        (_kvm_ioctl.KVM_SET_SREGS, errno.EINVAL, "run_failed", "registers"),
        (_kvm_ioctl.KVM_RUN, errno.EFAULT, "run_failed", "run"),
        (_kvm_ioctl.KVM_RUN, errno.ENOEXEC, "run_failed", "run"),
    ],
)
def test_ioctl_errors(request_code: int, code: int, reason: str, step: str) -> None:
    verdict, seen = check(FakeKvm(errors={request_code: code}))
    assert (verdict.usable, verdict.reason, seen.step, seen.errno) == (False, reason, step, code)


X86_REQUESTS = (
    _kvm_ioctl.KVM_GET_API_VERSION,
    _kvm_ioctl.KVM_CHECK_EXTENSION,
    _kvm_ioctl.KVM_CREATE_VM,
    _kvm_ioctl.KVM_SET_USER_MEMORY_REGION,
    _kvm_ioctl.KVM_SET_TSS_ADDR,
    _kvm_ioctl.KVM_GET_VCPU_MMAP_SIZE,
    _kvm_ioctl.KVM_CREATE_VCPU,
    _kvm_ioctl.KVM_GET_SREGS,
    _kvm_ioctl.KVM_SET_SREGS,
    _kvm_ioctl.KVM_SET_REGS,
    _kvm_ioctl.KVM_RUN,
)
ARM64_REQUESTS = (
    *(request for request in X86_REQUESTS[:7] if request != _kvm_ioctl.KVM_SET_TSS_ADDR),
    _kvm_ioctl.KVM_ARM_PREFERRED_TARGET,
    _kvm_ioctl.KVM_ARM_VCPU_INIT,
    _kvm_ioctl.KVM_SET_ONE_REG,
    _kvm_ioctl.KVM_RUN,
)


@pytest.mark.parametrize(
    ("machine", "request_code"),
    [*(("x86_64", code) for code in X86_REQUESTS), *(("aarch64", code) for code in ARM64_REQUESTS)],
)
def test_any_refused_request_is_a_reason_and_leaves_no_descriptor(machine: str, request_code: int) -> None:
    verdict, seen = check(FakeKvm(machine=machine, errors={request_code: errno.EIO}))
    assert not verdict.usable
    assert verdict.reason in _kvm.REASONS
    assert (seen.errno, seen.step == "done") == (errno.EIO, False)


@pytest.mark.parametrize("call", ["guest_memory", "vcpu_state"])
def test_memory_that_cannot_be_mapped(call: str) -> None:
    class NoMemory(FakeKvm):
        pass

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    setattr(NoMemory, call, refuse)
    verdict, seen = check(NoMemory())
    assert (verdict.reason, seen.errno) == ("run_failed", errno.ENOMEM)


@pytest.mark.parametrize(
    ("kvm", "highest"),
    [
        (FakeKvm(open_errno=errno.EACCES), None),
        (FakeKvm(api_version=11), "device"),
        (FakeKvm(errors={_kvm_ioctl.KVM_CREATE_VM: errno.EBUSY}), "api"),
        (FakeKvm(errors={_kvm_ioctl.KVM_CREATE_VCPU: errno.ENOMEM}), "vm"),
        (FakeKvm(machine="riscv64"), "vm"),
        (FakeKvm(ns_per_iteration=SOFTWARE_NS), "run"),
        (FakeKvm(), "accelerated"),
    ],
)
def test_levels(kvm: FakeKvm, highest: str | None) -> None:
    verdict, seen = check(kvm)
    expected = 0 if highest is None else _kvm.LEVELS.index(highest) + 1
    assert [_kvm.reaches(level, verdict, seen) for level in _kvm.LEVELS] == [
        number < expected for number in range(len(_kvm.LEVELS))
    ]


def test_other_api_version() -> None:
    verdict, seen = check(FakeKvm(api_version=11))
    assert (verdict.reason, seen.api_version) == ("api_version", 11)


@pytest.mark.parametrize("exit_reason", [8, 9, 17])
def test_guest_that_does_not_reach_its_end(exit_reason: int) -> None:
    verdict, seen = check(FakeKvm(exit_reason=exit_reason))
    assert (verdict.usable, verdict.reason, seen.exit_reason) == (False, "run_failed", exit_reason)


def test_arm64() -> None:
    kvm = FakeKvm(machine="aarch64", ns_per_iteration=0)
    verdict, seen = check(kvm)
    assert verdict.accelerated
    assert seen.exit_reason == _kvm_ioctl.EXIT_MMIO
    assert kvm.created_with == [0]


def test_arm64_with_less_than_40_address_bits() -> None:
    kvm = FakeKvm(machine="aarch64", ns_per_iteration=0, small_ipa=True)
    verdict, _seen = check(kvm)
    assert verdict.usable
    assert kvm.created_with == [0, 36]


def test_unknown_architecture_says_so() -> None:
    verdict, _seen = check(FakeKvm(machine="riscv64"))
    assert (verdict.usable, verdict.reason) == (False, "unsupported_architecture")


class Stuck(_kvm_ioctl.Layer):
    """A device whose open() hangs."""

    def open(self, path: str) -> int:
        while True:
            time.sleep(10)


class Unkillable(Stuck):
    """As far as a program can act it: no signal but SIGKILL ends it."""

    def open(self, path: str) -> int:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return super().open(path)


@pytest.mark.parametrize("layer", [Stuck(), Unkillable()])
def test_hanging_device_is_given_up(layer: _kvm_ioctl.Layer) -> None:
    before = descriptors_and_children()
    seen = _kvm.probe("/dev/kvm", "x86_64", 1000, MAX_NS, 0.2, layer)
    assert (seen.step, seen.errno) == ("open", errno.ETIMEDOUT)
    assert descriptors_and_children() == before


def descriptors_and_children() -> tuple[set[str], str]:
    return set(os.listdir("/proc/self/fd")), Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8")


class Killed(_kvm_ioctl.Layer):
    """A seccomp filter that kills."""

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        os.kill(os.getpid(), signal.SIGSYS)
        return 0


def test_probe_killed_by_a_filter_reports_the_step() -> None:
    seen = _kvm.probe("/dev/null", "x86_64", 1000, MAX_NS, 0.5, Killed())
    assert seen.step == "api_version"
    assert not _kvm.judge(seen, MAX_NS).usable


def test_ordinary_file_instead_of_the_device(tmp_path: Path) -> None:
    node = tmp_path / "kvm"
    node.touch()
    seen = _kvm.probe(str(node), "x86_64", 1000, MAX_NS, 0.5)
    assert (_kvm.judge(seen, MAX_NS).reason, seen.errno) == ("api_version", errno.ENOTTY)


def host(tmp_path: Path, machine: str = "x86_64", flags: str = "", **files: str) -> _kvm.Host:
    cpuinfo = tmp_path / "proc/cpuinfo"
    cpuinfo.parent.mkdir()
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return _kvm.gather_host(str(tmp_path / "dev/kvm"), machine, str(tmp_path))


def hint_for(found: _kvm.Host, seen: _kvm_ioctl.Observation) -> str:
    return _kvm.hint(_kvm.judge(seen, MAX_NS), seen, found)


def test_host_facts(tmp_path: Path) -> None:
    files = {
        "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
        "sys/class/dmi/id/product_name": "c5.2xlarge\n",
        "sys/module/kvm_intel/parameters/nested": "Y\n",
        "dev/kvm": "",
    }
    found = host(tmp_path, flags="vmx hypervisor", **files)
    assert found.backend == "kvm_intel"
    assert found.cpu_flags == ["vmx", "hypervisor"]
    assert found.hypervisor == "Amazon EC2"
    assert found.nested_param is True
    assert (found.instance.instance_type, found.instance.source) == ("c5.2xlarge", "dmi")
    assert found.device.exists
    assert found.device.mode == "0644"


def test_ec2_instance_without_nested_virtualisation_is_told_about_the_option(tmp_path: Path) -> None:
    files = {
        "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
        "sys/class/dmi/id/product_name": "m8i.large\n",
    }
    found = host(tmp_path, flags="hypervisor", **files)
    text = hint_for(found, _kvm_ioctl.Observation(step="open", errno=errno.ENOENT))
    assert "m8i.large" in text
    assert "NestedVirtualization=enabled" in text


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "", "firmware's setup"),
        ("x86_64", "hypervisor", "nested"),
        ("x86_64", "vmx", "modprobe kvm_intel"),
        ("x86_64", "svm", "modprobe kvm_amd"),
        ("aarch64", "", "EL2"),
    ],
)
def test_hint_without_device(tmp_path: Path, machine: str, flags: str, expected: str) -> None:
    found = host(tmp_path, machine, flags)
    assert expected in hint_for(found, _kvm_ioctl.Observation(step="open", errno=errno.ENOENT))


def test_hint_without_permission_names_the_group(tmp_path: Path) -> None:
    found = host(tmp_path, flags="vmx", **{"dev/kvm": ""})
    assert "group kvm" in hint_for(found, _kvm_ioctl.Observation(step="open", errno=errno.EACCES))


@pytest.mark.parametrize("reason", _kvm.REASONS)
def test_every_reason_but_ok_has_a_hint(tmp_path: Path, reason: str) -> None:
    found = host(tmp_path)
    seen = _kvm_ioctl.Observation(step="run", errno=errno.EIO, ns_per_iteration=SOFTWARE_NS)
    text = _kvm.hint(_kvm.Verdict(usable=False, accelerated=False, reason=reason), seen, found)
    assert bool(text) == (reason != "ok")


@pytest.mark.parametrize(
    ("machine", "flags", "device", "usable"),
    [
        ("x86_64", "", True, False),  # software-only KVM: wrong, and the reason for this module
        ("x86_64", "vmx", True, True),
        ("x86_64", "vmx", False, False),
        ("aarch64", "", True, True),
    ],
)
def test_what_kvm_ok_would_say(tmp_path: Path, machine: str, flags: str, device: bool, usable: bool) -> None:
    found = host(tmp_path, machine, flags, **({"dev/kvm": ""} if device else {}))
    assert _kvm.kvm_ok_equivalent(found)["usable"] is usable
