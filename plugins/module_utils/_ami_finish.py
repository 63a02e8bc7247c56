# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What a copy needs when it is available: the proof of its key, then tags, permissions and a date."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from datetime import datetime

from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import (
    KEY_TAG,
    SOURCE_TAG,
    Source,
    tag_list,
    tags_of,
)
from ansible_collections.goldsmith.images.plugins.module_utils._ami_journal import Journal
from ansible_collections.goldsmith.images.plugins.module_utils._ami_targets import Request, Target


@dataclass
class Finished:
    """What was found out about a copy, and done to it."""

    snapshots: list[dict[str, t.Any]] = field(default_factory=list)
    verified: bool = False
    changes: bool = False
    tags_changed: bool = False
    shared_with: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What a copy lacks."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # resource -> its missing tags
    share: list[dict[str, str]] = field(default_factory=list)
    share_snapshots: list[tuple[str, list[str]]] = field(default_factory=list)  # snapshot -> accounts
    deprecate_at: datetime | None = None
    shared_with: list[str] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """Return whether anything is to be done."""
        return bool(self.tags or self.share or self.share_snapshots or self.deprecate_at)


def mismatch(snapshots: list[dict[str, t.Any]], encrypted: bool, key_arn: str | None) -> str | None:
    """Return why these are not the snapshots that were asked for. Every one is looked at."""
    if not snapshots:
        return "it has no snapshots"
    for snapshot in snapshots:
        if snapshot["Encrypted"] != encrypted:
            what = "encrypted (EBS encryption by default is on?)" if snapshot["Encrypted"] else "not encrypted"
            return f"the snapshot {snapshot['SnapshotId']} is {what}"
        if encrypted and snapshot.get("KmsKeyId") != key_arn:
            return f"the snapshot {snapshot['SnapshotId']} is encrypted with {snapshot.get('KmsKeyId')}, not {key_arn}"
    return None


def plan(
    client: t.Any,
    request: Request,
    target: Target,
    source: Source,
    image: dict[str, t.Any],
    snapshots: list[dict[str, t.Any]],
) -> Plan:
    """Compare a copy with what was asked for. Only reads."""
    found = Plan()
    marks = {SOURCE_TAG: source.mark, **({KEY_TAG: target.key_arn} if target.key_arn else {})}
    for resource, name in [(image, "ImageId"), *((snapshot, "SnapshotId") for snapshot in snapshots)]:
        own = request.snapshot_tags if name == "SnapshotId" else {}
        wanted, there = {**target.tags, **own, **marks}, tags_of(resource)
        missing = {key: value for key, value in wanted.items() if there.get(key) != value}
        if missing:
            found.tags.append((resource[name], missing))
    if any(target.share.values()):
        found.shared_with = [name for names in target.share.values() for name in names]
        found.share = missing_permissions(client, image["ImageId"], target.share)
    accounts = target.share["UserId"] if request.params["share_snapshots"] else []
    for snapshot in snapshots if accounts else []:
        missing_accounts = missing_users(client, snapshot["SnapshotId"], accounts)
        if missing_accounts:
            found.share_snapshots.append((snapshot["SnapshotId"], missing_accounts))
    date = request.deprecate_at
    if date is not None and not image.get("DeprecationTime", "").startswith(f"{date:%Y-%m-%dT%H:%M}"):
        found.deprecate_at = date
    return found


def missing_permissions(client: t.Any, image_id: str, share: t.Mapping[str, list[str]]) -> list[dict[str, str]]:
    """Return which launch permissions of *share*, kind -> whom, an image lacks."""
    attribute = aws.call(client.describe_image_attribute, ImageId=image_id, Attribute="launchPermission")
    allowed = attribute["LaunchPermissions"]
    return [{kind: name} for kind, names in share.items() for name in names if {kind: name} not in allowed]


def missing_users(client: t.Any, snapshot_id: str, accounts: t.Iterable[str]) -> list[str]:
    """Return which accounts may not use a snapshot."""
    attribute = {"SnapshotId": snapshot_id, "Attribute": "createVolumePermission"}
    there = aws.call(client.describe_snapshot_attribute, **attribute)["CreateVolumePermissions"]
    return [account for account in accounts if {"UserId": account} not in there and {"Group": "all"} not in there]


def apply(client: t.Any, found: Plan, image_id: str, journal: Journal, finished: Finished) -> None:
    """Give a copy what it lacks."""
    for resource, tags in found.tags:
        journal.note("tag", id=resource, tags=tags)
        aws.call(client.create_tags, Resources=[resource], Tags=tag_list(tags))
        finished.tags_changed = finished.changes = True
    if found.share:
        journal.note("share_copy", id=image_id, permissions=found.share)
        aws.call(client.modify_image_attribute, ImageId=image_id, LaunchPermission={"Add": found.share})
        finished.changes = True
    for snapshot_id, accounts in found.share_snapshots:
        journal.note("share_copy", id=snapshot_id, accounts=accounts)
        allow(client, snapshot_id, "add", accounts)
        finished.changes = True
    if found.deprecate_at:
        journal.note("deprecate", id=image_id, at=found.deprecate_at.isoformat())
        aws.call(client.enable_image_deprecation, ImageId=image_id, DeprecateAt=found.deprecate_at)
        finished.changes = True
    finished.shared_with = found.shared_with


def allow(client: t.Any, snapshot_id: str, operation: str, accounts: t.Iterable[str]) -> None:
    """Add or remove the permission of accounts to make volumes of a snapshot."""
    aws.call(
        client.modify_snapshot_attribute,
        SnapshotId=snapshot_id,
        Attribute="createVolumePermission",
        OperationType=operation,
        UserIds=sorted(accounts),
    )
