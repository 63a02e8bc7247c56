# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Who runs this module: the process that lives as long as the play does, and a lock in its name.

A module is a short-lived process, a build is many of them. What must end with the build (a lock, a test VM) is
therefore tied to the ansible-playbook above the module or, over SSH, to the session it came through.
"""

from __future__ import annotations

import fcntl
import json
import os
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

PLAY_PROGRAMS = ("ansible-playbook", "ansible-runner", "ansible-navigator", "molecule", "ansible")


class LockError(Exception):
    """The lock is held by a process that is alive."""


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    start_time: int  # clock ticks since boot, field 22 of /proc/PID/stat
    command: str

    def alive(self) -> bool:
        """Return whether this very process still runs."""
        found = read_process(self.pid)
        return found is not None and found.start_time == self.start_time


def read_process(pid: int) -> Process | None:
    """Return the running process *pid*; None when there is none, or only a zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return Process(pid, int(fields[19]), command.replace(b"\0", b" ").decode(errors="replace").strip())


def find_owner() -> Process:
    """Return the topmost play above this process, else the SSH session it came through, else its parent."""
    play = session = parent = None
    pid = os.getppid()
    while pid > 1:
        process, fields = read_process(pid), _stat(pid)
        if process is None or fields is None:
            break
        parent = parent or process
        programs = {os.path.basename(word) for word in process.command.split()[:3]}
        if programs & set(PLAY_PROGRAMS):
            play = process
        elif process.command.startswith(("sshd:", "sshd-session:")):
            session = session or process
            break
        pid = int(fields[1])
    owner = play or session or parent or read_process(os.getpid())
    if owner is None:
        raise LockError("/proc does not show this process: is it mounted?")
    return owner


def acquire_lock(path: Path, owner: Process, **details: t.Any) -> bool:
    """Take the lock *path* for *owner*; return False when *owner* has it already.

    A lock whose owner has died is taken over. LockError names a living owner.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        holder, holder_details = _holder(handle)
        if holder == owner:
            return False
        if holder is not None and holder.alive():
            since = f" since {holder_details['since']}" if holder_details.get("since") else ""
            raise LockError(f"process {holder.pid} ({holder.command}) holds {path}{since}")
        handle.seek(0)
        handle.truncate()
        json.dump({"owner": asdict(owner), **details}, handle)
        return True


def release_lock(path: Path, owner: Process) -> bool:
    """Give up the lock *path* if it is *owner*'s; return whether it was."""
    if not path.exists():
        return False
    with path.open("a+", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _holder(handle)[0] != owner:
            return False
        # The file stays: removing it would let two waiting processes lock two different files of one name.
        handle.seek(0)
        handle.truncate()
        return True


def _holder(handle: t.TextIO) -> tuple[Process | None, dict[str, t.Any]]:
    handle.seek(0)
    try:
        data = json.load(handle)
        return Process(**data["owner"]), data
    except (ValueError, KeyError, TypeError):
        return None, {}


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; the command before them may hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
