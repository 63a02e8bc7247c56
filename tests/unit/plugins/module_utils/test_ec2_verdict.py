# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_verdict as judge
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_reach import parse_ports

SYNTAX = "/var/lib/cloud/instance/scripts/runcmd: 3: Syntax error: redirection unexpected"


def instance(state: str = "running", **more: Any) -> dict[str, Any]:
    return {"InstanceId": "i-1", "State": {"Name": state}, **more}


def interface(index: int = 0, attached: str = "attached", **more: Any) -> dict[str, Any]:
    attachment = {"DeviceIndex": index, "Status": attached}
    return {"NetworkInterfaceId": f"eni-{index}", "Attachment": attachment, "PrivateIpAddress": "10.0.0.7", **more}


@pytest.mark.parametrize(
    ("state", "status", "waiting", "final"),
    [
        ("running", "pass", False, False),
        ("pending", "fail", True, False),
        ("stopping", "fail", False, True),
        ("terminated", "fail", False, True),
    ],
)
def test_state(state: str, status: str, waiting: bool, final: bool) -> None:
    found = judge.of_state(instance(state))
    assert (found.status, found.waiting, found.final) == (status, waiting, final)


def test_the_reason_of_a_stop_is_told() -> None:
    reason = {"Message": "Client.InternalError: Client error on launch", "Code": "Client.InternalError"}
    assert judge.of_state(instance("terminated", StateReason=reason)).detail == f"terminated: {reason['Message']}"


@pytest.mark.parametrize(
    ("value", "status", "waiting"),
    [
        ("ok", "pass", False),
        ("initializing", "fail", True),
        ("insufficient-data", "fail", True),
        ("impaired", "fail", True),
        ("not-applicable", "skip", False),
        (None, "skip", False),
    ],
)
def test_status_checks(value: str | None, status: str, waiting: bool) -> None:
    answer = {"SystemStatus": {"Status": "ok"}, **({"InstanceStatus": {"Status": value}} if value else {})}
    system, found = judge.of_status(answer)
    assert (system.name, system.status) == ("system_status", "pass")
    assert (found.name, found.status, found.waiting) == ("instance_status", status, waiting)
    assert bool(found.hint) == (status == "fail")


def test_a_volume_that_does_not_answer() -> None:
    answer = {key: {"Status": "ok"} for key in ("SystemStatus", "InstanceStatus")}
    *_others, found = judge.of_status({**answer, "AttachedEbsStatus": {"Status": "impaired"}})
    assert (found.name, found.status) == ("ebs_status", "fail")


def test_console_with_a_fault_and_a_warning() -> None:
    text = (
        f"Linux version 6.12\r\n{SYNTAX}\r\n[ FAILED ] Failed to start nginx.service\r\nCloud-init v. 25 finished\r\n"
    )
    fault, warning = judge.of_console(text, None, [])
    assert (fault.target, fault.status, fault.lines, fault.final) == ("shell_syntax", "fail", (SYNTAX,), True)
    assert (warning.target, warning.status, warning.final) == ("unit_failed", "warn", False)
    [only] = judge.of_console(text, None, ["shell_syntax", "unit_failed"])
    assert (only.status, only.detail) == ("pass", "4 lines, no known fault")


@pytest.mark.parametrize(
    ("text", "expect", "status", "waiting"),
    [
        ("", None, "warn", True),
        ("", "finished", "fail", True),
        ("\r\n", None, "warn", True),
        ("booting", "finished", "fail", True),
        ("Cloud-init v. 25.1 finished at", "v.* finished", "pass", False),
        ("booting", None, "pass", False),
    ],
)
def test_console_that_is_waited_for(text: str, expect: str | None, status: str, waiting: bool) -> None:
    [found] = judge.of_console(text, re.compile(expect) if expect else None, [])
    assert (found.status, found.waiting) == (status, waiting)


def test_interfaces_and_their_addresses() -> None:
    public = {"Association": {"PublicIp": "198.51.100.7"}, "Ipv6Addresses": [{"Ipv6Address": "2001:db8::7"}]}
    machine = instance(NetworkInterfaces=[interface(1, "attaching"), interface(0, **public)])
    bad, good = judge.of_interfaces(machine)
    assert (bad.status, bad.waiting, good.status, good.waiting) == ("fail", True, "pass", False)
    assert good.detail == "attached, 198.51.100.7, 10.0.0.7, 2001:db8::7"
    assert judge.primary(machine)["NetworkInterfaceId"] == "eni-0"
    [none] = judge.of_interfaces(instance())
    assert none.status == "fail" and judge.primary(instance()) == {}
    assert judge.of_interfaces(instance(NetworkInterfaces=[interface(PrivateIpAddress=None)]))[0].status == "fail"


def test_ports_from_every_network() -> None:
    rules = [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}]
    ports = [parse_ports("443"), parse_ports("1122")]
    found = judge.of_ports(ports, ["192.0.2.0/25", "198.51.100.0/24"], ["sg-1", "sg-2"], rules)
    assert [(each.target, each.status) for each in found] == [
        ("443/tcp from 192.0.2.0/25", "pass"),
        ("443/tcp from 198.51.100.0/24", "fail"),
        ("1122/tcp from 192.0.2.0/25", "fail"),
        ("1122/tcp from 198.51.100.0/24", "fail"),
    ]
    assert found[-1].detail == "no rule of sg-1, sg-2 opens 1122/tcp"


@pytest.mark.parametrize(
    ("machine", "registered", "status", "text"),
    [
        ({}, [{"PingStatus": "Online", "AgentVersion": "3.3.40.0"}], "pass", "agent 3.3.40.0"),
        ({}, [{"PingStatus": "ConnectionLost"}], "fail", "silent"),
        ({}, [], "fail", "no instance profile"),
        ({"IamInstanceProfile": {"Arn": "arn"}}, [], "fail", "endpoints ssm and ssmmessages"),
    ],
)
def test_ssm(machine: dict[str, Any], registered: list[dict[str, Any]], status: str, text: str) -> None:
    found = judge.of_ssm(instance(**machine), registered)
    assert found.status == status and text in found.detail + found.hint
    assert found.waiting == (status == "fail")
