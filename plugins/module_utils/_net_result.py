# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What a check of the network can end with, and in which words."""

from __future__ import annotations

import socket
import time
import typing as t
from dataclasses import dataclass

STATUSES = ("pass", "warn", "fail", "skip")


class InputError(Exception):
    """What the caller asks for cannot be checked; the text names the option and what is allowed."""


class Problem(Exception):
    """What a check found wrong."""

    def __init__(self, error_class: str, detail: str, *, status: str = "fail", method: str | None = None) -> None:
        super().__init__(detail)
        self.error_class = error_class
        self.detail = detail
        self.status = status
        self.method = method
        self.hint = ""  # where the finder knows better than the table of hints


@dataclass(frozen=True)
class Finding:
    """What a check found in order."""

    detail: str
    method: str
    latency_ms: float | None = None


class Deadline:
    """A point in time, and what is being waited for, so that a check that hangs can still be described."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.waiting_for: tuple[str, str] = ("timeout", "no answer")

    def remaining(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def left(self) -> float:
        """Seconds left, for the time-out of the next system call; if there are none, what a socket then raises."""
        left = self.remaining()
        if left <= 0:
            raise socket.timeout("no time left")
        return left


@dataclass(frozen=True)
class Check:
    """One thing to find out."""

    name: str
    target: str
    look: t.Callable[[Deadline], Finding]
    required: bool = True  # a failure of a check that is not required is a warning


@dataclass(frozen=True)
class Result:
    name: str
    target: str
    status: str
    method: str | None
    latency_ms: float | None
    error_class: str | None
    detail: str
    hint: str
    attempts: int


def milliseconds(start: float) -> float:
    """Since *start* (time.monotonic)."""
    return round((time.monotonic() - start) * 1000, 2)
