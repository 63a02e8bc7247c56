# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""Long commands with a log, ended together with everything they started, in a user namespace where there is no root."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import time
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PR_SET_PDEATHSIG = 1
TAIL_LINES = 20
_LIBC = ctypes.CDLL(None)
#: How long a command may take to end after SIGTERM before it is killed.
GRACE = 10.0
POLL = 1.0


#: What ends a module: Ctrl-C, Ansible and a lost connection.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandError(Exception):
    """A command failed, is missing or took too long; the message holds the last lines of its output."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; raised in the main thread so that every `finally` runs."""


def find_program(name: str, package: str) -> str:
    """The path of a program, looked for where Debian keeps the ones for root as well."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin"]))
    if path is None:
        raise CommandError(f"the program {name} is missing: install it with 'apt-get install {package}'")
    return path


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into Interrupted: Ansible ends a module by a signal to its process group.

    One is enough: Ansible sends another to a group that got one from the terminal, and that must not stop the clean-up.
    """

    def handler(number: int, _frame: object) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    with _handled_by(handler):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal that arrives in here take effect at the end."""
    # Not by a mask: that is one thread's, and a signal goes to any thread of the process that does not block it.
    arrived: list[int] = []
    with _handled_by(lambda number, _frame: arrived.append(number)):
        yield
    for number in arrived[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@dataclasses.dataclass
class Runner:
    """Runs commands one after the other and writes what they say to one log."""

    log: Path
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    deadline: float | None = None
    #: Asked while a command runs: whether whoever wanted the result is gone.
    abandoned: Callable[[], bool] = lambda: False

    def note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"== {time.strftime('%H:%M:%S')} {text}\n")

    def run(
        self, command: Sequence[str], data: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Run a command; its output goes to the log, its end is ours."""
        self.note("$ " + shlex.join(command[:40]) + (" ..." if len(command) > 40 else ""))
        offset = self.log.stat().st_size
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C.UTF-8", **self.environment, **(environment or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
            try:
                self._wait(process, data, offset)
            finally:
                end(process)
        if process.returncode != 0:
            raise CommandError(
                f"{command_name(command)} failed with exit status {process.returncode}; "
                f"the last lines of its output ({self.log}):\n{self.tail(offset)}"
            )

    def _wait(self, process: subprocess.Popen[bytes], data: bytes | None, offset: int) -> None:
        while True:
            try:
                process.communicate(data, timeout=POLL)
                return
            except subprocess.TimeoutExpired:
                data = None
            name = command_name(process.args)  # type: ignore[arg-type]
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise CommandError(f"{name} did not end within the time limit; see {self.log}\n{self.tail(offset)}")
            if self.abandoned():
                raise Interrupted(f"{name} was ended: whoever asked for its result is gone")

    def tail(self, offset: int = 0) -> str:
        with self.log.open("rb") as log:
            log.seek(max(offset, self.log.stat().st_size - 65536))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; harmless when it has ended."""
    if process.poll() is not None:
        return
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def command_name(command: Sequence[str]) -> str:
    """What a message calls the command: the program behind the prefixes that `private_namespaces` adds."""
    words = list(command)
    if words and os.path.basename(words[0]) == "unshare" and "--" in words:
        words = words[len(words) - words[::-1].index("--") :]
    return os.path.basename(words[0])


def private_namespaces() -> list[str]:
    """The prefix for commands that make or read a root tree.

    Mounts are private and all processes are in a PID namespace of their own, so a killed build leaves neither behind.
    Without root a user namespace maps the caller to root and the subordinate ids of /etc/subuid to everybody else.
    """
    prefix = [find_program("unshare", "util-linux"), "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        prefix += ["--user", "--map-root-user", "--map-auto"]
    if subprocess.run([*prefix, "--", "true"], check=False, capture_output=True).returncode == 0:
        return [*prefix, "--"]
    if os.geteuid() == 0:
        return []
    raise CommandError(
        "a root tree can be made without root only where the kernel allows user namespaces with subordinate ids: "
        "install the package uidmap, see that /etc/subuid and /etc/subgid have a line for this user, "
        "or run as root"
    )


def _die_with_parent() -> None:
    # SIGKILL of this process must end the command as well; in a PID namespace all the rest then goes with it.
    # Not SIGTERM: unshare ignores that while it waits for its child.
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
