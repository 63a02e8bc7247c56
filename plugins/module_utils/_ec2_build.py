# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What is decided before an image is built in EC2, and what is proven of the AMI afterwards. AWS is only asked."""

from __future__ import annotations

import ipaddress
import math
import typing as t
from dataclasses import dataclass

from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import (
    AmiError,
    describe_snapshots,
    find_key,
    tags_of,
)
from ansible_collections.goldsmith.images.plugins.module_utils._ami_import import key_problem, root_snapshot
from ansible_collections.goldsmith.images.plugins.module_utils._apt_repository import RepositoryError, fetch
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_reach import Ports, uncovered
from ansible_collections.goldsmith.images.plugins.module_utils._kvm_ec2 import Instance, diagnose

# Answers with the address that a request comes from; AWS's own.
OWN_ADDRESS = "https://checkip.amazonaws.com/"
# Tags of the AMI, written by Packer's template and read when the AMI is released.
SOURCE_AMI_TAG = "goldsmith.images:source-ami"
GIB_OF = {"M": 1 / 1024, "G": 1, "T": 1024}
# Settings that make the AMI what it is; the others are only about the way to the instance.
OF_THE_AMI = ("instance_type", "kms_key_id", "nested_virtualization", "region", "source_ami", "tags")
# Neither stands in the way before the instance runs: a metal type, and one that nested virtualisation is asked for.
CAN_RUN_VMS = (None, "flag_missing")
SSH = Ports("tcp", 22, 22)
# Whoever lets in one of these lets in half the Internet.
WORLD = ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")


@dataclass(frozen=True)
class Decision:
    """How an image is built in EC2. *settings* are the definition's with everything resolved."""

    settings: dict[str, t.Any]
    source_ami: dict[str, t.Any]
    kms_key_arn: str
    nested: str
    """What is known about VMs in the instance."""
    imds_in_template: bool

    def lines(self) -> list[str]:
        """Return the plan in words."""
        settings, source = self.settings, self.source_ami
        spot = " (spot)" if settings["spot"] else ""
        who = ", ".join(settings["security_group_ids"] or settings["ssh_source_cidrs"])
        return [
            f"source AMI   {source['id']} {source['name']} (owner {source['owner']}, {source['created']})",
            f"instance     {settings['instance_type']}{spot} in {settings['region']}; {self.nested}",
            f"root volume  gp3, {settings['volume_size']} GiB, encrypted from the start with {self.kms_key_arn}",
            f"SSH          from {who} only",
            f"IMDSv2       required by the AMI; by the instance of the build: {self.imds()}",
        ]

    @property
    def imds_required(self) -> bool:
        """Return whether the instance that the image is built in requires version 2 of the metadata service."""
        return self.imds_in_template or self.source_ami["imds_support"] == "v2.0"

    def imds(self) -> str:
        """Return the same in words, with the reason."""
        if self.imds_in_template:
            return "yes"
        return "yes, its source AMI wants it" if self.imds_required else "no, Packer before 1.7 cannot say so"

    def warnings(self) -> list[str]:
        """Return what is not as it should be, and is built all the same."""
        if self.imds_required:
            return []
        return [
            "The instance that the AMI is built in does not require IMDSv2, only the AMI will: Packer before 1.7 cannot"
            f" ask for it, and the source AMI {self.source_ami['id']} does not. Take Packer 1.7 or later, or a source"
            " AMI with ImdsSupport v2.0."
        ]


class Ec2BuildError(Exception):
    """The image cannot be built in EC2; every line of the text is one reason."""


def volume_size(disk_size: str) -> int:
    """Return a size of a definition in GiB, rounded up."""
    return math.ceil(int(disk_size[:-1]) * GIB_OF[disk_size[-1]])


def region_of(settings: t.Mapping[str, t.Any], environment: t.Mapping[str, str]) -> str:
    """Return the region to build in: the definition's, else that of the environment."""
    region = settings.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region:
        raise Ec2BuildError(
            "amazon_ebs.region: no region is known. Set AWS_REGION, or say it in the definition or with "
            """-e '{"amazon_ebs": {"region": "eu-west-1"}}'."""
        )
    return region


def account_of(settings: t.Mapping[str, t.Any]) -> aws.Account:
    """Return the account to build in. Nothing is sent yet."""
    return aws.Aws(settings["region"]).account(aws.Login(profile=settings["profile"] or None))


def ec2_of(settings: t.Mapping[str, t.Any]) -> t.Any:
    """Return the client of EC2, which alone may be at an address of its own."""
    accounts = aws.Aws(settings["region"], settings["endpoint_url"] or None)
    return accounts.account(aws.Login(profile=settings["profile"] or None)).client("ec2")


def decide(
    definition: t.Mapping[str, t.Any],
    *,
    allow_no_kvm: bool,
    packer_version: tuple[int, ...],
    environment: t.Mapping[str, str],
    own_address: str = OWN_ADDRESS,
) -> Decision:
    """Decide everything about the build in EC2. Ec2BuildError has all that cannot work, a line each."""
    settings = dict(definition["amazon_ebs"])
    settings["region"] = region_of(settings, environment)
    settings["volume_size"] = volume_size(definition["disk_size"])
    problems: list[str] = []

    def collect(function: t.Callable[..., t.Any], *args: t.Any) -> t.Any:
        try:
            return function(*args)
        except (aws.AwsError, Ec2BuildError) as exc:
            problems.append(str(exc))
            return None

    account = account_of(settings)
    # Without an account every other question fails for the same reason.
    try:
        account.enter()
    except aws.AwsError as exc:
        raise Ec2BuildError(f"The AWS account cannot be entered: {exc}") from exc
    ec2 = ec2_of(settings)
    source = collect(find_source_ami, ec2, settings)
    kind = collect(instance_type, ec2, settings)
    key = collect(key_arn, ec2, account, settings)
    settings["ssh_source_cidrs"] = collect(ssh_sources, settings, own_address)
    collect(check_groups, ec2, settings)
    nested = "whether it can run VMs does not matter"
    if settings["nested_virtualization"] and packer_version < (1, 7):
        problems.append(
            "amazon_ebs.nested_virtualization needs Packer 1.7 or later with the plugin amazon after 1.8.2; this is "
            f"{'.'.join(map(str, packer_version))}. A metal type runs VMs without it."
        )
    if kind is not None:
        found = nested_problem(kind, settings, definition["needs_kvm"] and not allow_no_kvm)
        problems += [found] if found else []
        if definition["needs_kvm"]:
            nested = "can run VMs" if diagnosis(kind)[0] in CAN_RUN_VMS else "cannot run VMs, which is allowed"
    if source is not None and source["size"] > settings["volume_size"]:
        problems.append(f"disk_size: the source AMI has {source['size']} GiB, {definition['disk_size']} are too few.")
    if problems:
        raise Ec2BuildError("\n".join(problems))
    return Decision(settings, source, key, nested, imds_in_template=packer_version >= (1, 7))


def find_source_ami(ec2: t.Any, settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the newest image that the filter of the template finds; the template asks again, in the same words."""
    wanted = settings["source_ami"]
    filters = {"name": wanted["name"], "architecture": "x86_64", "virtualization-type": "hvm", "state": "available"}
    found = aws.pages(
        ec2, "describe_images", "Images", Owners=[wanted["owner"]],
        Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()],
    )  # fmt: skip
    if not found:
        raise Ec2BuildError(
            f"amazon_ebs.source_ami: {wanted['owner']} has no available x86_64 image named {wanted['name']!r} in "
            f"{settings['region']}."
        )
    image = max(found, key=lambda image: image["CreationDate"])
    root = root_snapshot(image)
    sizes = [
        mapping["Ebs"].get("VolumeSize", 0)
        for mapping in image.get("BlockDeviceMappings", [])
        if mapping.get("Ebs", {}).get("SnapshotId") == root
    ]
    if not root:
        raise Ec2BuildError(f"amazon_ebs.source_ami: {image['ImageId']} has no root volume on EBS.")
    return {
        "id": image["ImageId"],
        "name": image.get("Name", ""),
        "owner": image.get("OwnerId", ""),
        "created": image["CreationDate"],
        "root_device": image["RootDeviceName"],
        "size": max(sizes, default=0),
        "imds_support": image.get("ImdsSupport", ""),
    }


def instance_type(ec2: t.Any, settings: t.Mapping[str, t.Any]) -> Instance:
    """Return what EC2 says of the type; of one that it does not know in this region, an error."""
    name = settings["instance_type"]
    try:
        [found] = aws.call(ec2.describe_instance_types, InstanceTypes=[name])["InstanceTypes"]
    except aws.AwsError as exc:
        if exc.code.startswith("InvalidInstanceType"):
            raise Ec2BuildError(f"amazon_ebs.instance_type: there is no {name} in {settings['region']}.") from exc
        raise
    architectures = found.get("ProcessorInfo", {}).get("SupportedArchitectures", [])
    if "x86_64" not in architectures:
        raise Ec2BuildError(f"amazon_ebs.instance_type: {name} is {', '.join(architectures)}, images are x86_64.")
    features = found["ProcessorInfo"].get("SupportedFeatures", [])
    enabled = True if settings["nested_virtualization"] else None
    return Instance(name, "plan", features, enabled)


def diagnosis(kind: Instance) -> tuple[str | None, str]:
    """Return what keeps an instance of this type from running VMs, and what to do."""
    return diagnose(kind, accelerated=False, has_flag=False, module_loaded=False)


def nested_problem(kind: Instance, settings: t.Mapping[str, t.Any], needed: bool) -> str:
    """Return why the instance could not run VMs although that was asked for; empty if it can, or need not."""
    name, hint = diagnosis(kind)
    if settings["nested_virtualization"] and name == "type_cannot":
        return f"amazon_ebs.nested_virtualization: {hint}"
    if not needed or name in CAN_RUN_VMS:
        return ""
    if name == "opt_in_missing":
        hint = f"{kind.instance_type} can, with amazon_ebs.nested_virtualization: true."
    return (
        f"The definition needs_kvm, and the instance of the build could not run VMs: {hint} Or allow it with "
        "-e image_allow_no_kvm=true: nobody has then seen KVM work in it."
    )


def key_arn(ec2: t.Any, account: aws.Account, settings: t.Mapping[str, t.Any]) -> str:
    """Return the ARN of the key for the root volume: the definition's, else the account's default for EBS."""
    try:
        found = find_key(ec2, account.client("kms"), settings["kms_key_id"], settings["region"], shared=False)
    except AmiError as exc:
        raise Ec2BuildError(f"amazon_ebs.kms_key_id: {exc}") from exc
    return str(found["Arn"])


def ssh_sources(settings: t.Mapping[str, t.Any], own_address: str = OWN_ADDRESS) -> list[str]:
    """Return the networks that may reach the instance's SSH: those of the definition, else this host's address."""
    if settings["ssh_source_cidrs"] or settings["security_group_ids"]:
        return list(settings["ssh_source_cidrs"])
    say = "Say who may reach SSH: amazon_ebs.ssh_source_cidrs, such as [192.0.2.7/32]."
    if settings["ssh_interface"] == "private_ip":
        raise Ec2BuildError(f"amazon_ebs.ssh_interface: private_ip: this host's address there is not known. {say}")
    try:
        return [f"{ipaddress.IPv4Address(fetch(own_address).decode().strip())}/32"]
    except (RepositoryError, ValueError) as exc:
        raise Ec2BuildError(f"This host's public address cannot be found out ({exc}). {say}") from exc


def check_groups(ec2: t.Any, settings: t.Mapping[str, t.Any]) -> None:
    """Refuse security groups of the definition that let the Internet, or half of it, reach SSH."""
    ids = settings["security_group_ids"]
    try:
        groups = aws.call(ec2.describe_security_groups, GroupIds=ids)["SecurityGroups"] if ids else []
    except aws.AwsError as exc:
        raise Ec2BuildError(f"amazon_ebs.security_group_ids: {exc}") from exc
    rules = {group["GroupId"]: group["IpPermissions"] for group in groups}
    wide = [name for name in rules if any(not uncovered(SSH, source, rules[name]) for source in WORLD)]
    if wide:
        raise Ec2BuildError(
            f"amazon_ebs.security_group_ids: {', '.join(wide)} lets the whole Internet, or half of it, reach SSH (port "
            "22). Take a group that lets only the builder in, or none: the build then makes its own."
        )


def why_again(ec2: t.Any, image_id: str) -> str:
    """Return why an AMI of an earlier build cannot be taken; empty if it can."""
    try:
        found = aws.call(ec2.describe_images, ImageIds=[image_id], Owners=["self"])["Images"]
    except aws.AwsError as exc:
        if not exc.code.startswith("InvalidAMIID"):
            raise
        found = []
    state = found[0]["State"] if found else "gone"
    return "" if state == "available" else f"{image_id} is {state}"


def prove(ec2: t.Any, image_id: str, kms_key_arn: str) -> dict[str, t.Any]:
    """Return what EC2 says of a new AMI. Ec2BuildError if it is not what was promised."""
    found = aws.call(ec2.describe_images, ImageIds=[image_id], Owners=["self"])["Images"]
    if not found or found[0]["State"] != "available":
        raise Ec2BuildError(f"{image_id} is not available: {found[0]['State'] if found else 'gone'}.")
    image = found[0]
    snapshots = describe_snapshots(ec2, image)
    problems = [key_problem(snapshot, kms_key_arn) for snapshot in snapshots]
    if not snapshots:
        problems.append(f"{image_id} has no snapshot")
    if any(problems):
        raise Ec2BuildError(f"{'; '.join(filter(None, problems))}. Deregister {image_id}; nothing was released.")
    return {
        "image_id": image_id,
        "name": image.get("Name", ""),
        "snapshots": [
            {"snapshot_id": each["SnapshotId"], "kms_key_arn": each["KmsKeyId"], "size": each["VolumeSize"]}
            for each in snapshots
        ],
        "source_ami": tags_of(image).get(SOURCE_AMI_TAG, ""),
        "imds_support": image.get("ImdsSupport", ""),
    }
