# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Hosts, ports and URLs as a caller writes them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import InputError

HOST_NAME = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Endpoint:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Url:
    scheme: str
    endpoint: Endpoint
    path: str
    text: str

    @property
    def authority(self) -> str:
        """For the Host header: without the scheme's own port."""
        text = str(self.endpoint)
        return text.rpartition(":")[0] if self.endpoint.port == PORTS[self.scheme] else text


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that *text* is; None for a name."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def host(text: str, option: str) -> str:
    """A name or an address."""
    if address(text) is not None:
        return text
    # What looks like an address and is none is never a name: the last label of a name is not a number.
    if HOST_NAME.fullmatch(text) is None or text.rstrip(".").rpartition(".")[2].isdigit():
        raise InputError(f"{option}: {text!r} is neither a host name nor an IP address")
    return text


def port(number: str | int, option: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", str(number)) or not 0 < int(number) < 65536:
        raise InputError(f"{option}: {number!r} is no port: it must be a number from 1 to 65535")
    return int(number)


def endpoint(text: str, option: str, default_port: int | None = None) -> Endpoint:
    """HOST:PORT, [IPv6]:PORT, or a host alone where there is a default port."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        name, number = bracketed[1], bracketed[2]
    elif address(text) is not None or ":" not in text:
        name, number = text, None
    else:
        name, _colon, number = text.rpartition(":")
    if number is None:
        if default_port is None:
            raise InputError(f"{option}: {text!r} has no port: write HOST:PORT, or [ADDRESS]:PORT for IPv6")
        number = str(default_port)
    return Endpoint(host(name, option), port(number, option))


def url(text: str, option: str, schemes: tuple[str, ...] = ("http", "https")) -> Url:
    """An absolute URL without credentials."""
    if re.search(r"[\x00-\x20\x7f-\U0010ffff]", text):
        raise InputError(
            f"{option}: {text!r} has a blank, a control character or one that is not ASCII: encode it (%20)"
        )
    try:
        parts = urlsplit(text)
        number = parts.port
    except ValueError as exc:
        raise InputError(f"{option}: {text!r} is no URL: {exc}") from exc
    if parts.scheme not in schemes or not parts.hostname:
        raise InputError(f"{option}: {text!r} is no URL of the form {' or '.join(schemes)}://HOST[:PORT]/PATH")
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{option}: the URL holds a user name or a password, which would be shown in the results")
    where = Endpoint(host(parts.hostname, option), port(PORTS[parts.scheme] if number is None else number, option))
    query = f"?{parts.query}" if parts.query else ""
    return Url(parts.scheme, where, (parts.path or "/") + query, text)
