# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""The smallest guest that tells hardware KVM from software KVM: a counted loop, timed.

The API version, creating a VM and a vCPU, even running a guest up to its HLT all succeed on a host whose KVM emulates
the guest's kernel instruction by instruction. Only the time that a loop takes gives it away: about 1 ns an iteration on
hardware, more than 1 us without.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
import typing as t
from dataclasses import dataclass, field

API_VERSION = 12

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_SET_ONE_REG = 0x4010AEAC
KVM_ARM_VCPU_INIT = 0x4020AEAE
KVM_ARM_PREFERRED_TARGET = 0x8020AEAF

KVM_CAP_ARM_VM_IPA_SIZE = 165

EXIT_NAMES = {
    0: "unknown",
    1: "exception",
    2: "io",
    3: "hypercall",
    4: "debug",
    5: "hlt",
    6: "mmio",
    8: "shutdown",
    9: "fail_entry",
    10: "intr",
    17: "internal_error",
    24: "system_event",
}
EXIT_HLT = 5
EXIT_MMIO = 6

MEMORY_SIZE = 2 * 1024 * 1024
CODE_X86 = b"\xff\xc9\x75\xfc\xf4"  # loop: dec ecx; jnz loop; hlt
# loop: subs x0, x0, #1; b.ne loop; str x0, [x1]; b loop - the store goes to an address without memory and so ends the
# run; the last branch is where the next run continues, whether or not the kernel steps over the store first.
CODE_ARM64 = struct.pack("<4I", 0xF1000400, 0x54FFFFE1, 0xF9000020, 0x17FFFFFD)
CODE_ADDRESS = 0x10000
ARM64_MMIO_ADDRESS = 0x8000000
_ARM64_CORE_REGISTER = 0x6030000000100000
ARM64_X0 = _ARM64_CORE_REGISTER
ARM64_X1 = _ARM64_CORE_REGISTER | (8 // 4)
ARM64_PC = _ARM64_CORE_REGISTER | (256 // 4)


class Buffer(t.Protocol):
    """What mmap objects and bytearrays have in common."""

    def __setitem__(self, key: slice, value: bytes) -> None: ...

    def __getitem__(self, key: slice) -> bytes: ...


class Layer:
    """The system calls the probe needs; tests put their own in its place."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        return fcntl.ioctl(fd, request, argument)

    def guest_memory(self, size: int) -> tuple[Buffer, int]:
        """Anonymous memory and its address in this process."""
        memory = mmap.mmap(-1, size)
        return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def vcpu_state(self, fd: int, size: int) -> Buffer:
        return mmap.mmap(fd, size)

    def clock(self) -> float:
        return time.monotonic()


@dataclass
class Observation:
    """How far the probe came and what it saw; plain data, because it crosses a pipe between processes."""

    step: str = "open"
    errno: int | None = None
    api_version: int | None = None
    exit_reason: int | None = None
    ns_per_iteration: float | None = None
    capabilities: dict[str, int] = field(default_factory=dict)


class ProbeError(Exception):
    """The probe ended early; the observation says where and why."""


CAPABILITIES = {"user_memory": 3, "irqchip": 0, "max_vcpus": 66, "nested_state": 157}


def observe(
    layer: Layer,
    path: str,
    machine: str,
    iterations: int,
    max_ns: float,
    observation: Observation | None = None,
) -> Observation:
    """Open the device and go step by step as far as it works."""
    seen = observation if observation is not None else Observation()
    descriptors: list[int] = []
    try:
        _observe(layer, path, machine, iterations, max_ns, seen, descriptors)
    except OSError as exc:
        seen.errno = exc.errno
    except ProbeError:
        pass
    finally:
        for fd in reversed(descriptors):
            layer.close(fd)
    return seen


def _observe(
    layer: Layer, path: str, machine: str, iterations: int, max_ns: float, seen: Observation, descriptors: list[int]
) -> None:
    seen.step = "open"
    device = layer.open(path)
    descriptors.append(device)

    seen.step = "api_version"
    seen.api_version = layer.ioctl(device, KVM_GET_API_VERSION)
    if seen.api_version != API_VERSION:
        raise ProbeError
    for name, number in CAPABILITIES.items():
        seen.capabilities[name] = layer.ioctl(device, KVM_CHECK_EXTENSION, number)

    seen.step = "create_vm"
    vm = _create_vm(layer, device, machine)
    descriptors.append(vm)

    seen.step = "guest_memory"
    memory, address = layer.guest_memory(MEMORY_SIZE)
    layer.ioctl(vm, KVM_SET_USER_MEMORY_REGION, bytearray(struct.pack("<IIQQQ", 0, 0, 0, MEMORY_SIZE, address)))

    seen.step = "create_vcpu"
    if machine in ("x86_64", "amd64"):
        # Intel without unrestricted guest mode needs the address of three free pages before the first vCPU.
        layer.ioctl(vm, KVM_SET_TSS_ADDR, 0x1000000)
    state_size = layer.ioctl(device, KVM_GET_VCPU_MMAP_SIZE)
    vcpu = layer.ioctl(vm, KVM_CREATE_VCPU, 0)
    descriptors.append(vcpu)
    state = layer.vcpu_state(vcpu, state_size)

    seen.step = "registers"
    if machine in ("x86_64", "amd64"):
        guest: _Guest = _X86Guest(layer, vcpu, memory)
    elif machine in ("aarch64", "arm64"):
        guest = _Arm64Guest(layer, vm, vcpu, memory)
    else:
        seen.step = "architecture"
        raise ProbeError

    seen.step = "run"

    def run(count: int) -> float:
        guest.prepare(count)
        start = layer.clock()
        while True:
            try:
                layer.ioctl(vcpu, KVM_RUN)
                break
            except InterruptedError:  # the caller's timer decides when it is too late, not a stray signal
                continue
        elapsed = layer.clock() - start
        (seen.exit_reason,) = struct.unpack("<I", state[8:12])
        if seen.exit_reason != guest.expected_exit:
            raise ProbeError
        return elapsed

    seen.ns_per_iteration = round(_measure(run, iterations, max_ns), 3)
    seen.step = "done"


def _measure(run: t.Callable[[int], float], iterations: int, max_ns: float) -> float:
    """Nanoseconds for one iteration, from the difference of two loops: entering and leaving a guest cancels out.

    A short pair comes first, because on software-only KVM a long one would take seconds; only where that is fast is a
    long loop worth its time, for a precise figure. The best of three runs is what the machine can do when nothing else
    takes the CPU away.
    """
    run(1)  # pays for the page faults
    short, longer = iterations, 10 * iterations
    base = min(run(short) for _attempt in range(3))
    rate = (min(run(longer) for _attempt in range(3)) - base) / (longer - short) * 1e9
    if rate > max_ns:
        return rate
    longest = 1000 * iterations
    return max(0.0, (min(run(longest) for _attempt in range(2)) - base) / (longest - short) * 1e9)


def _create_vm(layer: Layer, device: int, machine: str) -> int:
    try:
        return layer.ioctl(device, KVM_CREATE_VM, 0)
    except OSError as exc:
        if exc.errno != errno.EINVAL or machine not in ("aarch64", "arm64"):
            raise
        # Machines with less than 40 bits of physical address want the number of bits as the VM's type.
        bits = layer.ioctl(device, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE)
        if bits <= 0:
            raise
        return layer.ioctl(device, KVM_CREATE_VM, bits)


class _Guest(t.Protocol):
    expected_exit: int

    def prepare(self, count: int) -> None: ...


class _X86Guest:
    """Long mode with one 2 MiB page, as any kernel runs: real mode may be emulated even on hardware."""

    expected_exit = EXIT_HLT

    def __init__(self, layer: Layer, vcpu: int, memory: Buffer) -> None:
        self._layer = layer
        self._vcpu = vcpu
        page_map, page_directory_pointers, page_directory = 0x2000, 0x3000, 0x4000
        present_writable, large = 0x3, 0x80
        memory[page_map : page_map + 8] = struct.pack("<Q", page_directory_pointers | present_writable)
        memory[page_directory_pointers : page_directory_pointers + 8] = struct.pack(
            "<Q", page_directory | present_writable
        )
        memory[page_directory : page_directory + 8] = struct.pack("<Q", present_writable | large)
        memory[CODE_ADDRESS : CODE_ADDRESS + len(CODE_X86)] = CODE_X86

        special = bytearray(312)
        layer.ioctl(vcpu, KVM_GET_SREGS, special)
        # base, limit, selector; type, present, dpl, db, s, l, g, avl, unusable, padding
        code = struct.pack("<QIH10B", 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
        data = struct.pack("<QIH10B", 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        special[0 : 6 * 24] = code + 5 * data
        special[224:232] = struct.pack("<Q", 0x80050033)  # cr0: PE MP ET NE WP AM PG
        special[240:248] = struct.pack("<Q", page_map)  # cr3
        special[248:256] = struct.pack("<Q", 0x20)  # cr4: PAE
        special[264:272] = struct.pack("<Q", 0xD00)  # efer: LME LMA NXE
        layer.ioctl(vcpu, KVM_SET_SREGS, special)

    def prepare(self, count: int) -> None:
        registers = [0] * 18
        registers[2], registers[16], registers[17] = count, CODE_ADDRESS, 2  # rcx, rip, rflags
        self._layer.ioctl(self._vcpu, KVM_SET_REGS, bytearray(struct.pack("<18Q", *registers)))


class _Arm64Guest:
    expected_exit = EXIT_MMIO

    def __init__(self, layer: Layer, vm: int, vcpu: int, memory: Buffer) -> None:
        self._layer = layer
        self._vcpu = vcpu
        memory[CODE_ADDRESS : CODE_ADDRESS + len(CODE_ARM64)] = CODE_ARM64
        target = bytearray(32)
        layer.ioctl(vm, KVM_ARM_PREFERRED_TARGET, target)
        layer.ioctl(vcpu, KVM_ARM_VCPU_INIT, target)
        self._set(ARM64_X1, ARM64_MMIO_ADDRESS)
        self._set(ARM64_PC, CODE_ADDRESS)

    def prepare(self, count: int) -> None:
        self._set(ARM64_X0, count)

    def _set(self, register: int, value: int) -> None:
        cell = bytearray(struct.pack("<Q", value))
        address = ctypes.addressof(ctypes.c_char.from_buffer(cell))
        self._layer.ioctl(self._vcpu, KVM_SET_ONE_REG, bytearray(struct.pack("<QQ", register, address)))
