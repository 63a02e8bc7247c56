# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances of a simulated cloud that take their time to come up, or do not.

Moto's instances run at once, pass all status checks and have the same console; of Systems Manager's agents it knows
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.core.utils import utcnow
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import Instance
from moto.ec2.responses.general import General
from moto.ec2.responses.instances import InstanceResponse
from moto.ssm.responses import SimpleSystemManagerResponse

from .cloud import HOME, ec2_backends

STATES = {"pending": 0, "running": 16, "stopping": 64, "stopped": 80}


@dataclass(frozen=True)
class Moment:
    """How an instance is for the time of one look at it."""

    state: str = "running"
    instance: str = "ok"
    system: str = "ok"
    console: str = ""
    kept: str = ""  # what EC2 has kept of its first minutes
    agent: str | None = "Online"


@dataclass
class Machines:
    """What becomes of the instances: each DescribeInstances goes on to the next moment, the last one stays."""

    stories: dict[str, list[Moment]] = field(default_factory=dict)
    nitro: bool = True

    def now(self, instance_id: str) -> Moment:
        """The moment that an instance is in."""
        return self.stories.get(instance_id, [Moment()])[0]

    def start(self, *moments: Moment, region: str = "eu-west-1", **attributes: Any) -> Any:
        """Start an instance that has this story; moto's object of it is returned."""
        backend = ec2_backends[HOME][region]
        [image, *_others] = backend.amis
        [group] = [group for group in backend.groups[backend.get_default_vpc().id].values() if group.name == "default"]
        options = {"instance_type": "m8i.xlarge", "is_instance_type_default": True, "region_name": region}
        [instance] = backend.run_instances(image, 1, None, [], **options, security_group_ids=[group.id]).instances
        for attribute, value in attributes.items():
            setattr(instance, attribute, value)
        self.stories[instance.id] = list(moments) or [Moment()]
        return instance


def status(value: str) -> dict[str, Any]:
    """A status as EC2 gives it."""
    details = {"ok": "passed", "impaired": "failed"}
    if value == "not-applicable":
        return {"Status": value}
    return {"Status": value, "Details": [{"Name": "reachability", "Status": details.get(value, value)}]}


@contextlib.contextmanager
def launched() -> Iterator[Machines]:
    """Give the instances of the running cloud a life."""
    machines = Machines()
    whole_describe = InstanceResponse.describe_instances
    seen: set[str] = set()

    def describe(response: InstanceResponse) -> ActionResult:
        for instance in response.ec2_backend.all_instances():
            story = machines.stories.get(instance.id, [])
            if instance.id in seen and len(story) > 1:
                story.pop(0)
            seen.add(instance.id)
            instance._state.name = machines.now(instance.id).state
            instance._state.code = STATES[instance._state.name]
        return whole_describe(response)

    def console(response: General) -> ActionResult:
        instance = response.ec2_backend.get_instance(response._get_param("InstanceId"))
        latest = response._get_param("Latest", False)
        if latest and not machines.nitro:
            message = "This instance type does not support retrieving the latest console logs"
            raise EC2ClientError("UnsupportedOperation", message)
        moment = machines.now(instance.id)
        text = moment.console if latest else moment.kept
        answer = {"InstanceId": instance.id, "Timestamp": utcnow()}
        return ActionResult({**answer, "Output": Base64EncodedString.from_raw_string(text)} if text else answer)

    def agents(response: SimpleSystemManagerResponse) -> ActionResult:
        [wanted] = [each["Values"] for each in response._get_param("Filters") if each["Key"] == "InstanceIds"]
        backend = ec2_backends[response.current_account][response.region]
        known = {instance.id for instance in backend.all_instances()}
        pings = {each: machines.now(each).agent for each in wanted if each in known}
        found = [
            {"InstanceId": each, "PingStatus": ping, "AgentVersion": "3.3.40.0", "PlatformType": "Linux"}
            for each, ping in pings.items()
            if ping
        ]
        return ActionResult({"InstanceInformationList": found})

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (InstanceResponse, "describe_instances", describe),
            (General, "get_console_output", console),
            (SimpleSystemManagerResponse, "describe_instance_information", agents),
            (Instance, "instance_status", property(lambda instance: status(machines.now(instance.id).instance))),
            (Instance, "system_status", property(lambda instance: status(machines.now(instance.id).system))),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        yield machines
