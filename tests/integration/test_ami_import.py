# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_import against a simulated cloud, with disk images of qemu-img."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._ami_import import wait_for_image
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Call, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_ebs import BLOCK, blocks, ebs_direct

REGION = "eu-west-1"
Import = Callable[..., dict[str, Any]]


@pytest.fixture
def cloud(cloud: Cloud) -> Iterator[Cloud]:
    with ebs_direct(cloud):
        yield cloud


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk of 1.5 GiB with data in five blocks."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(1536 * 1024**2)
        for number in (0, 3, 4, 1000, 3071):
            file.seek(number * BLOCK + 4096)
            file.write(os.urandom(4096))
    return path


@pytest.fixture
def disk(raw: Path) -> Path:
    """The same disk as a compressed qcow2."""
    path = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(path)], check=True)
    return path


@pytest.fixture
def bring(cloud: Cloud, disk: Path, tmp_path: Path, run_module) -> Import:
    """Run the module."""

    def run(_check: bool = False, **params: Any) -> dict[str, Any]:
        given = {"path": str(disk), "region": REGION, "name": "golden", "state_dir": str(tmp_path / "state")}
        # Like the user's environment: no keys in the parameters.
        environment = {
            "AWS_ACCESS_KEY_ID": KEYS["access_key"],
            "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"],
            "AWS_ENDPOINT_URL": cloud.url,
            # A module that is killed leaves Ansible's folder of it.
            "TMPDIR": str(tmp_path),
        }
        result = run_module("ami_import", _check=_check, _env=environment, **{**given, **params})
        if not result["failed"]:
            documented.check_returned("ami_import", result)
        return result

    return run


def test_what_is_in_the_cloud_is_the_disk(cloud: Cloud, bring: Import, raw: Path, disk: Path):
    key = cloud.key(REGION, alias="alias/images")
    predicted = bring(_check=True, kms_key_id="alias/images")
    assert (predicted["changed"], predicted["outcome"], predicted["bytes_to_send"]) == (True, "created", 5 * BLOCK)
    assert not cloud.images(HOME, REGION) and not cloud.snapshots(HOME, REGION)
    made = bring(kms_key_id="alias/images", tags={"team": "platform"}, snapshot_tags={"cost": 7})
    assert (made["outcome"], made["bytes_sent"], made["volume_size"], made["kms_key_arn"]) == (
        "created", 5 * BLOCK, 2, key,
    )  # fmt: skip
    assert made["source_sha256"] == hashlib.sha256(disk.read_bytes()).hexdigest()
    content = raw.read_bytes()
    stored = blocks(made["snapshot_id"])
    assert stored == {number: content[number * BLOCK : (number + 1) * BLOCK] for number in (0, 3, 4, 1000, 3071)}
    [image], [snapshot] = cloud.images(HOME, REGION), cloud.snapshots(HOME, REGION)
    assert (image.id, snapshot.id, snapshot.kms_key_id) == (made["image_id"], made["snapshot_id"], key)
    assert (image.boot_mode, image.imds_support, image.ena_support) == ("uefi-preferred", "v2.0", True)
    tags = {tag["key"]: tag["value"] for tag in image.get_tags()}
    assert tags == {"Name": "golden", "team": "platform", "goldsmith.images:source-sha256": made["source_sha256"]}
    assert {"cost": "7", **tags} == {tag["key"]: tag["value"] for tag in snapshot.get_tags()}

    before = len(cloud.calls)
    for check in (True, False):
        again = bring(_check=check, kms_key_id=key)
        assert (again["changed"], again["outcome"], again["image_id"]) == (False, "unchanged", made["image_id"])
    assert not {"StartSnapshot", "RegisterImage"} & {call.action for call in cloud.calls[before:]}


def test_an_image_that_is_not_known_everywhere_yet_is_waited_for(cloud: Cloud):
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=cloud.url, **keys)
    cloud.invisible = 2
    image_id = ec2.register_image(Name="golden")["ImageId"]
    assert wait_for_image(ec2, image_id, time.monotonic() + 60, poll=0.01)["ImageId"] == image_id
    assert cloud.count("DescribeImages") == 3


@pytest.mark.slow_matrix
def test_an_image_that_is_set_up_otherwise_is_not_taken(cloud: Cloud, bring: Import):
    settings = {"imds": "optional", "boot_mode": "uefi", "tpm": True, "volume_type": "io2"}
    first = bring(**settings)
    assert bring(**settings)["outcome"] == "unchanged"
    for check in (True, False):
        refused = bring(_check=check)
        assert refused["failed"] and first["image_id"] in refused["msg"], refused["msg"]
        assert "ImdsSupport None, not v2.0" in refused["msg"]
    second = bring(name="another")
    assert (second["outcome"], second["snapshot_id"]) == ("registered", first["snapshot_id"])
    assert bring()["image_id"] == second["image_id"]


def test_a_name_that_is_taken_costs_no_upload(cloud: Cloud, bring: Import):
    other = cloud.image(REGION, name="golden", state="disabled")
    for check in (True, False):
        refused = bring(_check=check)
        assert refused["failed"] and f"{other} is named 'golden'" in refused["msg"], refused["msg"]
    assert "StartSnapshot" not in {name(call) for call in cloud.calls}


def test_another_key_makes_another_image(cloud: Cloud, bring: Import):
    first = bring(kms_key_id=cloud.key(REGION))
    second = bring(kms_key_id=cloud.key(REGION), name="golden with another key")
    assert first["image_id"] != second["image_id"]
    assert {image.id for image in cloud.images(HOME, REGION)} == {first["image_id"], second["image_id"]}


@pytest.mark.slow_matrix
def test_who_else_may_use_it(cloud: Cloud, bring: Import):
    first, second = "333333333333", "444444444444"
    cloud.key(REGION, alias="alias/images")
    refused = bring(share_with={"accounts": [first]})
    assert refused["failed"] and "managed by AWS" in refused["msg"]
    assert not {"StartSnapshot", "RegisterImage"} & {name(call) for call in cloud.calls}
    made = bring(kms_key_id="alias/images", share_with={"accounts": [first]})
    [image], [snapshot] = cloud.images(HOME, REGION), cloud.snapshots(HOME, REGION)
    assert (made["shared_with"], image.launch_permissions) == ([first], [{"UserId": first}])
    assert snapshot.create_volume_permission_userids == {first}
    more = {"kms_key_id": "alias/images", "share_with": {"accounts": [second]}}
    for check, changed in ((True, True), (False, True), (False, False)):
        again = bring(_check=check, **more)
        assert (again["changed"], again["outcome"]) == (changed, "unchanged"), again
        assert again["shared_with"] == ([second] if changed else [])
        assert len(image.launch_permissions) == (1 if check else 2)
    assert snapshot.create_volume_permission_userids == {first, second}


@pytest.mark.slow_matrix
def test_a_raw_disk_and_the_default_key(cloud: Cloud, bring: Import, raw: Path):
    made = bring(path=str(raw))
    [snapshot] = cloud.snapshots(HOME, REGION)
    assert snapshot.encrypted and snapshot.kms_key_id == made["kms_key_arn"]
    assert len(blocks(made["snapshot_id"])) == 5


def test_not_the_image_that_was_verified(cloud: Cloud, bring: Import):
    refused = bring(sha256="0" * 64)
    assert refused["failed"] and "it is not the image that was verified" in refused["msg"]
    assert not cloud.calls


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"path": "/nowhere"}, "path: /nowhere is not a file"),
        ({"name": "a:b"}, "goldsmith.images.ami_name makes such a name"),
        ({"sha256": "short"}, "has to be 64 hexadecimal digits"),
        ({"encrypted": False, "kms_key_id": "alias/images"}, "of no use with encrypted=false"),
        ({"tpm": True}, "EC2 wants boot_mode=uefi"),
        ({"parallel": 0}, "from 1 to 64"),
        ({"volume_size": 1}, "1 GiB are too small for the disk, which has 2 GiB"),
        ({"kms_key_id": "alias/unknown"}, "the key alias/unknown cannot be used: NotFoundException"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    cloud: Cloud, bring: Import, params: dict[str, Any], message: str
):
    refused = bring(**params)
    assert refused["failed"] and message in refused["msg"], refused["msg"]
    assert not {"StartSnapshot", "RegisterImage"} & {call.action for call in cloud.calls}


def test_a_key_of_another_region(cloud: Cloud, bring: Import):
    refused = bring(kms_key_id=cloud.key("us-east-1"))
    assert refused["failed"] and "eu-west-1" in refused["msg"]


@pytest.mark.parametrize(
    ("answered", "moment"),
    [
        (True, "StartSnapshot"),
        (False, "block 2"),
        (True, "block 2"),
        (True, "CompleteSnapshot"),
        (False, "RegisterImage"),
        (True, "RegisterImage"),
    ],
)
def test_killed_at_any_call_the_next_run_goes_on(
    cloud: Cloud, bring: Import, tmp_path: Path, moment: str, answered: bool
):
    puts = 0

    def kill(call: Call) -> None:
        nonlocal puts
        puts += name(call) == "block"
        if moment in (name(call), f"block {puts}" if name(call) == "block" else ""):
            for process in modules_at_work(cloud):
                os.kill(process, signal.SIGKILL)

    setattr(cloud, "after" if answered else "before", kill)
    # Ansible has no result of a module that was killed, or one that says so.
    with pytest.raises(AssertionError):
        assert not bring(parallel=1)["failed"]
    assert not modules_at_work(cloud)
    cloud.before = cloud.after = lambda call: None
    made = bring(parallel=1)
    assert not made["failed"], made
    assert [image.id for image in cloud.images(HOME, REGION)] == [made["image_id"]]
    assert [snapshot.id for snapshot in cloud.snapshots(HOME, REGION)] == [made["snapshot_id"]]
    assert set(blocks(made["snapshot_id"])) == {0, 3, 4, 1000, 3071}
    if moment == "block 2":
        # The first is on record; of the second nobody knows that it arrived.
        assert made["bytes_sent"] == 4 * BLOCK
    assert not list((tmp_path / "state/work").iterdir())


def name(call: Call) -> str:
    """What is asked of the EBS direct APIs is in the path, not in the body."""
    if call.service != "ebs":
        return call.action
    return "block" if "/blocks/" in call.action else "CompleteSnapshot" if "snap-" in call.action else "StartSnapshot"


def modules_at_work(cloud: Cloud) -> list[int]:
    """The processes of modules that talk to this cloud; they come through a pipe and have no name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            if cloud.url.encode() in environment and b"/ansible" not in command.partition(b" ")[0]:
                found.append(int(process.name))
    return found


def test_the_progress_is_a_file_and_lines(cloud: Cloud, bring: Import, tmp_path: Path):
    path = tmp_path / "progress.json"
    made = bring(progress_path=str(path))
    state = json.loads(path.read_text())
    assert [phase["phase"] for phase in made["phases"]] == [
        "digest", "look", "unpack", "upload", "complete", "register",
    ]  # fmt: skip
    assert state["state"] == "finished"
