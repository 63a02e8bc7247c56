# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What a run has done and was about to do, on disk before each call that changes something.

A run that is killed leaves in it what the cloud does not tell: a copy that was started and is not visible yet, the
permissions that were only given for the time of the copy, the snapshots of a source that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._ami import AmiError


class Journal:
    """One journal for each source image. Lines of JSON, each on the disk before the call that it announces."""

    def __init__(self, path: Path, entries: list[dict[str, t.Any]], stream: t.TextIO | None) -> None:
        self.path = path
        self.entries = entries
        self._stream = stream  # None: nothing is written
        self._lock = threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, write: bool) -> t.Iterator[Journal]:
        """Read the journal and keep other runs out of it; *write* false: only read it."""
        if not write:
            yield cls(path, read(path), None)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            stream = path.open("a", encoding="utf-8")
        except OSError as exc:
            raise AmiError(f"the journal {path} cannot be written: {exc.strerror}") from exc
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise AmiError(f"another run copies this image: it holds {path}") from exc
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                stream.write("\n")  # a line that a killed run did not finish stays a line of its own
            yield cls(path, read(path), stream)

    def note(self, event: str, **details: t.Any) -> None:
        """Write a line and wait until the disk has it."""
        entry = {"event": event, "time": time.time(), **details}
        with self._lock:
            self.entries.append(entry)
            if self._stream is not None:
                self._stream.write(json.dumps(entry, default=str) + "\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())

    def of(self, event: str, **details: t.Any) -> list[dict[str, t.Any]]:
        """Return the lines of an event with these details, in their order."""
        return [
            entry
            for entry in list(self.entries)
            if entry["event"] == event and all(entry.get(key) == value for key, value in details.items())
        ]

    def open_shares(self) -> dict[tuple[str, str], set[str]]:
        """Return (kind, id) -> accounts: the permissions that were given for the time of a copy and not taken back."""
        open_: dict[tuple[str, str], set[str]] = {}
        for entry in list(self.entries):
            if entry["event"] in ("share", "revoked"):
                accounts = open_.setdefault((entry["kind"], entry["id"]), set())
                if entry["event"] == "share":
                    accounts.update(entry["accounts"])
                else:
                    accounts.difference_update(entry["accounts"])
        return {key: accounts for key, accounts in open_.items() if accounts}


def read(path: Path) -> list[dict[str, t.Any]]:
    """Return the lines of a journal; a line that was not finished was not followed by its call."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise AmiError(f"the journal {path} cannot be read: {exc.strerror}") from exc
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "event" in entry:
                entries.append(entry)
    return entries


def known_source(folder: Path, region: str, name: str | None, owner: str | None) -> str | None:
    """Return the image that a name stood for in the latest run, for when the image is gone."""
    wanted = {"region": region, "name": name, "owner": owner}
    latest: tuple[float, str] | None = None
    for path in folder.glob("*.jsonl") if name else ():
        for entry in read(path):
            if entry["event"] == "source" and all(entry.get(key) == value for key, value in wanted.items()):
                latest = max(latest or (0.0, ""), (entry["time"], entry["image_id"]))
    return latest[1] if latest else None
