# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""The outputs of the last build: out of the way of the new one, and back in place unless that succeeds."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError
from ansible_collections.goldsmith.images.plugins.module_utils._process import Supervisor, remove_path

Moved = list[tuple[str, str]]


def recorded_files(stamp: t.Mapping[str, t.Any], only: t.Collection[str]) -> list[str]:
    """The artifacts of these builds; of all when none is named."""
    artifacts = [item for item in stamp["artifacts"] if not only or item["build"] in only]
    return [file["path"] for item in artifacts for file in item["files"]]


class Aside:
    """Moves are renames in the same directory, and a journal knows each before it is made."""

    def __init__(self, supervisor: Supervisor, journal: t.Callable[[Moved], None]) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._moved: Moved = []

    def move(self, paths: t.Iterable[str]) -> None:
        """Move what exists of the paths, but nothing twice: a directory takes along what is in it."""
        outermost: list[str] = []
        for path in sorted({os.path.abspath(path) for path in paths}):
            if os.path.lexists(path) and not any(_within(path, outer) for outer in outermost):
                outermost.append(path)
        self._moved = [(path, f"{path}.previous-{self._supervisor.token[:8]}") for path in outermost]
        self._journal(self._moved)
        for path, backup in self._moved:
            self._supervisor.restore_at_exit(path, backup)
            try:
                os.rename(path, backup)
            except OSError as exc:
                raise PackerError(
                    f"replace: cannot move {path} out of the way: {exc.strerror}; replace=in_place does not move it"
                ) from exc

    def settle(self, made: t.Sequence[str], complete: bool, keep_failed: bool) -> None:
        """Drop what has been replaced; the rest goes back when the supervisor's context ends."""
        for path, backup in self._moved:
            if os.path.lexists(path) and (complete or any(_within(file, path) for file in made)):
                # In one step: half a backup must never take the place of the new output.
                self._supervisor.remove_at_exit(f"{backup}.done")
                os.rename(backup, f"{backup}.done")
            elif keep_failed and os.path.lexists(path):
                remove_path(f"{path}.failed")
                os.rename(path, f"{path}.failed")


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + os.sep)
