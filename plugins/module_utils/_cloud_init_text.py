# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Texts that remember where each of their characters stands in the user's file, and what is found in them."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Sequence

SEVERITIES = ("info", "warning", "error")


class CloudInitError(Exception):
    """The check itself could not be made (not: something is wrong with the user-data)."""


def _line_starts(text: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer("\n", text))]


@dataclasses.dataclass(frozen=True)
class Source:
    """What positions refer to: a file as the user wrote it, or what was decoded from a part of it."""

    file: str
    text: str
    #: Empty for the file itself, else which part of it this was decoded from.
    decoded: str = ""
    starts: list[int] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", _line_starts(self.text))

    def position(self, index: int) -> tuple[int, int]:
        """Line and column, both from 1."""
        line = bisect.bisect_right(self.starts, index)
        return line, index - self.starts[line - 1] + 1


@dataclasses.dataclass(frozen=True)
class Text:
    """A text taken out of a source; `places` says for each character where it stands there, -1 for what was added."""

    value: str
    source: Source
    places: Sequence[int]

    @classmethod
    def whole(cls, source: Source) -> Text:
        return cls(source.text, source, range(len(source.text)))

    def slice(self, start: int, end: int | None = None) -> Text:
        return Text(self.value[start:end], self.source, self.places[start:end])

    def replaced(self, value: str) -> Text:
        """The same places under characters that hide those that were there."""
        return Text(value, self.source, self.places)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return _line_starts(self.value)

    def line(self, number: int) -> str:
        """A line of this text, from 1, without its end; the last one for a number that is too high."""
        number = min(max(number, 1), len(self._starts))
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.value)
        return self.value[self._starts[number - 1] : end]

    def position(self, index: int) -> tuple[int, int] | None:
        """Line and column in the source of a character, or of the next one that stands there."""
        for number in range(index, len(self.places)):
            if self.places[number] >= 0:
                return self.source.position(self.places[number])
        return self.source.position(self.places[-1]) if len(self.places) and self.places[-1] >= 0 else None

    def at(self, line: int, column: int | None) -> tuple[int, int] | None:
        """The source's line and column of this text's own; without a column, of the line's first visible character."""
        line = min(max(line, 1), len(self._starts))
        content = self.line(line)
        offset = len(content) - len(content.lstrip()) if column is None else min(max(column - 1, 0), len(content))
        return self.position(self._starts[line - 1] + offset)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where."""

    file: str
    origin: str
    line: int | None
    column: int | None
    severity: str
    checker: str
    code: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        place = "".join(f":{number}" for number in (self.line, self.column) if number is not None)
        hint = f" {self.suggestion}" if self.suggestion else ""
        return f"{self.file}{place}: {self.severity}: {self.message}{hint} [{self.code}, {self.origin}]"


def finding(
    text: Text,
    origin: str,
    position: tuple[int, int] | None,
    severity: str,
    checker: str,
    code: str,
    message: str,
    suggestion: str = "",
) -> Finding:
    line, column = position or (None, None)
    if text.source.decoded:
        origin = f"{origin}, {text.source.decoded}"
    return Finding(text.source.file, origin, line, column, severity, checker, code, message, suggestion)
