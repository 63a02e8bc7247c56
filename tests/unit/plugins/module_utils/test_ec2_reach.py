# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_reach import PortError, parse_ports, uncovered


def rule(protocol: str, first: int = 0, last: int = 0, *cidrs: str, group: str = "") -> dict[str, Any]:
    ports = {} if protocol == "-1" else {"FromPort": first, "ToPort": last}
    return {
        "IpProtocol": protocol,
        **ports,
        "IpRanges": [{"CidrIp": cidr} for cidr in cidrs if ":" not in cidr],
        "Ipv6Ranges": [{"CidrIpv6": cidr} for cidr in cidrs if ":" in cidr],
        "UserIdGroupPairs": [{"GroupId": group}] if group else [],
    }


@pytest.mark.parametrize(
    ("wanted", "source", "rules", "left"),
    [
        ("443", "192.0.2.1/32", [rule("tcp", 443, 443, "0.0.0.0/0")], []),
        ("443", "192.0.2.1/32", [rule("tcp", 443, 443, "198.51.100.0/24")], ["443/tcp"]),
        ("443", "192.0.2.0/24", [rule("tcp", 443, 443, "192.0.2.0/25")], ["443/tcp"]),
        ("443/udp", "192.0.2.1/32", [rule("tcp", 443, 443, "0.0.0.0/0")], ["443/udp"]),
        ("2000-7999", "192.0.2.1/32", [rule("-1", 0, 0, "0.0.0.0/0")], []),
        (
            "2000-7999", "192.0.2.1/32",
            [rule("tcp", 2000, 2999, "0.0.0.0/0"), rule("tcp", 4000, 9000, "192.0.2.0/24")],
            ["3000-3999/tcp"],
        ),
        ("22", "192.0.2.1/32", [rule("tcp", 22, 22, group="sg-1")], ["22/tcp"]),
        ("22", "2001:db8::1/128", [rule("tcp", 22, 22, "0.0.0.0/0")], ["22/tcp"]),
        ("22", "2001:db8::1/128", [rule("tcp", 22, 22, "::/0")], []),
        ("22", "192.0.2.1/32", [], ["22/tcp"]),
    ],
)  # fmt: skip
def test_what_no_rule_opens(wanted: str, source: str, rules: list[dict[str, Any]], left: list[str]):
    assert [str(ports) for ports in uncovered(parse_ports(wanted), source, rules)] == left


@pytest.mark.parametrize("text", ["", "0", "65536", "9-8", "22/icmp", "ssh", "-1", "1-70000"])
def test_what_is_no_port(text: str):
    with pytest.raises(PortError, match="is no port"):
        parse_ports(text)
