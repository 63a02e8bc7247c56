# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The EBS direct APIs of a simulated cloud: moto's, with what it leaves out.

Moto takes any digest and any number of blocks, and forgets keys and client tokens; its snapshots are complete before
their first block.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult
from moto.ebs.models import ebs_backends
from moto.ebs.responses import EBSResponse
from moto.ec2.models import ec2_backends

from .cloud import HOME, Cloud, resolve

BLOCK = 512 * 1024


class ValidationException(JsonRESTError):
    code = 400

    def __init__(self, message: str) -> None:
        super().__init__("ValidationException", message)


def blocks(snapshot_id: str, region: str = "eu-west-1", account: str = HOME) -> dict[int, bytes]:
    """What a snapshot holds, by number of the block."""
    stored = ebs_backends[account][region].snapshots[snapshot_id].blocks
    return {number: block.block_data for number, block in stored.items()}


@contextlib.contextmanager
def ebs_direct(cloud: Cloud) -> Iterator[None]:
    """Put the EBS direct APIs of *cloud* right."""
    tokens: dict[str, Any] = {}

    def started(response: EBSResponse) -> ActionResult:
        asked = {name: response._get_param(name) for name in ("VolumeSize", "Encrypted", "KmsKeyArn", "Description")}
        token = response._get_param("ClientToken")
        backend = response.ebs_backend
        if token in tokens:
            snapshot, before = tokens[token]
            if before != asked:
                raise ValidationException("The client token was used with other parameters.")
        else:
            tags = response._get_param("Tags")
            snapshot = backend.start_snapshot(asked["VolumeSize"], tags, asked["Description"])
            twin = backend.ec2_backend.snapshots[snapshot.snapshot_id]
            twin.status = "pending"
            if asked["Encrypted"]:
                key, _problem = resolve(asked["KmsKeyArn"] or "alias/aws/ebs", backend.account_id, backend.region_name)
                twin.encrypted, twin.kms_key_id = True, key
            tokens[token] = (snapshot, asked)
        return ActionResult(
            {
                "SnapshotId": snapshot.snapshot_id,
                "OwnerId": snapshot.account_id,
                "Status": snapshot.status,
                "StartTime": snapshot.start_time,
                "VolumeSize": snapshot.volume_size,
                "BlockSize": BLOCK,
                "Tags": snapshot.tags,
            }
        )

    def put(response: EBSResponse) -> ActionResult:
        data = response._get_param("BlockData")
        snapshot = response.ebs_backend.snapshots.get(response._get_param("SnapshotId"))
        if snapshot is None or snapshot.status != "pending":
            raise ValidationException("The snapshot is not pending.")
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        if digest != response._get_param("Checksum") or len(data) != BLOCK:
            raise ValidationException("The checksum or the length of the block is wrong.")
        return whole_put(response)

    def completed(response: EBSResponse) -> ActionResult:
        snapshot = response.ebs_backend.snapshots[response._get_param("SnapshotId")]
        if int(response._get_param("ChangedBlocksCount")) != len(snapshot.blocks):
            raise ValidationException("The number of blocks is wrong.")
        digests = [hashlib.sha256(snapshot.blocks[number].block_data).digest() for number in sorted(snapshot.blocks)]
        total = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
        if response._get_param("Checksum") != total:
            raise ValidationException("The checksum of the snapshot is wrong.")
        ec2_backends[snapshot.account_id][response.region].snapshots[snapshot.snapshot_id].status = "completed"
        return whole_complete(response)

    whole_put, whole_complete = EBSResponse.put_snapshot_block, EBSResponse.complete_snapshot
    with contextlib.ExitStack() as stack:
        for name, function in (
            ("start_snapshot", started),
            ("put_snapshot_block", put),
            ("complete_snapshot", completed),
        ):
            stack.enter_context(mock.patch.object(EBSResponse, name, function))
        yield
