# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""What a running build leaves for people to follow: a log for tail, and a small status file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError

# Not more often than this unless the phase changes: each update is a file replaced.
PROGRESS_INTERVAL = 0.5
CONSOLE_LINES = 50
_TERMINAL_CONTROL = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78cDEHMNOZ]|[\x00-\x08\x0b-\x1f]")


def _create(path: str) -> int:
    """Open a file that only its owner can read, replacing an earlier one, never following a link."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


class Log:
    """The build's text, line by line as it comes. Takes only redacted text."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._stream: t.TextIO | None = os.fdopen(_create(path), "w", encoding="utf-8") if path else None
        except OSError as exc:
            raise PackerError(f"log_path: cannot write {path}: {exc.strerror}") from exc

    def write(self, text: str) -> None:
        if self._stream and text.strip():
            stamp = time.strftime("%H:%M:%S")
            self._stream.write("".join(f"{stamp} {line}\n" for line in text.strip("\n").split("\n")))
            self._stream.flush()

    def close(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None


class Progress:
    """A JSON file that always holds the current state; replaced in one step, so a reader never sees half of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._started = time.time()
        self._written = 0.0
        self._phases: list[dict[str, t.Any]] = []
        self._builds: dict[str, dict[str, str]] = {}
        self._state: dict[str, t.Any] = {}
        if path:
            try:
                os.close(_create(path))
            except OSError as exc:
                raise PackerError(f"progress_path: cannot write {path}: {exc.strerror}") from exc

    def update(self, phase: str, build: str = "", last: str = "") -> None:
        now = time.time()
        news = {"phase": phase, "build": build}
        changed = bool(phase) and (not self._phases or {k: self._phases[-1][k] for k in news} != news)
        if changed:
            self._phases.append({**news, "at": round(now - self._started, 1)})
        if build:
            self._builds[build] = {**news, "last": last[:500]}
        self._state = {
            "state": "running",
            **news,
            "last": last[:500],
            "started": self._started,
            "elapsed": round(now - self._started, 1),
            "phases": self._phases,
            "builds": list(self._builds.values()),
        }
        if changed or now - self._written >= PROGRESS_INTERVAL:
            self._written = now
            self._write()

    def finish(self) -> None:
        if self._state:
            self._state.update(state="finished", elapsed=round(time.time() - self._started, 1))
            self._write()

    def _write(self) -> None:
        if not self.path:
            return
        temporary = f"{self.path}.{os.getpid()}"
        # A full disk must not cost the build; the log and the result still tell.
        with contextlib.suppress(OSError):
            with os.fdopen(_create(temporary), "w", encoding="utf-8") as stream:
                json.dump(self._state, stream)
            os.replace(temporary, self.path)

    @property
    def phases(self) -> list[dict[str, t.Any]]:
        """Each phase with the second in which it began and how long it took."""
        end = round(time.time() - self._started, 1)
        ends = [item["at"] for item in self._phases[1:]] + [end]
        return [{**item, "seconds": round(after - item["at"], 1)} for item, after in zip(self._phases, ends)]


def console_tail(path: str) -> list[str]:
    """The last lines of a serial console's log, without terminal control sequences; empty when there is none."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - (64 << 10)))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [_TERMINAL_CONTROL.sub("", line.rstrip("\r")).rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-CONSOLE_LINES:]
