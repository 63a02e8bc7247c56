# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No form of a secret that a program prints may pass."""

from __future__ import annotations

import json

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._redact import MASK, Redactor, leaves

SECRET = 'first "line"\nsecond, <line> ü\nthird ${x}'

PRINTED = [
    pytest.param(SECRET, id="plain"),
    pytest.param(SECRET.replace("\n", "\\n"), id="escaped-newlines"),
    pytest.param(SECRET.replace("\n", "\\n").replace(",", "%!(PACKER_COMMA)"), id="machine-readable"),
    pytest.param(json.dumps(SECRET), id="json-ascii"),
    pytest.param(json.dumps(SECRET, ensure_ascii=False), id="json-unicode"),
    pytest.param(json.dumps(SECRET).replace("<", "\\u003c").replace(">", "\\u003e"), id="json-go"),
    pytest.param("==> x: second, <line> ü", id="one-line-with-prefix"),
    pytest.param("ui,say,second%!(PACKER_COMMA) <line> ü", id="one-line-in-the-stream"),
]


@pytest.mark.parametrize("printed", PRINTED)
def test_every_form_is_masked(printed: str) -> None:
    redacted = Redactor([SECRET]).text(f"before {printed} after")
    assert redacted.startswith("before ") and redacted.endswith(" after")
    assert MASK in redacted
    assert not [word for word in ("line", "second", "third") if word in redacted]


def test_longest_secret_wins_when_one_contains_the_other() -> None:
    assert Redactor(["abc", "abcdef"]).text("abcdef abc") == f"{MASK} {MASK}"


def test_short_values_and_booleans_do_not_destroy_the_text() -> None:
    assert Redactor([True, "on", 1, None, ""]).text("True, on, 1, None") == "True, on, 1, None"


def test_nested_values_and_numbers_are_secrets() -> None:
    nested = {"a": [{"b": "hidden"}], "c": 12345}
    assert sorted(leaves(nested)) == ["12345", "hidden"]
    assert Redactor(nested).text("hidden 12345") == f"{MASK} {MASK}"


def test_data_keeps_its_shape() -> None:
    value = {"hidden": ["a hidden b", 1, None, {"x": ("hidden",)}]}
    assert Redactor(["hidden"]).data(value) == {MASK: [f"a {MASK} b", 1, None, {"x": [MASK]}]}


def test_nothing_to_hide_changes_nothing() -> None:
    assert Redactor({}).text("some text") == "some text"
