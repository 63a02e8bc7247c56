# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Uploads through the real boto3 to a moto server."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ebs_upload
from ansible_collections.goldsmith.images.plugins.module_utils._ebs_upload import BLOCK, GIB, State
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

IDENTITY = {"sha256": "0" * 64, "kms_key_arn": None}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield boto3.client(
        "ebs", region_name="eu-west-1", endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip
    server.stop()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse disk with data in the blocks 0, 3 and 4 and at its end, and with zeros that are written out."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 * BLOCK + 512)
        file.write(b"boot")
        file.seek(4 * BLOCK - 3)
        file.write(b"across")
        file.seek(10 * BLOCK)
        file.write(bytes(BLOCK))
        file.seek(64 * BLOCK)
        file.write(b"x" * 512)
    return path


@pytest.fixture
def state(client: Any, tmp_path: Path) -> State:
    return State(tmp_path / "state", IDENTITY, client.start_snapshot(VolumeSize=1)["SnapshotId"])


def stored(client: Any, snapshot_id: str) -> dict[int, bytes]:
    blocks = client.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"]
    return {
        block["BlockIndex"]: client.get_snapshot_block(
            SnapshotId=snapshot_id, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"]
        )["BlockData"].read()
        for block in blocks
    }


def test_only_blocks_with_data_count(disk: Path):
    assert _ebs_upload.data_blocks(disk) == [0, 3, 4, 64]


def test_a_disk_without_data(tmp_path: Path):
    (tmp_path / "empty").touch()
    assert _ebs_upload.data_blocks(tmp_path / "empty") == []


def test_a_disk_that_is_not_sparse_has_the_same_blocks(disk: Path):
    full = disk.with_name("full")
    full.write_bytes(disk.read_bytes())
    assert _ebs_upload.data_blocks(full) == [0, 3, 4, 64]


@pytest.mark.parametrize(("size", "gibibytes"), [(1, 1), (GIB, 1), (GIB + 1, 2), (10 * GIB, 10)])
def test_volumes_are_counted_in_gibibytes(tmp_path: Path, size: int, gibibytes: int):
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(size)
    assert _ebs_upload.volume_gibibytes(path) == gibibytes


@pytest.mark.parametrize("parallel", [1, 8])
def test_what_arrives_is_the_disk(client: Any, disk: Path, state: State, parallel: int):
    told: list[int] = []
    blocks = _ebs_upload.data_blocks(disk)
    assert _ebs_upload.upload(client, disk, blocks, state, parallel, told.append) == 4 * BLOCK
    assert told == [BLOCK * count for count in (1, 2, 3, 4)]
    content = disk.read_bytes().ljust(65 * BLOCK, b"\0")
    found = stored(client, state.snapshot_id)
    assert {number: content[number * BLOCK : (number + 1) * BLOCK] for number in blocks} == found
    digests = b"".join(hashlib.sha256(found[number]).digest() for number in sorted(found))
    assert base64.b64decode(state.checksum()) == hashlib.sha256(digests).digest()


def test_an_interrupted_upload_goes_on(client: Any, disk: Path, state: State):
    _ebs_upload.upload(client, disk, [0, 3], state, 1)
    with state.path.open("a") as file:
        file.write('[4, "half a li')
    again = State.load(state.path, IDENTITY)
    assert (again.snapshot_id, set(again.digests)) == (state.snapshot_id, {0, 3})
    assert _ebs_upload.upload(client, disk, _ebs_upload.data_blocks(disk), again, 2) == 2 * BLOCK
    assert set(stored(client, state.snapshot_id)) == {0, 3, 4, 64}
    assert set(State.load(state.path, IDENTITY).digests) == {0, 3, 4, 64}


def test_the_state_of_another_disk_counts_as_none(state: State):
    state.save()
    assert State.load(state.path, IDENTITY) == state
    assert State.load(state.path, {**IDENTITY, "sha256": "1" * 64}).snapshot_id == ""
    state.path.write_text("{")
    assert State.load(state.path, IDENTITY).snapshot_id == ""


def test_the_first_refusal_ends_it_and_keeps_what_was_sent(client: Any, disk: Path, state: State):
    class Refusing:
        """A client that cannot send one of the blocks."""

        exceptions = client.exceptions

        def put_snapshot_block(self, **request: Any) -> Any:
            if request["BlockIndex"] == 4:
                raise ClientError({"Error": {"Code": "ServiceQuotaExceededException"}}, "PutSnapshotBlock")
            return client.put_snapshot_block(**request)

    with pytest.raises(ClientError, match="ServiceQuotaExceeded"):
        _ebs_upload.upload(Refusing(), disk, _ebs_upload.data_blocks(disk), state, 1)
    assert [json.loads(line)[0] for line in state.path.read_text().splitlines()[1:]] == [0, 3]
