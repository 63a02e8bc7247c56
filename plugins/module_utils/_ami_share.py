# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Permissions on the source for as long as other accounts copy it. Only what was added is taken away again."""

from __future__ import annotations

import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import AmiError, Source, snapshot_ids
from ansible_collections.goldsmith.images.plugins.module_utils._ami_finish import allow, missing_users
from ansible_collections.goldsmith.images.plugins.module_utils._ami_journal import Journal


def refuse_unsharable(source: Source, accounts: set[str]) -> None:
    """Raise AmiError if other accounts cannot be let at the source's snapshots, whatever is tried."""
    if not accounts or not source.owned:
        return
    kms = source.account.client("kms", source.region)
    for key in {snapshot["KmsKeyId"] for snapshot in source.snapshots if snapshot.get("KmsKeyId")}:
        if aws.call(kms.describe_key, KeyId=key)["KeyMetadata"]["KeyManager"] == "AWS":
            raise AmiError(
                f"the source {source.image_id} is encrypted with EBS's own key, so {', '.join(sorted(accounts))} cannot"
                " copy it; copy it in its own account first, with a key of yours that they may use"
            )


def share(source: Source, accounts: set[str], journal: Journal) -> bool:
    """Let accounts copy the source: launch permission, and the use of each snapshot. Return whether that was needed."""
    if not accounts or not source.owned or source.image is None:
        return False
    client, changed = source.account.client("ec2", source.region), False
    attribute = {"ImageId": source.image_id, "Attribute": "launchPermission"}
    there = aws.call(client.describe_image_attribute, **attribute)["LaunchPermissions"]
    missing = sorted(account for account in accounts if {"UserId": account} not in there)
    if missing and {"Group": "all"} not in there:
        journal.note("share", kind="image", id=source.image_id, accounts=missing)
        add = {"Add": [{"UserId": account} for account in missing]}
        aws.call(client.modify_image_attribute, ImageId=source.image_id, LaunchPermission=add)
        changed = True
    for snapshot_id in snapshot_ids(source.image):
        users = missing_users(client, snapshot_id, sorted(accounts))
        if users:
            journal.note("share", kind="snapshot", id=snapshot_id, accounts=users)
            allow(client, snapshot_id, "add", users)
            changed = True
    return changed


def revoke(source: Source, keep: set[str], journal: Journal) -> bool:
    """Take back what this run or one before it has given, but from the accounts *keep*, which still copy."""
    client, changed = source.account.client("ec2", source.region), False
    for (kind, resource), given in journal.open_shares().items():
        accounts = sorted(given - keep)
        if not accounts:
            continue
        if source.image is not None:
            try:
                _take_back(client, kind, resource, accounts)
                changed = True
            except aws.AwsError as exc:
                if not exc.code.endswith((".NotFound", ".Unavailable")):
                    raise
        journal.note("revoked", kind=kind, id=resource, accounts=accounts)
    return changed


def _take_back(client: t.Any, kind: str, resource: str, accounts: list[str]) -> None:
    if kind == "image":
        remove = {"Remove": [{"UserId": account} for account in accounts]}
        aws.call(client.modify_image_attribute, ImageId=resource, LaunchPermission=remove)
    else:
        allow(client, resource, "remove", accounts)
