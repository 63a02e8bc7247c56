# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""End a process when the play it belongs to has ended, however that came about.

Ansible runs no clean-up tasks after Ctrl-C or SIGKILL. What must not outlive the play therefore gets a small process
beside it that looks whether the play is still there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process

INTERVAL = 0.5  # seconds
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def watch(owner: Process, target: Process, files: t.Sequence[Path] = ()) -> int:
    """Start the process that ends *target* and deletes *files* once *owner* has ended; return its number.

    It ends by itself, and leaves the files alone, when *target* ends first.
    """
    read_end, write_end = os.pipe()
    first = os.fork()
    if first:
        os.close(write_end)
        os.waitpid(first, 0)
        with os.fdopen(read_end) as pipe:
            return int(pipe.read())
    # In the child: nothing may return from here, or the module would run twice.
    try:
        os.setsid()
        if os.fork() == 0:
            os.write(write_end, str(os.getpid()).encode())
            _detach()
            _wait_and_end(owner, target, files)
    finally:
        os._exit(0)


def _detach() -> None:
    """Let go of everything of the module: who waits for its output must not wait for this process."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait_and_end(owner: Process, target: Process, files: t.Sequence[Path]) -> None:
    while owner.alive():
        if not target.alive():
            return
        time.sleep(INTERVAL)
    _end(target)
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()


def _end(target: Process) -> None:
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        if not target.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(target.pid, number)
        deadline = time.monotonic() + patience
        while target.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
