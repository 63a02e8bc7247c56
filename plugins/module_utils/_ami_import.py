# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A local disk image becomes an AMI: what is there already, what is missing, and the steps from the one to the other.

Image and snapshot carry the digest of the disk image as a tag, so a run that was killed anywhere is taken up by the
next: a snapshot by its state file, a complete one and an AMI by their tags.
"""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.goldsmith.images.plugins.module_utils._aws_session import AwsError, call, pages

SOURCE_TAG = "goldsmith.images:source-sha256"
# What cannot be changed once an image is registered; also its root volume's size and type.
FIXED = ("Architecture", "BootMode", "EnaSupport", "ImdsSupport", "RootDeviceName", "TpmSupport", "VirtualizationType")
POLL = 10.0


class AmiImportError(Exception):
    """The image cannot be imported; the message says what to do."""


@dataclass(frozen=True)
class Wanted:
    """The AMI that there should be."""

    name: str
    description: str
    sha256: str
    #: GiB of the root volume.
    size: int
    kms_key_arn: str | None
    architecture: str
    boot_mode: str
    root_device: str
    volume_type: str
    imds: str
    tpm: bool
    tags: dict[str, str] = field(default_factory=dict)
    snapshot_tags: dict[str, str] = field(default_factory=dict)

    def all_tags(self, own: t.Mapping[str, str]) -> list[dict[str, str]]:
        """Return tags as EC2 takes them, with the digest that makes the import recognisable."""
        tags = {"Name": self.name, **self.tags, **own, SOURCE_TAG: self.sha256}
        return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]

    def registration(self, snapshot_id: str) -> dict[str, t.Any]:
        """Return the parameters of RegisterImage."""
        ebs = {"SnapshotId": snapshot_id, "VolumeType": self.volume_type, "DeleteOnTermination": True}
        request: dict[str, t.Any] = {
            "Name": self.name,
            "Description": self.description,
            "Architecture": self.architecture,
            "VirtualizationType": "hvm",
            "RootDeviceName": self.root_device,
            "BlockDeviceMappings": [{"DeviceName": self.root_device, "Ebs": {**ebs, "VolumeSize": self.size}}],
            "BootMode": self.boot_mode,
            "EnaSupport": True,
            "SriovNetSupport": "simple",
            "TagSpecifications": [{"ResourceType": "image", "Tags": self.all_tags({})}],
        }
        if self.imds == "required":
            request["ImdsSupport"] = "v2.0"
        if self.tpm:
            request["TpmSupport"] = "v2.0"
        return request

    def differences(self, image: t.Mapping[str, t.Any]) -> list[str]:
        """Return in what an image is not the wanted one, whatever disk it is made of."""
        request = self.registration("")
        [mapping] = request["BlockDeviceMappings"]
        pairs = {name: (image.get(name), request.get(name)) for name in FIXED}
        volume = root_volume(image)
        pairs |= {name: (volume.get(name), mapping["Ebs"][name]) for name in ("VolumeSize", "VolumeType")}
        return [f"{name} {has}, not {wanted}" for name, (has, wanted) in pairs.items() if has != wanted]


@dataclass(frozen=True)
class Found:
    """What an earlier run has made of the same disk image with the same key, fit to be taken."""

    image: dict[str, t.Any] | None = None
    snapshot: dict[str, t.Any] | None = None


def find(ec2: t.Any, wanted: Wanted) -> Found:
    """Look for what earlier runs have made."""
    filters = [{"Name": f"tag:{SOURCE_TAG}", "Values": [wanted.sha256]}]
    snapshots = {
        snapshot["SnapshotId"]: snapshot
        for snapshot in pages(ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)
        if snapshot["State"] == "completed"
        and snapshot["VolumeSize"] <= wanted.size
        and key_problem(snapshot, wanted.kms_key_arn) == ""
    }
    for image in pages(ec2, "describe_images", "Images", Owners=["self"], Filters=filters):
        snapshot = snapshots.get(root_snapshot(image))
        if image["State"] in ("available", "pending") and snapshot and not wanted.differences(image):
            return Found(image, snapshot)
    return Found(None, next(iter(snapshots.values()), None))


def check_name(ec2: t.Any, wanted: Wanted) -> None:
    """Refuse a name that another image has: RegisterImage would, but only after the upload."""
    named = [{"Name": "name", "Values": [wanted.name]}]
    for image in pages(ec2, "describe_images", "Images", Owners=["self"], Filters=named, IncludeDisabled=True):
        tags = {tag["Key"]: tag["Value"] for tag in image.get("Tags", [])}
        why = wanted.differences(image) if tags.get(SOURCE_TAG) == wanted.sha256 else ["it is not of this disk image"]
        raise AmiImportError(
            f"name: {image['ImageId']} is named {wanted.name!r} and cannot be taken "
            f"({'; '.join(why) or 'its snapshot is not as wanted'}): choose another name, or deregister it"
        )


def root_volume(image: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what an image says of its root volume; empty if it has none on EBS."""
    for mapping in image.get("BlockDeviceMappings", []):
        if mapping.get("DeviceName") == image.get("RootDeviceName") and "Ebs" in mapping:
            return dict(mapping["Ebs"])
    return {}


def root_snapshot(image: t.Mapping[str, t.Any]) -> str:
    """Return the snapshot of an image's root volume; empty if it has none."""
    return str(root_volume(image).get("SnapshotId", ""))


def key_problem(snapshot: t.Mapping[str, t.Any], kms_key_arn: str | None) -> str:
    """Return why a snapshot is not encrypted as wanted; empty if it is."""
    encrypted, key = bool(snapshot.get("Encrypted")), snapshot.get("KmsKeyId")
    if kms_key_arn is None:
        # The account may encrypt by default: better than asked for.
        return ""
    if not encrypted:
        return f"{snapshot['SnapshotId']} is not encrypted"
    return "" if key == kms_key_arn else f"{snapshot['SnapshotId']} is encrypted with {key}, not with {kms_key_arn}"


def start_snapshot(ebs: t.Any, wanted: Wanted, pending_minutes: int, token: str) -> str:
    """Start the snapshot that the blocks go to; returns its id. The same token returns the same snapshot."""
    request: dict[str, t.Any] = {
        "VolumeSize": wanted.size,
        "Description": wanted.description or wanted.name,
        "Timeout": pending_minutes,
        "ClientToken": token,
        "Tags": wanted.all_tags(wanted.snapshot_tags),
        "Encrypted": wanted.kms_key_arn is not None,
    }
    if wanted.kms_key_arn is not None:
        request["KmsKeyArn"] = wanted.kms_key_arn
    return str(call(ebs.start_snapshot, patience=600, **request)["SnapshotId"])


def is_pending(ec2: t.Any, snapshot_id: str) -> bool:
    """Return whether a snapshot still takes blocks."""
    try:
        [snapshot] = call(ec2.describe_snapshots, SnapshotIds=[snapshot_id])["Snapshots"]
    except AwsError as error:
        if error.code == "InvalidSnapshot.NotFound":
            return False
        raise
    return bool(snapshot["State"] == "pending")


def wait_for_snapshot(ec2: t.Any, snapshot_id: str, deadline: float, poll: float = POLL) -> dict[str, t.Any]:
    """Wait until a snapshot is complete and return it."""
    while True:
        [snapshot] = call(ec2.describe_snapshots, SnapshotIds=[snapshot_id])["Snapshots"]
        if snapshot["State"] == "completed":
            return dict(snapshot)
        if snapshot["State"] != "pending":
            reason = snapshot.get("StateMessage") or "no reason given"
            raise AmiImportError(f"the snapshot {snapshot_id} became {snapshot['State']}: {reason}")
        if time.monotonic() > deadline:
            raise AmiImportError(f"the snapshot {snapshot_id} is not complete yet: run again, it goes on from there")
        time.sleep(poll)


def wait_for_image(ec2: t.Any, image_id: str, deadline: float, poll: float = POLL) -> dict[str, t.Any]:
    """Wait until an image is available and return it."""
    while True:
        # Asked by id, EC2 refuses one that was registered a moment ago and is not known everywhere yet.
        chosen = [{"Name": "image-id", "Values": [image_id]}]
        images = call(ec2.describe_images, Filters=chosen)["Images"]
        state = images[0]["State"] if images else "pending"
        if state == "available":
            return dict(images[0])
        if state != "pending":
            reason = images[0].get("StateReason", {}).get("Message", "no reason given")
            raise AmiImportError(f"the image {image_id} became {state}: {reason}")
        if time.monotonic() > deadline:
            raise AmiImportError(f"the image {image_id} is not available yet: run again, it waits on")
        time.sleep(poll)
