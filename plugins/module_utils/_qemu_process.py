# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""End a VM's process and no other one, wait for it, and let it not outlive the play if so wanted."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process, find_owner

GUARD_GRACE = 10.0


def open_process(process: Process) -> int | None:
    """A descriptor that stands for this very process even if its number is given to another one; None if it ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.alive():
        return descriptor
    os.close(descriptor)
    return None


def wait(process: Process, timeout: float) -> bool:
    """Wait for the end of a process that need not be a child; False if it still runs."""
    descriptor = open_process(process)
    if descriptor is None:
        return True
    try:
        return _wait(descriptor, timeout)
    finally:
        os.close(descriptor)


def end(process: Process, grace: float) -> None:
    """SIGTERM (QEMU closes its disks), after the grace period SIGKILL."""
    descriptor = open_process(process)
    if descriptor is None:
        return
    try:
        _end(descriptor, grace)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    ended = bool(poll.poll(max(0, int(timeout * 1000))))
    if ended:
        # If it is a child of this process it stays a zombie until it is asked for.
        with contextlib.suppress(ChildProcessError, OSError):
            os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    return ended


def _end(descriptor: int, grace: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not _wait(descriptor, grace):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _wait(descriptor, grace)


def guard(vm: Process) -> None:
    """Leave a small process behind that ends the VM when the play that runs this module has ended, however it ended."""
    owner = find_owner()
    intermediate = os.fork()
    if intermediate:
        os.waitpid(intermediate, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _guard(owner, vm)
    finally:
        os._exit(0)


def _guard(owner: Process, vm: Process) -> t.NoReturn:
    # Ansible waits until nobody holds the module's output open any more.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    machine = open_process(vm)
    if machine is not None:
        play = open_process(owner)
        if play is not None:
            poll = select.poll()
            poll.register(machine, select.POLLIN)
            poll.register(play, select.POLLIN)
            while not poll.poll():
                pass
        _end(machine, GUARD_GRACE)
    os._exit(0)
