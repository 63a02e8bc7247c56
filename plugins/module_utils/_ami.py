# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What the users of AMIs share: their error, the source of a copy, the marks that a copy bears."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws

SOURCE_TAG = "imagefactory:source"  # <region>/<image id> that a copy was made from
KEY_TAG = "imagefactory:key"  # the key's ARN that it was started with, to be seen while it is pending
FAILED_STATES = frozenset(("deregistered", "error", "failed", "invalid"))
IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
ACCOUNT = re.compile(r"[0-9]{12}")


class AmiError(Exception):
    """What was asked for cannot be done; nothing has been changed."""


def conclude(module: AnsibleModule, run: t.Callable[[dict[str, t.Any], bool], dict[str, t.Any]]) -> t.NoReturn:
    """Call *run* with the parameters and check mode, and end the module: by failing if the result has a `msg`."""
    if aws.BOTO3_ERROR is not None:
        module.fail_json(msg=missing_required_lib("boto3"), exception=aws.BOTO3_ERROR)
    try:
        result = run(module.params, module.check_mode)
    except AmiError as error:
        module.fail_json(msg=str(error), changed=False)
    for warning in result.pop("warnings"):
        module.warn(warning)
    if "msg" in result:
        module.fail_json(**result)
    module.exit_json(**result)


@dataclass
class Source:
    """The image to copy, as it was found; *image* is None when it is gone."""

    image_id: str
    region: str
    account: aws.Account
    image: dict[str, t.Any] | None
    snapshots: list[dict[str, t.Any]] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """Return the value of SOURCE_TAG on copies of it."""
        return f"{self.region}/{self.image_id}"

    @property
    def owned(self) -> bool:
        """Return whether the account that the source is described with owns it."""
        return self.image is not None and self.image.get("OwnerId") == self.account.id

    @property
    def state(self) -> str:
        """Return the image's state, in EC2's words."""
        return str(self.image["State"]) if self.image else "deregistered"

    def report(self) -> dict[str, t.Any]:
        """Return what the result says of it."""
        image = self.image or {}
        return {
            "image_id": self.image_id,
            "region": self.region,
            "account": image.get("OwnerId"),
            "name": image.get("Name"),
            "state": self.state,
            "encrypted": all(snapshot["Encrypted"] for snapshot in self.snapshots) if self.snapshots else None,
            "snapshots": [snapshot["SnapshotId"] for snapshot in self.snapshots],
        }


def tags_of(resource: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return the tags of an image or a snapshot."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", [])}


def tag_list(tags: t.Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def snapshot_ids(image: t.Mapping[str, t.Any]) -> list[str]:
    """Return the snapshots of an image, in the order of its devices."""
    devices = image.get("BlockDeviceMappings", [])
    return [device["Ebs"]["SnapshotId"] for device in devices if device.get("Ebs", {}).get("SnapshotId")]


def describe_snapshots(client: t.Any, image: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Return the snapshots of an image as EC2 describes them."""
    ids = snapshot_ids(image)
    return aws.call(client.describe_snapshots, SnapshotIds=ids)["Snapshots"] if ids else []


def find_key(ec2: t.Any, kms: t.Any, key: str | None, region: str, shared: bool) -> dict[str, t.Any]:
    """Return what KMS says of a key, or of the account's default for EBS. AmiError: EBS cannot encrypt with it there.

    EC2 itself takes any key, and fails at the end. *shared*: for an image that others are to use.
    """
    try:
        key = key or aws.call(ec2.get_ebs_default_kms_key_id)["KmsKeyId"]
        found: dict[str, t.Any] = aws.call(kms.describe_key, KeyId=key)["KeyMetadata"]
    except aws.AwsError as exc:
        raise AmiError(f"the key {key or 'of EBS'} cannot be used: {exc}") from exc
    place = found["Arn"].split(":")[3]
    if place != region:
        raise AmiError(f"the key {key} is in {place}; {region} needs a key of its own")
    if found["KeyState"] != "Enabled":
        raise AmiError(f"the key {key} is {found['KeyState']}, not Enabled")
    spec = found.get("KeySpec") or found.get("CustomerMasterKeySpec")
    if spec != "SYMMETRIC_DEFAULT" or found["KeyUsage"] != "ENCRYPT_DECRYPT":
        kind = f"{spec}, {found['KeyUsage']}"
        raise AmiError(f"the key {key} is of the kind {kind}; EBS needs a symmetric key to encrypt and decrypt")
    if shared and found["KeyManager"] == "AWS":
        raise AmiError(
            f"the key {key} is managed by AWS, and what is encrypted with it cannot be shared; use a key of your own"
        )
    return found


def find_source(account: aws.Account, region: str, wanted: t.Mapping[str, t.Any], known: str | None) -> Source:
    """Find the image by id, or by name and owner. *known* is its id where the name is gone and a journal knows it."""
    client = account.client("ec2", region)
    found: list[dict[str, t.Any]] = []
    if wanted["image_id"]:
        chosen = [{"Name": "image-id", "Values": [wanted["image_id"]]}]
    else:
        chosen = [{"Name": "name", "Values": [wanted["name"]]}]
    # An id may be anybody's: the image only has to be shared with us.
    owners = {"Owners": [wanted["owner"]]} if wanted.get("owner") and not wanted["image_id"] else {}
    found = aws.pages(
        client, "describe_images", "Images", Filters=chosen, IncludeDeprecated=True, IncludeDisabled=True, **owners
    )
    image_id = wanted["image_id"] or known
    if not found:
        if image_id is None:
            who = f" of {wanted['owner']}" if wanted.get("owner") else ""
            raise AmiError(f"there is no image{who} named {wanted['name']!r} in {region}")
        return Source(image_id, region, account, None)
    found.sort(key=lambda image: image["CreationDate"], reverse=True)
    if len(found) > 1 and (not wanted["most_recent"] or found[0]["CreationDate"] == found[1]["CreationDate"]):
        ids = ", ".join(image["ImageId"] for image in found)
        hint = "two of them are equally recent" if wanted["most_recent"] else "set most_recent, or give the image_id"
        raise AmiError(f"{len(found)} images in {region} are named {wanted['name']!r}: {ids}; {hint}")
    source = Source(found[0]["ImageId"], region, account, found[0])
    # Snapshots of other owners can be described only if they are shared too.
    try:
        source.snapshots = describe_snapshots(client, found[0])
    except aws.AwsError:
        if source.owned:
            raise
    return source
