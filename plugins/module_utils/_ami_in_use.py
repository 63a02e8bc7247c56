# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Who uses an image: instances, launch templates, Auto Scaling, SSM parameters, in all accounts that can be entered."""

from __future__ import annotations

import typing as t
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws

SERVICES = ("ec2", "autoscaling", "ssm")
FILTER_VALUES = 200  # that EC2 takes in a filter


@dataclass
class Usage:
    """What was found, and what could not be looked at."""

    users: list[dict[str, str]] = field(default_factory=list)  # account, kind, id
    unseen: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Return in words what is against touching the image: what cannot be looked at counts as a user."""
        users = [f"{user['kind']} {user['id']} of {user['account']}" for user in self.users]
        return users + [f"not seen: {unseen}" for unseen in self.unseen]


def find(
    accounts: t.Iterable[aws.Account], region: str, image_ids: t.Collection[str], pool: Executor
) -> dict[str, Usage]:
    """Return image id -> usage, by these accounts in the image's region. Only reads."""
    usages = {image_id: Usage() for image_id in image_ids}
    jobs = []
    for account in {account.id: account for account in accounts}.values():
        clients = {service: account.client(service, region) for service in SERVICES}
        jobs += [(account.id, kind, look, clients) for kind, look in LOOKS.items()]

    def look_at(job: tuple[str, str, t.Callable[..., t.Any], dict[str, t.Any]]) -> t.Any:
        account, kind, look, clients = job
        try:
            return account, kind, look(clients, usages), None
        except aws.AwsError as exc:
            return account, kind, [], exc

    for account, kind, found, error in pool.map(look_at, jobs):
        for image_id, user in found:
            usages[image_id].users.append({"account": account, "kind": kind, "id": user})
        if error is not None:
            for usage in usages.values():
                usage.unseen.append(f"{kind} of {account}: {error}")
    return usages


def launch_permissions(
    account: aws.Account, region: str, image_id: str, seen: t.Collection[str]
) -> list[dict[str, str]]:
    """Return whom an image is shared with without our seeing what they do with it. Raises AwsError."""
    attribute = {"ImageId": image_id, "Attribute": "launchPermission"}
    permissions = aws.call(account.client("ec2", region).describe_image_attribute, **attribute)["LaunchPermissions"]
    names = [name for permission in permissions for name in permission.values() if name not in seen]
    return [{"account": account.id, "kind": "launch_permission", "id": name} for name in names]


Found = list[tuple[str, str]]  # image, what uses it


def _instances(clients: dict[str, t.Any], image_ids: t.Collection[str]) -> Found:
    ids, reservations = sorted(image_ids), []
    for start in range(0, len(ids), FILTER_VALUES):
        chosen = [{"Name": "image-id", "Values": ids[start : start + FILTER_VALUES]}]
        reservations += aws.pages(clients["ec2"], "describe_instances", "Reservations", Filters=chosen)
    instances = [instance for reservation in reservations for instance in reservation["Instances"]]
    # A terminated instance is listed for another hour, and needs no image.
    return [(i["ImageId"], i["InstanceId"]) for i in instances if i["State"]["Name"] != "terminated"]


def _launch_templates(clients: dict[str, t.Any], image_ids: t.Collection[str]) -> Found:
    found = []
    for template in aws.pages(clients["ec2"], "describe_launch_templates", "LaunchTemplates"):
        for version in aws.pages(
            clients["ec2"],
            "describe_launch_template_versions",
            "LaunchTemplateVersions",
            LaunchTemplateId=template["LaunchTemplateId"],
        ):
            image_id = version.get("LaunchTemplateData", {}).get("ImageId")
            # An older version counts where a group is pinned to it, which is looked at with the groups.
            current = (template["LatestVersionNumber"], template["DefaultVersionNumber"])
            if image_id in image_ids and version["VersionNumber"] in current:
                found.append((image_id, f"{template['LaunchTemplateName']}:{version['VersionNumber']}"))
    return found


def _auto_scaling(clients: dict[str, t.Any], image_ids: t.Collection[str]) -> Found:
    client = clients["autoscaling"]
    found = [
        (configuration["ImageId"], configuration["LaunchConfigurationName"])
        for configuration in aws.pages(client, "describe_launch_configurations", "LaunchConfigurations")
        if configuration["ImageId"] in image_ids
    ]
    for group in aws.pages(client, "describe_auto_scaling_groups", "AutoScalingGroups"):
        for template in _templates_of(group):
            asked = {
                "LaunchTemplateId": template["LaunchTemplateId"],
                "Versions": [template.get("Version", "$Default")],
            }
            versions = aws.call(clients["ec2"].describe_launch_template_versions, **asked)["LaunchTemplateVersions"]
            images = [version.get("LaunchTemplateData", {}).get("ImageId") for version in versions]
            found += [(image, group["AutoScalingGroupName"]) for image in images if image in image_ids]
    return found


def _templates_of(group: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    policy = group.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {})
    overrides = [override.get("LaunchTemplateSpecification") for override in policy.get("Overrides", [])]
    templates = [group.get("LaunchTemplate"), policy.get("LaunchTemplateSpecification"), *overrides]
    return [template for template in templates if template]


def _parameters(clients: dict[str, t.Any], image_ids: t.Collection[str]) -> Found:
    client, found = clients["ssm"], []
    chosen = [{"Key": "Type", "Values": ["String", "StringList"]}]
    names = [p["Name"] for p in aws.pages(client, "describe_parameters", "Parameters", ParameterFilters=chosen)]
    for start in range(0, len(names), 10):  # SSM gives ten at once
        for parameter in aws.call(client.get_parameters, Names=names[start : start + 10])["Parameters"]:
            values = [value.strip() for value in parameter["Value"].split(",")]
            found += [(image_id, parameter["Name"]) for image_id in image_ids if image_id in values]
    return found


LOOKS: dict[str, t.Callable[[dict[str, t.Any], t.Collection[str]], Found]] = {
    "instance": _instances,
    "launch_template": _launch_templates,
    "auto_scaling": _auto_scaling,
    "ssm_parameter": _parameters,
}
