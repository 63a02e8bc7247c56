# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""CML versions (`2.9.1+build.7`, `2.5.0-dev0+build.3.2f7a`, `2.4.0.dev0+build`), and which of them are wanted."""

from __future__ import annotations

import dataclasses
import re

#: Three numbers, and 0 for what comes before a release or 1 for the release.
Key = tuple[int, int, int, int]

_VERSION = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?![\d])([^+]*)(?:\+.*)?", re.DOTALL)
_CONDITION = re.compile(r"(==|!=|>=|<=|>|<|)\s*(\S+)")


def parse_version(text: str) -> Key:
    """ValueError if it does not begin with a number. The build is no part of the order."""
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a version: {text[:100]!r} (expected something like 2.9.1+build.7)")
    major, minor, patch = (int(number or 0) for number in match.groups()[:3])
    before = re.search(r"dev|alpha|beta|rc|pre", match[4], re.IGNORECASE)
    return (major, minor, patch, 0 if before else 1)


@dataclasses.dataclass(frozen=True)
class Condition:
    operator: str
    text: str
    key: Key
    #: How many numbers were written: 2.9 without an operator means every 2.9.x.
    length: int

    def holds(self, found: Key) -> bool:
        if self.operator in ("", "==", "!="):
            same = found[: self.length] == self.key[: self.length] if self.length < 3 else found == self.key
            return same is not (self.operator == "!=")
        return {
            ">=": found >= self.key,
            "<=": found <= self.key,
            ">": found > self.key,
            "<": found < self.key,
        }[self.operator]


class Expectation:
    """`2.9`, `>=2.8`, `>=2.8,<2.10,!=2.9.0`: all conditions must hold."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.conditions = []
        for part in text.split(","):
            match = _CONDITION.fullmatch(part.strip())
            if match is None:
                raise ValueError(f"not a condition on a version: {part.strip()!r} (give 2.9, or >=2.8,<2.10)")
            key = parse_version(match[2])
            numbers = re.match(r"v?[\d.]*\d", match[2])
            self.conditions.append(Condition(match[1], match[2], key, numbers[0].count(".") + 1 if numbers else 3))
        self._refuse_contradictions()

    def holds(self, version: str) -> bool:
        key = parse_version(version)
        return all(condition.holds(key) for condition in self.conditions)

    def _refuse_contradictions(self) -> None:
        # If any version fits, one does that is a boundary or next to one.
        candidates: list[Key] = []
        for condition in self.conditions:
            major, minor, patch, release = condition.key
            candidates += [condition.key, (major, minor, patch + 1, 1), (major, minor, patch, 1 - release)]
            candidates += [(major, minor + 1, 0, 1), (major + 1, 0, 0, 1)]
            if patch:
                candidates.append((major, minor, patch - 1, 1))
            elif minor:
                candidates.append((major, minor - 1, 999_999_999, 1))
            elif major:
                candidates.append((major - 1, 999_999_999, 0, 1))
        if not any(all(condition.holds(key) for condition in self.conditions) for key in candidates):
            raise ValueError(f"no version can be {self.text!r}: its conditions contradict each other")
