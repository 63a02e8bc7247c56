# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""Run a program that starts others, and leave none of them behind, whatever happens to us.

Every process of a run is known in two ways: by its process group, which takes a signal at once, and by an environment
variable with a random token, which also finds what has left the group (setsid) or lost its parent. Neither ever names
a foreign process.

A small forked guard waits at the end of a socket. When the supervisor disappears without saying goodbye, SIGKILL
included, the guard ends the run's processes and removes its private files.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import threading
import time
import typing as t
import uuid
from dataclasses import dataclass

from ansible_collections.goldsmith.images.plugins.module_utils._owner import find_owner

TOKEN_NAME = "GOLDSMITH_IMAGES_RUN"
CANCEL_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TICK = 0.5
# How long processes may take to leave by themselves once the main one has ended, before they are told to.
SETTLE = 1.0
# After the second SIGTERM, before SIGKILL.
LAST_CHANCE = 2.0

LineCallback = t.Callable[[str, str], None]


@dataclass(frozen=True)
class Outcome:
    """How a supervised program ended."""

    rc: int
    seconds: float
    timed_out: bool = False
    cancelled: str = ""
    """Why it was cancelled; empty when it was not."""
    killed: bool = False
    """Whether SIGKILL was needed."""
    leftovers: int = 0
    """Processes that outlived the main one and had to be ended."""


def token_entry(token: str) -> bytes:
    return f"{TOKEN_NAME}={token}".encode()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:  # the process has ended, or belongs to somebody else
        return b""


def members(token: str, group: int = 0) -> list[int]:
    """PIDs of the live processes that carry the token or belong to the process group."""
    entry = token_entry(token)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        stat = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
        if len(stat) < 3 or stat[0] in (b"Z", b"X"):
            continue
        if (group and int(stat[2]) == group) or entry in _read(f"/proc/{name}/environ").split(b"\0"):
            found.append(int(name))
    return found


def group_of(pid: int) -> int:
    """The process group; 0 when the process has ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def command_of(token: str, *prefixes: str) -> list[str]:
    """Command line of a process of the run whose program's name starts so; not of a mere "-version" call."""
    commands = [_read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0") for pid in members(token)]
    beginnings = tuple(map(str.encode, prefixes))
    matching = [words for words in commands if os.path.basename(words[0]).startswith(beginnings)]
    longest = max(matching, key=len, default=[])
    return [word.decode(errors="replace") for word in longest] if len(longest) > 2 else []


def send(pids: t.Iterable[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def send_group(group: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


def end_members(token: str, grace: float, group: int = 0) -> bool:
    """End every process of the run: SIGTERM, the grace period, SIGKILL. True when SIGKILL was needed."""
    told: set[int] = set()
    kill_at = time.monotonic() + grace
    give_up_at = kill_at + 5.0
    killed = False
    quiet = 0
    # Two empty looks in a row: a process that is just being forked is not visible in the first one.
    while quiet < 2 and time.monotonic() < give_up_at:
        found = members(token, group)
        quiet = 0 if found else quiet + 1
        if time.monotonic() >= kill_at:
            killed = killed or bool(found)
            send(found, signal.SIGKILL)
        else:
            new = [pid for pid in found if pid not in told]
            # Whole groups in one call: told one after the other, a parent sees its child end and goes on.
            whole = {number for number in map(group_of, new) if set(members("", number)) <= set(new)} - {0}
            for number in whole:
                send_group(number, signal.SIGTERM)
            send([pid for pid in new if group_of(pid) not in whole], signal.SIGTERM)
            told.update(new)
        time.sleep(0.05)
    return killed


def remove_path(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def restore_path(path: str, backup: str) -> None:
    """Remove what is at a path, and put the backup there if there is to be one; nothing when it is gone already."""
    if not backup:
        remove_path(path)
    elif os.path.lexists(backup):
        remove_path(path)
        with contextlib.suppress(OSError):
            os.rename(backup, path)


class Guard:
    """A forked process that cleans up when this one dies without having said goodbye."""

    def __init__(self, token: str, grace: float, keep_fds: t.Sequence[int] = ()) -> None:
        # One message at a time: the death of this process never leaves half of one.
        self._orders, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._child(token, grace, keep_fds)
            finally:
                # Never return into the caller's code: its handlers and exit hooks belong to the parent.
                os._exit(0)
        self._orders.close()

    def _child(self, token: str, grace: float, keep_fds: t.Sequence[int]) -> None:
        os.setsid()
        for signum in CANCEL_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(devnull, number)
        # Whoever waits for the end of the parent's output must not wait for this process.
        kept = {0, 1, 2, self._orders.fileno(), *keep_fds}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        restores: list[tuple[str, str]] = []
        pipes: list[int] = []
        while True:
            message, descriptors, _flags, _address = socket.recv_fds(self._orders, 1 << 16, 2)
            if message == b"done":
                return
            if not message:
                break
            if descriptors:
                for number in pipes:
                    os.close(number)
                pipes = list(descriptors)
            else:
                restores.append(tuple(json.loads(message)))
        threading.Thread(target=_drain, args=(pipes,), daemon=True).start()
        end_members(token, grace)
        for path, backup in restores:
            restore_path(path, backup)

    def restore(self, path: str, backup: str) -> None:
        """Also do this in case of need."""
        self._ours.send(json.dumps([path, backup]).encode("ascii"))

    def read_on(self, pipes: t.Sequence[int]) -> None:
        """In case of need, read these to their end: a program that nobody listens to dies before it has cleaned up."""
        socket.send_fds(self._ours, [b"pipes"], pipes)

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.send(b"done")
        self._ours.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _drain(pipes: t.Sequence[int]) -> None:
    with selectors.DefaultSelector() as selector:
        for number in pipes:
            selector.register(number, selectors.EVENT_READ)
        while selector.get_map():
            for key, _mask in selector.select():
                with contextlib.suppress(BlockingIOError):
                    if not os.read(key.fd, 1 << 16):
                        selector.unregister(key.fd)


class Supervisor:
    """Context in which programs are run, each in a session of its own, and ended on every way out.

    While it is active SIGTERM, SIGINT and SIGHUP to this process cancel the run; so does the death of the parent
    process or of whoever reads our standard output.
    """

    def __init__(self, grace: float, watch_controller: bool = True, keep_fds: t.Sequence[int] = ()) -> None:
        self.token = uuid.uuid4().hex
        self.grace = grace
        self.cancel_reason = ""
        self._watch = watch_controller
        self._keep_fds = keep_fds
        self._parent = os.getppid()
        self._owner = find_owner()
        self._handlers: dict[int, t.Any] = {}
        self._at_exit: list[tuple[str, str]] = []

    def __enter__(self) -> Supervisor:
        self._guard = Guard(self.token, self.grace, self._keep_fds)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        for signum in CANCEL_SIGNALS:
            self._handlers[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *unused: object) -> None:
        if members(self.token):
            end_members(self.token, LAST_CHANCE)
        for path, backup in self._at_exit:
            restore_path(path, backup)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._guard.dismiss()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def remove_at_exit(self, path: str) -> None:
        """Remove this file or directory when the context ends, even by SIGKILL."""
        self.restore_at_exit(path, "")

    def restore_at_exit(self, path: str, backup: str) -> None:
        """Put the backup back to the path when the context ends, even by SIGKILL, if it still exists then."""
        self._at_exit.append((path, backup))
        self._guard.restore(path, backup)

    def _on_signal(self, signum: int, frame: t.Any) -> None:
        self.cancel_reason = self.cancel_reason or signal.Signals(signum).name
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"s")

    def check_controller(self) -> str:
        """Why nobody waits for us any more; empty when somebody does. Sets the reason for cancelling."""
        if self._watch and not self.cancel_reason:
            # A killed ansible-playbook leaves its worker, our parent, behind.
            if os.getppid() != self._parent or not self._owner.alive():
                self.cancel_reason = "parent process ended"
            else:
                # The reader of a pipe that has gone shows as an error on the writing end.
                poll = select.poll()
                poll.register(1, 0)
                if any(event & (select.POLLERR | select.POLLHUP) for _fd, event in poll.poll(0)):
                    self.cancel_reason = "controller connection lost"
        return self.cancel_reason

    def run(
        self,
        argv: t.Sequence[str],
        *,
        cwd: str,
        env: t.Mapping[str, str],
        on_line: LineCallback,
        deadline: float | None = None,
    ) -> Outcome:
        """Run one program. on_line gets ("stdout"|"stderr", text) for each line as it arrives, of any length.

        deadline is a time of time.monotonic(). Raises OSError when the program cannot be started.
        """
        started = time.monotonic()
        if self.check_controller():
            return Outcome(-signal.SIGTERM, 0.0, cancelled=self.cancel_reason)
        proc = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**env, TOKEN_NAME: self.token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        stopper = _Stopper(proc.pid, self.token, self.grace)
        try:
            self._guard.read_on([stream.fileno() for stream in (proc.stdout, proc.stderr) if stream is not None])
            self._follow(proc, stopper, on_line, deadline)
            leftovers = self._settle(proc, stopper)
        except BaseException:
            send_group(proc.pid, signal.SIGKILL)
            end_members(self.token, 0.0)
            raise
        finally:
            # Only now: until the main process is reaped its number cannot name another group.
            proc.wait()
            for stream in (proc.stdout, proc.stderr):
                if stream is not None:
                    stream.close()
        return Outcome(
            rc=proc.returncode,
            seconds=time.monotonic() - started,
            timed_out=stopper.reason == "timeout",
            cancelled=self.cancel_reason if stopper.reason == "cancel" else "",
            killed=stopper.killed,
            leftovers=leftovers,
        )

    def _follow(
        self, proc: subprocess.Popen[bytes], stopper: _Stopper, on_line: LineCallback, deadline: float | None
    ) -> None:
        """Hand over the lines until the main process has ended and its output is drained."""
        drain_until: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ, None)
            pipes = (("stdout", t.cast("t.IO[bytes]", proc.stdout)), ("stderr", t.cast("t.IO[bytes]", proc.stderr)))
            for name, stream in pipes:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, _Lines(name, on_line))
            while True:
                now = time.monotonic()
                if not stopper.reason and drain_until is None:
                    if self.check_controller():
                        stopper.start("cancel")
                    elif deadline is not None and now >= deadline:
                        stopper.start("timeout")
                stopper.escalate()
                streams_open = len(selector.get_map()) > 1
                ended = os.waitid(os.P_PID, proc.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                if ended and drain_until is None:
                    # A process that outlives the main one may hold the pipe open for ever.
                    drain_until = now + SETTLE
                if ended and (not streams_open or (drain_until is not None and now >= drain_until)):
                    break
                wait = TICK if streams_open and not ended else 0.02
                if deadline is not None and not stopper.reason:
                    wait = min(wait, max(0.0, deadline - now))
                for key, _mask in selector.select(wait):
                    if key.data is None:
                        os.read(self._wake_read, 512)
                    elif not key.data.read(key.fd):
                        selector.unregister(key.fileobj)
            for key in list(selector.get_map().values()):
                if key.data is not None:
                    key.data.finish()

    def _settle(self, proc: subprocess.Popen[bytes], stopper: _Stopper) -> int:
        """End what outlived the main process; how many that were."""
        settle_until = time.monotonic() + (0.0 if stopper.reason else SETTLE)
        left = members(self.token, proc.pid)
        while left and time.monotonic() < settle_until:
            time.sleep(0.05)
            left = members(self.token, proc.pid)
        if left and end_members(self.token, LAST_CHANCE, proc.pid):
            stopper.killed = True
        return len(left)


class _Stopper:
    """Escalation: SIGTERM to all, the grace period, SIGTERM again, a last chance, SIGKILL."""

    def __init__(self, group: int, token: str, grace: float) -> None:
        self.reason = ""
        self.killed = False
        self._group = group
        self._token = token
        self._grace = grace
        self._steps: list[tuple[float, int]] = []

    def start(self, reason: str) -> None:
        self.reason = reason
        again = time.monotonic() + self._grace
        self._steps = [(again, signal.SIGTERM), (again + min(LAST_CHANCE, self._grace), signal.SIGKILL)]
        self._signal(signal.SIGTERM)

    def escalate(self) -> None:
        while self._steps and time.monotonic() >= self._steps[0][0]:
            signum = self._steps.pop(0)[1]
            self.killed = self.killed or signum == signal.SIGKILL
            self._signal(signum)

    def _signal(self, signum: int) -> None:
        # The whole group in one call first: told one after the other, a parent may restart or wait for its children.
        outside = set(members(self._token)) - set(members("", self._group))
        send_group(self._group, signum)
        send(outside, signum)


class _Lines:
    """Cuts a byte stream into lines without a limit on their length."""

    def __init__(self, name: str, on_line: LineCallback) -> None:
        self._name = name
        self._on_line = on_line
        self._parts: list[bytes] = []

    def read(self, fd: int) -> bool:
        """Take what is there; False at the end of the stream."""
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            self.finish()
            return False
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            self._parts.append(part)
            self.finish()
        if rest:
            self._parts.append(rest)
        return True

    def finish(self) -> None:
        line, self._parts = b"".join(self._parts), []
        if line:
            self._on_line(self._name, line.decode("utf-8", errors="replace").rstrip("\r"))
