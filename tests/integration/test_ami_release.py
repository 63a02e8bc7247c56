# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_release against a simulated cloud: what is promised of an AMI is true, or nothing is released."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_build
from ansible_collections.goldsmith.images.plugins.module_utils._aws_session import AwsError
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_instance import images_of_instances

REGION = "eu-west-1"


@pytest.fixture
def cloud(cloud: Cloud) -> Iterator[Cloud]:
    with images_of_instances(cloud):
        yield cloud


@pytest.fixture
def release(cloud: Cloud, run_module, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the module as its example does."""
    [task] = documented.section("ami_release", "EXAMPLES")
    example = task["goldsmith.images.ami_release"]
    manifest = {"fingerprint": "f", "plan": {}, "phases": []}

    def run(_check: bool = False, **params: Any) -> dict[str, Any]:
        given = {"output_dir": str(tmp_path / "output"), "manifest": manifest, "endpoint_url": cloud.url, **KEYS}
        return run_module("ami_release", _check=_check, **{**example, **given, **params})

    return run


def test_what_is_proven_and_what_is_not_is_written_down(cloud: Cloud, release, tmp_path: Path) -> None:
    key = cloud.key(REGION)
    image = cloud.image(REGION, key=key, sizes=(8, 20))
    (tmp_path / "log").write_text("PLAY RECAP\n")
    evidence = {"build.log": [str(tmp_path / "log")], "console.log": [str(tmp_path / "nothing")]}
    wanted = {"image_id": image, "kms_key_arn": key, "evidence": evidence}

    predicted = release(_check=True, **wanted)
    assert cloud.count("ModifyImageAttribute") == 0
    assert not (tmp_path / "output").exists()

    released = release(**wanted)
    assert not released["failed"], released["msg"]
    documented.check_returned("ami_release", released)
    assert {**predicted, "files": released["files"], "invocation": None} == {**released, "invocation": None}
    output = tmp_path / "output"
    manifest = json.loads((output / "manifest.json").read_text())
    ami = manifest["amis"][REGION]
    assert [(each["kms_key_arn"], each["size"]) for each in ami["snapshots"]] == [(key, 8), (key, 20)]
    assert manifest["verification"]["passed"] is None
    assert manifest["verification"]["not_proven"][0].startswith("that an instance of the AMI boots")
    assert cloud.images(HOME, REGION)[0].imds_support == "v2.0"
    sums = dict(reversed(line.split("  ")) for line in (output / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"manifest.json", "build.log"}
    assert all(hashlib.sha256((output / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())


def test_an_ami_that_is_not_what_was_promised_is_not_released(cloud: Cloud, release, tmp_path: Path) -> None:
    key, other = cloud.key(REGION), cloud.key(REGION)
    (tmp_path / "output").mkdir()
    (tmp_path / "output/manifest.json").write_text("the last good one")
    plain = cloud.image(REGION, name="plain")
    foreign = cloud.image(REGION, name="foreign", key=other)
    failed = cloud.image(REGION, name="failed", key=key, state="failed")

    refused = release(image_id=plain, kms_key_arn=key)
    assert refused["failed"]
    assert f"is not encrypted. Deregister {plain}" in refused["msg"]
    assert cloud.count("ModifyImageAttribute") == 0
    assert (tmp_path / "output/manifest.json").read_text() == "the last good one"

    ec2 = boto3.Session(KEYS["access_key"], KEYS["secret_key"]).client("ec2", REGION, endpoint_url=cloud.url)
    for image, said in (
        (foreign, f"is encrypted with {other}, not with {key}. Deregister {foreign}"),
        (failed, f"{failed} is not available: failed"),
    ):
        with pytest.raises(_ec2_build.Ec2BuildError, match=re.escape(said)):
            _ec2_build.prove(ec2, image, key)
    with pytest.raises(AwsError, match="InvalidAMIID.NotFound"):
        _ec2_build.prove(ec2, "ami-00000000", key)
