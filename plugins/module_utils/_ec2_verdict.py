# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""What EC2 and SSM say of an instance, judged: pure functions from their answers to verdicts."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_console as console
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_reach import Ports, uncovered

Answer = t.Mapping[str, t.Any]

STATUS_CHECKS = (
    (
        "system_status",
        "SystemStatus",
        "The fault is in AWS's hardware or network: stop and start the instance, which moves it to another host.",
    ),
    (
        "instance_status",
        "InstanceStatus",
        "Its network does not answer: look at the rows of the console and at console_tail; the page "
        "docs/troubleshooting_cml.md goes from symptom to cause.",
    ),
    (
        "ebs_status",
        "AttachedEbsStatus",
        "A volume does not complete its reads and writes: see the volume's status checks.",
    ),
)
NO_CONSOLE = (
    "An image needs console=ttyS0 in its kernel command line. Types that are not of the Nitro system show the console "
    "only minutes after a start."
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one check has come to."""

    name: str
    target: str
    #: pass, warn, fail or skip.
    status: str
    detail: str
    hint: str = ""
    lines: tuple[str, ...] = ()
    #: It may become better by itself.
    waiting: bool = False
    #: This machine will not become better, whatever else is waited for.
    final: bool = False

    def report(self) -> dict[str, t.Any]:
        """Return what the result says of it."""
        keys = ("name", "target", "status", "detail", "hint")
        return {**{key: getattr(self, key) for key in keys}, "lines": list(self.lines)}


def of_state(instance: Answer) -> Verdict:
    """Judge whether it runs."""
    state = instance["State"]["Name"]
    if state == "running":
        return Verdict("state", instance["InstanceId"], "pass", state)
    reason = instance.get("StateReason", {}).get("Message") or instance.get("StateTransitionReason") or ""
    detail = f"{state}: {reason}" if reason else state
    hint = "" if state == "pending" else "Start it, or launch another one; the reason is EC2's."
    return Verdict("state", instance["InstanceId"], "fail", detail, hint, waiting=state == "pending", final=bool(hint))


def of_status(status: Answer) -> list[Verdict]:
    """Judge the status checks of EC2."""
    verdicts = []
    for name, key, hint in STATUS_CHECKS:
        found = status.get(key, {}).get("Status")
        if found == "ok":
            verdicts.append(Verdict(name, "", "pass", found))
        elif found in ("impaired", "initializing", "insufficient-data"):
            text = hint if found == "impaired" else "It takes some minutes after a start: give it more time (wait)."
            verdicts.append(Verdict(name, "", "fail", found, text, waiting=True))
        elif name != "ebs_status":
            verdicts.append(Verdict(name, "", "skip", found or "EC2 does not say"))
    return verdicts


def of_console(text: str, expect: t.Pattern[str] | None, ignore: t.Collection[str]) -> list[Verdict]:
    """Judge what the machine has printed while it booted."""
    lines = [line for line in console.plain_lines(text) if line]
    verdicts = []
    for finding in console.scan(text, [fault for fault in console.FAULTS if fault.name not in ignore]):
        fault = finding.fault
        detail = f"{finding.count} line{'s' if finding.count > 1 else ''}: {finding.lines[0]}"
        final = fault.level == "fail"
        verdicts.append(Verdict("console", fault.name, fault.level, detail, fault.hint, finding.lines, final=final))
    if not lines:
        return [Verdict("console", "", "fail" if expect else "warn", "it is empty", NO_CONSOLE, waiting=True)]
    if expect is not None:
        seen = [line for line in lines if expect.search(line)]
        if seen:
            verdicts.append(Verdict("console", "expected", "pass", seen[-1]))
        else:
            hint = "It has not come that far, or it prints something else: see console_tail."
            detail = f"no line matches {expect.pattern!r}"
            verdicts.append(Verdict("console", "expected", "fail", detail, hint, waiting=True))
    return verdicts or [Verdict("console", "", "pass", f"{len(lines)} lines, no known fault")]


def primary(instance: Answer) -> Answer:
    """Return the interface that an instance is reached by; empty if it has none."""
    found = [each for each in instance.get("NetworkInterfaces", []) if each["Attachment"]["DeviceIndex"] == 0]
    return found[0] if found else {}


def addresses(interface: Answer) -> list[str]:
    """Return the addresses of an interface, the one for the outside first."""
    public = interface.get("Association", {}).get("PublicIp")
    six = [each["Ipv6Address"] for each in interface.get("Ipv6Addresses", [])]
    return [address for address in (public, interface.get("PrivateIpAddress"), *six) if address]


def of_interfaces(instance: Answer) -> list[Verdict]:
    """Judge whether the interfaces are attached and have addresses."""
    verdicts = []
    for interface in instance.get("NetworkInterfaces", []):
        attached = interface["Attachment"]["Status"]
        found = addresses(interface)
        detail = ", ".join([attached, *(found or ["no address"])])
        good = attached == "attached" and bool(found)
        hint = "" if good else "See the interface and its subnet in EC2."
        name = interface["NetworkInterfaceId"]
        verdicts.append(Verdict("interface", name, "pass" if good else "fail", detail, hint, waiting=not good))
    return verdicts or [Verdict("interface", "", "fail", "the instance has none", "Terminated instances have none.")]


def of_ports(
    ports: t.Iterable[Ports], sources: t.Sequence[str], groups: t.Sequence[str], permissions: t.Sequence[Answer]
) -> list[Verdict]:
    """Judge whether the rules of security groups let every source in, to each of the ports."""
    verdicts, names = [], ", ".join(groups)
    for wanted in ports:
        for source in sources:
            missing = ", ".join(str(part) for part in uncovered(wanted, source, permissions))
            target = f"{wanted} from {source}"
            if missing:
                hint = "Add a rule for incoming traffic; one that names another security group does not count here."
                verdicts.append(Verdict("port", target, "fail", f"no rule of {names} opens {missing}", hint))
            else:
                verdicts.append(Verdict("port", target, "pass", f"opened by {names}"))
    return verdicts


def of_ssm(instance: Answer, registered: t.Sequence[Answer]) -> Verdict:
    """Judge whether the agent of Systems Manager has registered, and is there."""
    if registered and registered[0]["PingStatus"] == "Online":
        return Verdict("ssm", "", "pass", f"Online, agent {registered[0].get('AgentVersion', 'of unknown version')}")
    if registered:
        detail, hint = registered[0]["PingStatus"], "The agent has registered, but is silent: see its log in /var/log."
    elif "IamInstanceProfile" not in instance:
        detail = "not registered"
        hint = "It has no instance profile: give it one with AmazonSSMManagedInstanceCore."
    else:
        detail = "not registered"
        hint = (
            "See that the agent is installed and runs, that its role has AmazonSSMManagedInstanceCore, and that it "
            "reaches the endpoints ssm and ssmmessages of its region (net_validate on the machine, option ssm)."
        )
    return Verdict("ssm", "", "fail", detail, hint, waiting=True)
