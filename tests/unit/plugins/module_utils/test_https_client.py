# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses as users write them."""

from __future__ import annotations

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import Place, parse_place, printable


@pytest.mark.parametrize(
    ("text", "port", "place", "shown"),
    [
        ("cml.example.com", None, Place("https", "cml.example.com", 443), "https://cml.example.com"),
        ("https://CML.example.com/", None, Place("https", "cml.example.com", 443), "https://cml.example.com"),
        ("cml:8443", None, Place("https", "cml", 8443), "https://cml:8443"),
        ("cml", 8443, Place("https", "cml", 8443), "https://cml:8443"),
        ("http://ip6-localhost:8001", None, Place("http", "ip6-localhost", 8001), "http://ip6-localhost:8001"),
        ("http://cml", None, Place("http", "cml", 80), "http://cml"),
        ("192.0.2.1", None, Place("https", "192.0.2.1", 443), "https://192.0.2.1"),
        ("2001:db8::1", 8443, Place("https", "2001:db8::1", 8443), "https://[2001:db8::1]:8443"),
        ("https://[2001:db8::1]", None, Place("https", "2001:db8::1", 443), "https://[2001:db8::1]"),
    ],
)
def test_places(text: str, port: int | None, place: Place, shown: str) -> None:
    assert parse_place(text, port) == place
    assert str(place) == shown


@pytest.mark.parametrize(
    "text",
    ["", "https://", "cml/lab", "ssh://cml", "a b", "cml:x", "cml:0", "[::1", "https://cml?x=1", "cml\r\nHost: x"],
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError):
        parse_place(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("localhost", True), ("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("localhost.example.com", False)],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert parse_place(text).is_loopback is loopback


def test_printable() -> None:
    assert printable("a\x1b[31m\ud800é" + "x" * 300, limit=8) == "a?[31m?é"
