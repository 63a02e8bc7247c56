# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ec2_launch_check with the real boto3 against instances of a simulated cloud, and servers on loopback as outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.ami_module import Module
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_launch import Machines, Moment, launched
from ansible_collections.goldsmith.images.tests.support.cml_controller import (
    PASSWORD,
    USER,
    Site,
    free_port,
    greeter,
    information,
    serve,
)

REGION = "eu-west-1"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
END = "cloud-init[512]: Cloud-init v. 25.1.4 finished at Fri, 27 Nov 2026 01:00:01 +0000."
BOOT = f"[    0.000000] Linux version 6.12.0-cloud-amd64\r\n{END}\r\nnode login: "
SYNTAX = "/var/lib/cloud/instance/scripts/runcmd: 3: Syntax error: redirection unexpected"
UP = Moment(console=BOOT)
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def machines(cloud: Cloud) -> Iterator[Machines]:
    cloud.image(name="golden")
    with launched() as machines:
        yield machines


@pytest.fixture
def check(cloud: Cloud, machines: Machines, tmp_path: Path) -> Check:
    module = Module(cloud, tmp_path, "ec2_launch_check", region=REGION, interval=1)

    def run(instance: Any, **params: Any) -> dict[str, Any]:
        result = module(instance_id=getattr(instance, "id", instance), **params)
        assert result is not None
        if "checks" in result:
            documented.check_returned("ec2_launch_check", result)
        assert not result.get("changed")
        return result

    return run


def ec2(cloud: Cloud) -> Any:
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    return boto3.client("ec2", region_name=REGION, endpoint_url=cloud.url, **keys)


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {f"{each['name']} {each['target']}".strip(): each["status"] for each in result["checks"]}


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [each for each in result["checks"] if each["name"] == name]
    return found


# ------------------------------------------------------------------------------------------------ from AWS's side
def test_an_instance_that_is_up(machines: Machines, check: Check) -> None:
    instance = machines.start(UP)
    result = check(instance)
    assert result["ok"] and not result["degraded"] and result["console_tail"] == []
    assert statuses(result) == {
        f"state {instance.id}": "pass",
        "system_status": "pass",
        "instance_status": "pass",
        "console": "pass",
        f"interface {instance.nics[0].id}": "pass",
        "ssm": "pass",
    }
    assert (result["attempts"], result["cml_gui"]) == (1, None)
    found = result["instance"]
    assert (found["image_id"], found["state"], found["instance_type"]) == (instance.image_id, "running", "m8i.xlarge")
    assert found["public_address"] == instance.nics[0].public_ip


def test_it_is_waited_for_until_all_is_there(cloud: Cloud, machines: Machines, check: Check) -> None:
    early = {"agent": None, "instance": "initializing", "system": "initializing"}
    instance = machines.start(
        Moment(state="pending", **early),
        Moment(console="Linux version 6.12\r\n", **early),
        Moment(console="Linux version 6.12\r\n"),
        UP,
    )
    result = check(instance, wait=60, console_expect="Cloud-init v.* finished")
    assert result["ok"], result
    assert result["attempts"] == 4
    assert [each["detail"] for each in result["checks"] if each["target"] == "expected"] == [END]


def test_what_has_not_come_in_time_fails(machines: Machines, check: Check) -> None:
    result = check(machines.start(Moment(system="initializing", instance="insufficient-data", console=BOOT)))
    assert not result["ok"]
    assert row(result, "system_status")["detail"] == "initializing" and "wait" in row(result, "system_status")["hint"]
    assert result["console_tail"] == BOOT.split("\r\n")[:2] + ["node login:"]


def test_a_fault_on_the_console_ends_the_wait(machines: Machines, check: Check) -> None:
    early = Moment(instance="initializing", agent=None)
    broken = Moment(instance="initializing", agent=None, console=f"Linux version 6.12\r\n\x1b[31m{SYNTAX}\x1b[0m\r\n")
    result = check(machines.start(early, broken), wait=3600, fail=True)
    assert result["failed"] and SYNTAX in result["msg"]
    assert result["attempts"] == 2
    fault = row(result, "console")
    assert (fault["target"], fault["status"], fault["lines"]) == ("shell_syntax", "fail", [SYNTAX])
    assert "#!/bin/bash" in fault["hint"]
    assert result["console_tail"][-1] == SYNTAX


def test_a_fault_of_the_first_minutes_is_seen_though_the_console_has_gone_on(machines: Machines, check: Check) -> None:
    result = check(machines.start(Moment(kept=f"{SYNTAX}\r\n", console=BOOT)))
    assert row(result, "console")["target"] == "shell_syntax"


def test_a_type_without_a_live_console(machines: Machines, check: Check) -> None:
    machines.nitro = False
    assert check(machines.start(Moment(kept=BOOT)))["ok"]
    result = check(machines.start(Moment(console=BOOT)))
    assert result["ok"] and result["degraded"]
    assert row(result, "console")["detail"] == "it is empty" and "ttyS0" in row(result, "console")["hint"]


def test_a_fault_that_is_none_for_this_machine(machines: Machines, check: Check) -> None:
    instance = machines.start(Moment(console=f"{SYNTAX}\r\n{BOOT}"))
    assert check(instance, console_ignore=["shell_syntax"])["ok"]
    assert check(instance, console=False)["ok"]


def test_an_instance_that_has_stopped(machines: Machines, check: Check) -> None:
    not_there = {"instance": "not-applicable", "system": "not-applicable"}
    instance = machines.start(Moment(state="stopped", agent="ConnectionLost", **not_there), _reason="User initiated")
    result = check(instance, wait=3600, connect_ports=[22], cml_gui={})
    assert result["attempts"] == 1
    assert row(result, "state")["detail"] == "stopped: User initiated"
    assert {name: row(result, name)["status"] for name in ("system_status", "tcp", "cml_gui")} == dict.fromkeys(
        ("system_status", "tcp", "cml_gui"), "skip"
    )


def test_reachability_check_failed(machines: Machines, check: Check) -> None:
    result = check(machines.start(Moment(instance="impaired", console=BOOT)))
    found = row(result, "instance_status")
    assert (found["status"], found["detail"]) == ("fail", "impaired") and "troubleshooting_cml.md" in found["hint"]


@pytest.mark.parametrize(("agent", "text"), [(None, "no instance profile"), ("ConnectionLost", "is silent")])
def test_no_agent(machines: Machines, check: Check, agent: str | None, text: str) -> None:
    instance = machines.start(Moment(console=BOOT, agent=agent))
    result = check(instance)
    assert not result["ok"] and text in row(result, "ssm")["hint"]
    assert check(instance, ssm=False)["ok"]


def test_what_the_security_groups_let_in(cloud: Cloud, machines: Machines, check: Check) -> None:
    instance, client = machines.start(UP), ec2(cloud)
    [group] = [each["GroupId"] for each in client.describe_security_groups()["SecurityGroups"]
               if each["GroupId"] in check(instance)["instance"]["security_groups"]]  # fmt: skip
    listed = client.create_managed_prefix_list(
        PrefixListName="offices", MaxEntries=5, AddressFamily="IPv4", Entries=[{"Cidr": "198.51.100.0/24"}]
    )["PrefixList"]["PrefixListId"]
    for protocol, first, last, source in (
        ("tcp", 443, 443, {"IpRanges": [{"CidrIp": "192.0.2.0/24"}]}),
        ("tcp", 443, 443, {"PrefixListIds": [{"PrefixListId": listed}]}),
        ("tcp", 2000, 4999, {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}),
    ):
        rule = {"IpProtocol": protocol, "FromPort": first, "ToPort": last, **source}
        client.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    result = check(instance, ports=["443", "2000-7999"], sources=["192.0.2.0/25", "198.51.100.7/32"])
    assert not result["ok"]
    assert {name: status for name, status in statuses(result).items() if name.startswith("port")} == {
        "port 443/tcp from 192.0.2.0/25": "pass",
        "port 443/tcp from 198.51.100.7/32": "pass",
        "port 2000-7999/tcp from 192.0.2.0/25": "fail",
        "port 2000-7999/tcp from 198.51.100.7/32": "fail",
    }
    [detail] = {each["detail"] for each in result["checks"] if each["status"] == "fail"}
    assert detail == f"no rule of {group} opens 5000-7999/tcp"


@pytest.mark.parametrize(
    ("action", "name", "hint"),
    [
        ("DescribeInstanceStatus", "status", "ec2:DescribeInstanceStatus"),
        ("GetConsoleOutput", "console", "console: false"),
        ("DescribeSecurityGroups", "port", "ec2:DescribeSecurityGroups"),
        ("DescribeInstanceInformation", "ssm", "ssm: false"),
    ],
)
def test_what_may_not_be_looked_at_is_no_pass(
    cloud: Cloud, machines: Machines, check: Check, action: str, name: str, hint: str
) -> None:
    cloud.refuse[HOME, action] = "UnauthorizedOperation"
    result = check(machines.start(UP), ports=["22"], sources=["192.0.2.0/24"])
    assert not result["ok"]
    assert "could not be looked at: UnauthorizedOperation" in row(result, name)["detail"]
    assert hint in row(result, name)["hint"]


def test_an_instance_that_is_not_there(cloud: Cloud, machines: Machines, check: Check) -> None:
    result = check("i-0123456789abcdef0")
    assert result["failed"] and "there is no instance i-0123456789abcdef0 in eu-west-1" in result["msg"]
    cloud.refuse[HOME, "DescribeInstances"] = "UnauthorizedOperation"
    result = check(machines.start(UP))
    assert result["failed"] and "UnauthorizedOperation" in result["msg"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"instance_id": "i-123"}, "'i-123' does not look like i-0123456789abcdef0"),
        ({"ports": ["ssh"], "sources": ["192.0.2.0/24"]}, "ports: 'ssh' is no port"),
        ({"ports": ["22"]}, "ports and sources belong together"),
        ({"sources": ["192.0.2.0/24"]}, "ports and sources belong together"),
        ({"ports": ["22"], "sources": ["192.0.2.1/24"]}, "192.0.2.1/24 has host bits set"),
        ({"ports": ["22"], "sources": ["office"]}, "sources: 'office'"),
        ({"console_expect": "("}, "'(' is no regular expression"),
        ({"console_ignore": ["everything"]}, "kernel_panic"),
        ({"connect_ports": [70000]}, "70000 is no port"),
        ({"wait": -1}, "wait: -1.0 is not between 0 and 3600 seconds"),
        ({"interval": 0}, "interval: 0.0"),
        ({"timeout": 0}, "timeout: 0.0"),
        ({"cml_gui": {"level": "health"}}, "cml_gui: level health needs username and password"),
        ({"cml_gui": {"fingerprint": "00:11"}}, "64 hexadecimal digits"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(
    cloud: Cloud, check: Check, params: dict[str, Any], message: str
) -> None:
    given = {"instance_id": "i-0123456789abcdef0", **params}
    result = check(given.pop("instance_id"), **given)
    assert result["failed"] and message in result["msg"], result["msg"]
    assert not cloud.calls


# --------------------------------------------------------------------------------------------------- from outside
def test_ports_from_outside(machines: Machines, check: Check) -> None:
    instance, good, bad = machines.start(UP), free_port(), free_port()
    with greeter(good, b"SSH-2.0-stand-in\r\n"):
        result = check(instance, address="127.0.0.1", connect_ports=[good, bad])
    assert {each["target"]: each["status"] for each in result["checks"] if each["name"] == "tcp"} == {
        f"127.0.0.1:{good}": "pass",
        f"127.0.0.1:{bad}": "fail",
    }
    assert not result["ok"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    (tmp_path / "site").mkdir()
    with serve(tmp_path / "site", NGINX) as site:
        yield site


def test_user_interface_from_outside(machines: Machines, check: Check, site: Site) -> None:
    gui = {"port": site.ports["good"], "ca_path": site.ca_path, "username": USER, "password": PASSWORD}
    instance = machines.start(UP)
    result = check(instance, address="localhost", cml_gui={**gui, "level": "health"})
    assert result["ok"], result
    documented.check_returned("cml_gui_check", result["cml_gui"])
    assert (row(result, "cml_gui")["status"], row(result, "cml_gui")["target"]) == ("pass", "localhost")
    assert PASSWORD not in json.dumps(result)
    site.controller.replies["system_information"] = [information(ready=False), information(ready=False), information()]
    later = check(instance, address="localhost", cml_gui=gui, wait=60)
    assert later["ok"] and later["cml_gui"]["attempts"] == 3
    site.controller.stop()
    down = check(instance, address="localhost", cml_gui=gui)
    assert not down["ok"] and down["cml_gui"]["state"] == "backend_down"
    assert "502" in row(down, "cml_gui")["detail"] and row(down, "cml_gui")["hint"]
