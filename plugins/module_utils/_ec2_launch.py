# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""An instance after its launch: ask EC2 and SSM until nothing is worth waiting for, then knock from outside."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils import (
    _cml_gui,
    _cml_spec,
    _ec2_console,
    _net_plan,
    _net_run,
    _net_spec,
)
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_verdict as judge
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_reach import PortError, Ports, parse_ports
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_verdict import Answer, Verdict
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import STATUSES

INSTANCE_ID = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
LIMITS = {"wait": (0, 3600), "interval": (1, 300), "timeout": (1, 300)}
TAIL = 20
#: The options of cml_gui_check that make sense for an instance whose address is known.
GUI = ("level", "port", "username", "password", "validate_certs", "ca_path", "fingerprint", "expect_version")
SPEC: dict[str, t.Any] = {
    "region": {"type": "str", "required": True},
    "instance_id": {"type": "str", "required": True},
    "console": {"type": "bool", "default": True},
    "console_expect": {"type": "str"},
    "console_ignore": {
        "type": "list",
        "elements": "str",
        "choices": [fault.name for fault in _ec2_console.FAULTS],
        "default": [],
    },
    "ports": {"type": "list", "elements": "str", "default": []},
    "sources": {"type": "list", "elements": "str", "default": []},
    "ssm": {"type": "bool", "default": True},
    "address": {"type": "str"},
    "connect_ports": {"type": "list", "elements": "int", "default": []},
    "cml_gui": {"type": "dict", "options": {name: _cml_spec.SPEC[name] for name in GUI}},
    "timeout": {"type": "float", "default": 10.0},
    "wait": {"type": "float", "default": 0.0},
    "interval": {"type": "float", "default": 10.0},
    "fail": {"type": "bool", "default": False},
}


class LaunchError(Exception):
    """What was asked for cannot be checked; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What was asked for, as far as it had to be read."""

    params: t.Mapping[str, t.Any]
    ports: list[Ports]
    expect: t.Pattern[str] | None

    @classmethod
    def of(cls, params: t.Mapping[str, t.Any]) -> Wanted:
        """Read the parameters. Raises LaunchError for what cannot be meant, before anything is asked."""
        if not INSTANCE_ID.fullmatch(params["instance_id"]):
            raise LaunchError(f"instance_id: {params['instance_id']!r} does not look like i-0123456789abcdef0")
        for name, (low, high) in LIMITS.items():
            if not low <= params[name] <= high:
                raise LaunchError(f"{name}: {params[name]} is not between {low} and {high} seconds")
        if bool(params["ports"]) != bool(params["sources"]):
            raise LaunchError("ports and sources belong together: which ports, and from which networks")
        for source in params["sources"]:
            try:
                ipaddress.ip_network(source)
            except ValueError as exc:
                raise LaunchError(f"sources: {exc}; a network looks like 192.0.2.0/24") from exc
        try:
            ports = [parse_ports(text) for text in params["ports"]]
            expect = re.compile(params["console_expect"]) if params["console_expect"] else None
        except PortError as exc:
            raise LaunchError(f"ports: {exc}") from exc
        except re.error as exc:
            raise LaunchError(f"console_expect: {params['console_expect']!r} is no regular expression: {exc}") from exc
        bad = [port for port in params["connect_ports"] if not 0 < port < 65536]
        if bad:
            raise LaunchError(f"connect_ports: {bad[0]} is no port from 1 to 65535")
        wanted = cls(params, ports, expect)
        if params["cml_gui"] is not None:
            wanted.gui("localhost", 0)  # what is wrong with the options is to be known now
        return wanted

    def gui(self, address: str, wait: float) -> _cml_gui.Wanted:
        """Return the options of the look at the user interface."""
        fixed = dict.fromkeys(_cml_spec.SPEC)
        fixed.update(check_ports=[], timeout=self.params["timeout"], interval=self.params["interval"], wait=wait)
        fixed["host"] = f"[{address}]" if ":" in address else address
        try:
            return _cml_spec.read({**fixed, **self.params["cml_gui"]})
        except _cml_gui.CmlError as exc:
            raise LaunchError(f"cml_gui: {exc}") from exc


class Launch:
    """One look at one instance. *account* is where it is."""

    def __init__(self, account: aws.Account, wanted: Wanted) -> None:
        self.wanted = wanted
        self.params = wanted.params
        self.account = account
        self.ec2, self.ssm = account.client("ec2"), account.client("ssm")
        self.attempts = 0
        self.text = ""

    def __call__(self) -> dict[str, t.Any]:
        """Return the module's result. Raises LaunchError, AwsError."""
        start = time.monotonic()
        end = start + self.params["wait"]
        while True:
            self.attempts += 1
            instance = self._instance()
            verdicts = self._ask(instance) if instance else []
            unsettled = not instance or any(verdict.waiting for verdict in verdicts)
            hopeless = any(verdict.final for verdict in verdicts)
            if not unsettled or hopeless or time.monotonic() + self.params["interval"] > end:
                break
            time.sleep(self.params["interval"])
        if instance is None:
            raise LaunchError(
                f"there is no instance {self.params['instance_id']} in {self.params['region']} of the account "
                f"{self.account.id}"
            )
        # A machine that is broken is not worth waiting for; what it answers all the same is worth knowing.
        left = 0.0 if any(verdict.status == "fail" for verdict in verdicts) else max(0.0, end - time.monotonic())
        outside, gui = self._knock(instance, left)
        verdicts += outside
        summary = {status: sum(verdict.status == status for verdict in verdicts) for status in STATUSES}
        tail = [line for line in _ec2_console.plain_lines(self.text) if line][-TAIL:]
        return {
            "changed": False,
            "ok": summary["fail"] == 0,
            "degraded": summary["warn"] > 0,
            "summary": summary,
            "checks": [verdict.report() for verdict in verdicts],
            "instance": _describe(instance),
            "console_tail": tail if summary["fail"] else [],
            "cml_gui": gui,
            "attempts": self.attempts,
            "elapsed": round(time.monotonic() - start, 2),
        }

    # --- what AWS says ----------------------------------------------------------------------------------------------

    def _instance(self) -> Answer | None:
        # By filter: a new id that is not known everywhere yet would be an error.
        chosen = [{"Name": "instance-id", "Values": [self.params["instance_id"]]}]
        reservations = aws.pages(self.ec2, "describe_instances", "Reservations", Filters=chosen)
        return next((instance for reservation in reservations for instance in reservation["Instances"]), None)

    def _ask(self, instance: Answer) -> list[Verdict]:
        verdicts = [judge.of_state(instance)]
        verdicts += self._asked("status", "", "ec2:DescribeInstanceStatus", lambda: judge.of_status(self._status()))
        if self.params["console"]:
            verdicts += self._asked("console", "console: false", "ec2:GetConsoleOutput", self._console)
        verdicts += judge.of_interfaces(instance)
        interface = judge.primary(instance)
        if self.wanted.ports and interface:
            allow = "ec2:DescribeSecurityGroups and ec2:GetManagedPrefixListEntries"
            verdicts += self._asked("port", "no ports", allow, lambda: self._ports(interface))
        if self.params["ssm"]:
            allow = "ssm:DescribeInstanceInformation"
            verdicts += self._asked("ssm", "ssm: false", allow, lambda: [judge.of_ssm(instance, self._registered())])
        return verdicts

    @staticmethod
    def _asked(name: str, without: str, allow: str, look: t.Callable[[], list[Verdict]]) -> list[Verdict]:
        """Return the verdicts of a look; that AWS does not let us look is not to be taken for a pass."""
        try:
            return look()
        except aws.AwsError as exc:
            hint = f"Allow {allow}" + (f", or leave the check out ({without})." if without else ".")
            return [Verdict(name, "", "fail", f"could not be looked at: {exc}", hint)]

    def _status(self) -> Answer:
        asked = {"InstanceIds": [self.params["instance_id"]], "IncludeAllInstances": True}
        statuses = aws.call(self.ec2.describe_instance_status, **asked)["InstanceStatuses"]
        return statuses[0] if statuses else {}

    def _console(self) -> list[Verdict]:
        # What was kept of the first minutes, and the last 64 KiB: neither alone has all of a long boot.
        first, last = self._output(), ""
        try:
            last = self._output(Latest=True)
        except aws.AwsError as exc:
            if exc.code != "UnsupportedOperation":  # not of the Nitro system
                raise
        self.text = last if first in last else f"{first}\n{last}"
        return judge.of_console(self.text, self.wanted.expect, self.params["console_ignore"])

    def _output(self, **how: bool) -> str:
        answer = aws.call(self.ec2.get_console_output, InstanceId=self.params["instance_id"], **how)
        return str(answer.get("Output", ""))

    def _ports(self, interface: Answer) -> list[Verdict]:
        groups = [group["GroupId"] for group in interface["Groups"]]
        found = aws.pages(self.ec2, "describe_security_groups", "SecurityGroups", GroupIds=groups) if groups else []
        rules = [self._resolved(rule) for group in found for rule in group["IpPermissions"]]
        return judge.of_ports(self.wanted.ports, self.params["sources"], groups, rules)

    def _resolved(self, rule: Answer) -> Answer:
        """Put the networks of prefix lists beside those that the rule names itself."""
        networks = [
            entry["Cidr"]
            for each in rule.get("PrefixListIds", [])
            for entry in aws.pages(
                self.ec2, "get_managed_prefix_list_entries", "Entries", PrefixListId=each["PrefixListId"]
            )
        ]
        four = [{"CidrIp": network} for network in networks if ":" not in network]
        six = [{"CidrIpv6": network} for network in networks if ":" in network]
        return {
            **rule,
            "IpRanges": [*rule.get("IpRanges", []), *four],
            "Ipv6Ranges": [*rule.get("Ipv6Ranges", []), *six],
        }

    def _registered(self) -> list[Answer]:
        chosen = [{"Key": "InstanceIds", "Values": [self.params["instance_id"]]}]
        answer = aws.call(self.ssm.describe_instance_information, Filters=chosen)
        return list(answer["InstanceInformationList"])

    # --- from outside -----------------------------------------------------------------------------------------------

    def _knock(self, instance: Answer, left: float) -> tuple[list[Verdict], dict[str, t.Any] | None]:
        ports, gui = self.params["connect_ports"], self.params["cml_gui"]
        if not ports and gui is None:
            return [], None
        address = self.params["address"] or next(iter(judge.addresses(judge.primary(instance))), "")
        if instance["State"]["Name"] != "running" or not address:
            reason = "it has no address" if instance["State"]["Name"] == "running" else "it does not run"
            names = [*(["tcp"] if ports else []), *(["cml_gui"] if gui is not None else [])]
            return [Verdict(name, "", "skip", reason) for name in names], None
        end = time.monotonic() + left
        verdicts = self._connect(address, left) if ports else []
        if gui is None:
            return verdicts, None
        found = _cml_gui.Check(self.wanted.gui(address, max(0.0, end - time.monotonic()))).run()
        detail = "; ".join(found["problems"]) or f"{found['state']}, version {found['version'] or 'not asked'}"
        verdicts.append(Verdict("cml_gui", address, "pass" if found["ok"] else "fail", detail, found["hint"]))
        return verdicts, found

    def _connect(self, address: str, left: float) -> list[Verdict]:
        host = f"[{address}]" if ":" in address else address
        timeout = max(self.params["timeout"], left)
        options = _net_spec.complete(
            {
                "interfaces": [],
                "default_route": False,
                "tcp": [f"{host}:{port}" for port in self.params["connect_ports"]],
                "timeout": timeout,
                "retries": int(timeout / self.params["timeout"]) - 1,
            }
        )
        results = _net_run.run(_net_plan.plan(options), timeout, options["retries"], options["parallel"])
        return [Verdict(each.name, each.target, each.status, each.detail, each.hint) for each in results]


def _describe(instance: Answer) -> dict[str, t.Any]:
    interface = judge.primary(instance)
    return {
        "instance_id": instance["InstanceId"],
        "image_id": instance["ImageId"],
        "instance_type": instance["InstanceType"],
        "state": instance["State"]["Name"],
        "launched": f"{instance['LaunchTime']:%Y-%m-%dT%H:%M:%SZ}",
        "public_address": interface.get("Association", {}).get("PublicIp"),
        "private_address": interface.get("PrivateIpAddress"),
        "security_groups": [group["GroupId"] for group in interface.get("Groups", [])],
    }
