# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions as controllers of several releases spell them, and conditions on them."""

from __future__ import annotations

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._cml_version import Expectation, parse_version


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("2.9.1+build.7", (2, 9, 1, 1)),
        ("2.5.0-dev0+build.3.2f7a8c", (2, 5, 0, 0)),
        ("2.4.0.dev0+build.1", (2, 4, 0, 0)),
        ("2.10.0", (2, 10, 0, 1)),
        ("2.9", (2, 9, 0, 1)),
        (" v3 ", (3, 0, 0, 1)),
        ("2.9.0-rc1", (2, 9, 0, 0)),
        ("2.9.1 (something new)", (2, 9, 1, 1)),
    ],
)
def test_versions(text: str, key: tuple[int, ...]) -> None:
    assert parse_version(text) == key


@pytest.mark.parametrize("text", ["", "new", "x2.9", "+build.7", "9" * 5000])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="not a version"):
        parse_version(text)


@pytest.mark.parametrize(
    ("wanted", "version", "holds"),
    [
        ("2.9", "2.9.1+build.7", True),
        ("2", "2.9.1", True),
        ("2.9", "2.10.0", False),
        ("2.9.1", "2.9.1+build.8", True),
        ("==2.9.1", "2.9.2", False),
        ("!=2.9", "2.9.4", False),
        (">=2.8", "2.10.0", True),
        (">=2.9.0", "2.9.0-dev0+build.1", False),
        (">2.9.0", "2.9.0", False),
        ("<=2.9.1", "2.9.1", True),
        (">=2.8, <2.10 , !=2.9.0", "2.9.1", True),
        (">=2.8,<2.10", "2.10.0", False),
    ],
)
def test_conditions(wanted: str, version: str, holds: bool) -> None:
    assert Expectation(wanted).holds(version) is holds


@pytest.mark.parametrize(
    "text", [">=2.10,<2.9", "2.9,2.8", ">2.9.0,<2.9.0", "==2.9.1,!=2.9.1", "2.9,!=2.9", "<0.0.0-dev,2"]
)
def test_contradictions(text: str) -> None:
    with pytest.raises(ValueError, match="contradict"):
        Expectation(text)


@pytest.mark.parametrize(
    "text", [">2.9.0,<2.9.2", ">=2.9.1,<=2.9.1", ">2.8,<3", "2,!=2.9,>=2.9", "2.9,<2.9.1", ">2.9.1,!=2.9.2,2"]
)
def test_narrow_ranges_are_no_contradictions(text: str) -> None:
    Expectation(text)


@pytest.mark.parametrize("text", ["", ">=2.8,", "=>2.9", ">= ", "2.9 2.8"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        Expectation(text)
