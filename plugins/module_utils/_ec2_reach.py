# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""Whether the security groups of an instance let somebody in, judged from what EC2 says they are."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ANY_PROTOCOL = "-1"


class PortError(ValueError):
    """Not a port; the message says what is one."""


@dataclasses.dataclass(frozen=True)
class Ports:
    """A range of ports of one protocol."""

    protocol: str
    first: int
    last: int

    def __str__(self) -> str:
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{span}/{self.protocol}"


def parse_ports(text: str | int) -> Ports:
    """Read 22, 2000-7999 or 2000-7999/udp."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp))?", str(text))
    if match:
        ports = Ports(match[3] or "tcp", int(match[1]), int(match[2] or match[1]))
        if 0 < ports.first <= ports.last <= 65535:
            return ports
    raise PortError(f"{text!r} is no port: say 22, 2000-7999 or 2000-7999/udp, from 1 to 65535")


def uncovered(wanted: Ports, source: str, permissions: Iterable[Mapping[str, t.Any]]) -> list[Ports]:
    """The part of the wanted ports that no rule opens to the network `source`; rules for other groups do not count."""
    network = ipaddress.ip_network(source)
    left = [wanted]
    for rule in permissions:
        if rule["IpProtocol"] not in (wanted.protocol, ANY_PROTOCOL) or not _admits(rule, network):
            continue
        if rule["IpProtocol"] == ANY_PROTOCOL:
            return []
        left = [part for ports in left for part in _without(ports, rule["FromPort"], rule["ToPort"])]
    return left


def _admits(rule: Mapping[str, t.Any], network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    ranges = [entry["CidrIp"] for entry in rule.get("IpRanges", [])]
    ranges += [entry["CidrIpv6"] for entry in rule.get("Ipv6Ranges", [])]
    for cidr in ranges:
        other = ipaddress.ip_network(cidr)
        if other.version == network.version and network.subnet_of(other):  # type: ignore[arg-type]
            return True
    return False


def _without(ports: Ports, first: int, last: int) -> list[Ports]:
    """What is left of a range when another is taken out."""
    before = Ports(ports.protocol, ports.first, min(ports.last, first - 1))
    after = Ports(ports.protocol, max(ports.first, last + 1), ports.last)
    return [part for part in (before, after) if part.first <= part.last]
