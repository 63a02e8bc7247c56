# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Wait until a guest answers, and notice early when it never will."""

from __future__ import annotations

import re
import socket
import time
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process

# The guest's own words for: nobody will ever log in here.
HOPELESS = (
    re.compile(r"Kernel panic - not syncing"),
    re.compile(r"You are in emergency mode"),
    re.compile(r"^\(initramfs\)", re.MULTILINE),
    re.compile(r"^grub rescue>", re.MULTILINE),
    re.compile(r"No bootable device"),
)
CLOUD_INIT_END = re.compile(r"Cloud-init v\. \S+ finished at .*")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_c])|[\x00-\x08\x0b-\x1f\x7f]")


class NoAnswer(Exception):
    """The guest did not answer; the text says why."""


def wait_for_ssh(process: Process, port: int, console: Path, offset: int, timeout: float) -> str:
    """The SSH server's greeting, read from the forwarded port.

    That the port can be connected to means nothing: QEMU itself accepts before anybody listens in the guest.
    """
    patience = 4.0  # a busy emulated guest takes a second or two to greet; giving up makes it begin anew

    def ask(left: float) -> str | None:
        nonlocal patience
        greeting = read_greeting(port, min(patience, left))
        patience = min(patience * 1.5, 10.0)
        return greeting

    return _wait("answer of an SSH server", ask, process, console, offset, timeout)


def wait_for_cloud_init(process: Process, console: Path, offset: int, timeout: float) -> str:
    """The message on the serial console that cloud-init ends with."""

    def ask(left: float) -> str | None:
        found = CLOUD_INIT_END.search(read_console(console, offset))
        if found is None:
            time.sleep(min(0.2, left))
        return found[0].strip() if found else None

    return _wait("end of cloud-init on the serial console", ask, process, console, offset, timeout)


def _wait(
    what: str,
    ask: t.Callable[[float], str | None],
    process: Process,
    console: Path,
    offset: int,
    timeout: float,
) -> str:
    """Ask until there is an answer; *ask* gets the seconds that are left and takes a moment."""
    deadline = time.monotonic() + timeout
    while True:
        if not process.alive():
            raise NoAnswer("QEMU has ended while the guest was booting")
        hopeless = find_hopeless(read_console(console, offset))
        if hopeless:
            raise NoAnswer(f"the guest will not come up: {hopeless}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise NoAnswer(f"no {what} within {timeout:.0f} s")
        answer = ask(left)
        if answer:
            return answer


def read_greeting(port: int, timeout: float) -> str | None:
    """The first line if it is an SSH server's; None after the time-out, or after a short pause if refused."""
    deadline = time.monotonic() + timeout
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as connection:
            while b"\n" not in received and len(received) < 4096:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                chunk = connection.recv(256)
                if not chunk:
                    break
                received += chunk
    except OSError:
        pass
    line = received.split(b"\n", 1)[0].decode(errors="replace").strip()
    if line.startswith("SSH-"):
        return line
    time.sleep(max(0.0, min(0.2, deadline - time.monotonic())))
    return None


def find_hopeless(text: str) -> str | None:
    """The line that says so."""
    for pattern in HOPELESS:
        found = pattern.search(text)
        if found:
            start = text.rfind("\n", 0, found.start()) + 1
            end = text.find("\n", found.end())
            return text[start : end if end >= 0 else None].strip()
    return None


def read_console(path: Path, offset: int = 0, most: int = 262144) -> str:
    """What the guest wrote since *offset*, without terminal control sequences."""
    try:
        with open(path, "rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(offset, size - most))
            text = handle.read().decode(errors="replace")
    except OSError:
        return ""
    return _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def last_lines(path: Path, count: int, offset: int = 0) -> list[str]:
    lines: list[t.Any] = read_console(path, offset).rstrip("\n").splitlines()
    return [line.rstrip() for line in lines[-count:]]
