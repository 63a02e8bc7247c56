# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Read the fingerprints of OpenPGP public keys, without gpg: a minimal system has none, apt on Debian 13 needs none."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import typing as t

BLOCK = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\n(?P<inside>.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
TAG_PUBLIC_KEY = 6


class OpenPGPError(Exception):
    """The text is not what it should be."""


def dearmor(text: str) -> bytes:
    """The packets of all armored blocks in a text."""
    blocks = list(BLOCK.finditer(text.replace("\r\n", "\n")))
    if not blocks:
        raise OpenPGPError("there is no armored OpenPGP public key in the text")
    packets = b""
    for block in blocks:
        # Armor headers such as "Version:" end with an empty line; the checksum is the line that starts with "=".
        headers, blank, body = block["inside"].partition("\n\n")
        if not blank:
            headers, body = "", block["inside"]
        if any(":" not in line for line in headers.splitlines() if line):
            raise OpenPGPError("the armor headers of the OpenPGP key are damaged")
        lines = [line.strip() for line in body.splitlines() if not line.startswith("=")]
        try:
            packets += base64.b64decode("".join(lines), validate=True)
        except binascii.Error as error:
            raise OpenPGPError("the armor of the OpenPGP key is damaged") from error
    return packets


def packets_of(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    """Tag and body of each packet (RFC 9580, section 4.2)."""
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        part = data[position : position + count]
        if len(part) != count:
            raise OpenPGPError("the OpenPGP key is cut off")
        position += count
        return part

    while position < len(data):
        first = take(1)[0]
        if not first & 0x80:
            raise OpenPGPError("the OpenPGP key is damaged")
        if first & 0x40:
            tag = first & 0x3F
            size = take(1)[0]
            if size >= 224 and size != 255:
                raise OpenPGPError("packets of unknown length do not belong in an OpenPGP key")
            if size == 255:
                size = int.from_bytes(take(4), "big")
            elif size >= 192:
                size = ((size - 192) << 8) + take(1)[0] + 192
        else:
            tag = (first & 0x3C) >> 2
            if first & 0x03 == 3:
                raise OpenPGPError("packets of unknown length do not belong in an OpenPGP key")
            size = int.from_bytes(take(1 << (first & 0x03)), "big")
        yield tag, take(size)


def fingerprint(body: bytes) -> str:
    """Of a public key packet (RFC 9580, section 5.5.4)."""
    version = body[0] if body else 0
    if version == 4:
        # SHA-1 is what version 4 of the format defines here.
        digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
        return digest.hexdigest().upper()
    if version == 6:
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise OpenPGPError(f"OpenPGP keys of version {version} are not supported")


def primary_fingerprints(text: str) -> list[str]:
    """The fingerprints of all primary keys in an armored text, in their order."""
    result = [fingerprint(body) for tag, body in packets_of(dearmor(text)) if tag == TAG_PUBLIC_KEY]
    if not result:
        raise OpenPGPError("there is no public key among the OpenPGP packets")
    return result
