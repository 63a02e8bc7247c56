# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums and keyrings; the transfers themselves are tested against a real server."""

from __future__ import annotations

import base64

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _download
from ansible_collections.goldsmith.images.plugins.module_utils._download import DownloadError

SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
SHA512 = (
    "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
    "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
)


def test_checksums() -> None:
    assert str(_download.parse_checksum(f"sha256:{SHA256.upper()}")) == f"sha256:{SHA256}"
    assert _download.parse_checksum(f" sha512:{SHA512}\n").algorithm == "sha512"


@pytest.mark.parametrize("text", ["", SHA256, f"md5:{SHA256[:32]}", f"sha512:{SHA256}", f"sha256:{SHA256[:-1]}x"])
def test_not_a_checksum(text: str) -> None:
    with pytest.raises(DownloadError, match="not a checksum"):
        _download.parse_checksum(text)


@pytest.mark.parametrize(
    "line",
    [
        f"{SHA256}  disk.qcow2",
        f"{SHA256} *disk.qcow2",
        f"{SHA256}  ./disk.qcow2",
        f"SHA256 (disk.qcow2) = {SHA256}",
    ],
)
def test_forms_of_checksum_files(line: str) -> None:
    text = f"# comment\n{'0' * 64}  other-disk.qcow2\n{line}\n"
    assert _download.parse_checksum_file(text, "disk.qcow2").digest == SHA256


def test_name_must_match_whole() -> None:
    with pytest.raises(DownloadError, match="no line"):
        _download.parse_checksum_file(f"{SHA256}  old/disk.qcow2\n{SHA256}  disk.qcow2.xz\n", "disk.qcow2")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a.example.com/x", "https://a.example.com/", "disk.qcow2"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(DownloadError, match="not the address"):
        _download.file_name(url)


def test_name_in_an_address() -> None:
    assert _download.file_name("https://a.example.com/x/disk%20one.img?token=1#x") == "disk one.img"


def test_armoured_keyring() -> None:
    data = bytes(range(200))
    body = base64.encodebytes(data).decode()
    armour = f"-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n{body}=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
    assert _download.dearmor(armour.encode()) == data
    assert _download.dearmor((armour * 2).encode()) == data * 2
    assert _download.dearmor(data) == data
