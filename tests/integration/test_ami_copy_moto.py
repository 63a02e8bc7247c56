# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_copy_encrypt through Ansible against moto as it is: none of our own answers, so the wire format stays honest.

What moto does not answer truly is held against what it received. Other accounts as targets are tested against our
double only: moto shows them no image that is shared with them.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.tests.support import documented

FRIEND = "333333333333"
KEYS = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "not-a-secret"}


@pytest.fixture
def moto_url(tmp_path: Path) -> Iterator[str]:
    """The address of moto's own server, in a process of its own: our double changes moto in this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    recorder = {"MOTO_ENABLE_RECORDING": "true", "MOTO_RECORDER_FILEPATH": str(tmp_path / "recording")}
    environment = {**os.environ, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false", **recorder}
    with (tmp_path / "moto.log").open("w") as log, subprocess.Popen(command, env=environment, stderr=log) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "moto.log").read_text()
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def client(url: str, region: str, service: str = "ec2") -> Any:
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    return boto3.client(service, region_name=region, endpoint_url=url, **keys)


def test_plain_copy_with_tags_and_permissions(run_module: Any, moto_url: str, tmp_path: Path) -> None:
    image = client(moto_url, "eu-west-1").register_image(Name="golden")["ImageId"]
    params = {
        **KEYS,
        "source": {"image_id": image, "region": "eu-west-1"},
        "regions": ["us-east-1"],
        "encrypted": False,
        "tags": {"a": "b"},
        "share_with": {"accounts": [FRIEND]},
        "poll": 0.1,
        "journal": str(tmp_path / "journal"),
    }
    for check in (True, False):
        result = run_module("ami_copy_encrypt", _check=check, _env={"AWS_ENDPOINT_URL": moto_url}, **params)
        documented.check_returned("ami_copy_encrypt", result)
        assert not result["failed"], result["msg"]
        assert result["changed"]
    [copy] = result["copies"]
    far = client(moto_url, "us-east-1")
    [described] = far.describe_images(ImageIds=[copy["image_id"]])["Images"]
    assert (described["Name"], described["State"]) == ("golden", "available")
    assert {"Key": "a", "Value": "b"} in described["Tags"]
    attribute = far.describe_image_attribute(ImageId=copy["image_id"], Attribute="launchPermission")
    assert attribute["LaunchPermissions"] == [{"UserId": FRIEND}]
    again = run_module("ami_copy_encrypt", _env={"AWS_ENDPOINT_URL": moto_url}, **params)
    assert not again["failed"] and not again["changed"]


def test_an_encrypted_copy_is_asked_for_and_not_believed(run_module: Any, moto_url: str, tmp_path: Path) -> None:
    image = client(moto_url, "eu-west-1").register_image(Name="golden")["ImageId"]
    key = client(moto_url, "us-east-1", "kms").create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
    result = run_module(
        "ami_copy_encrypt", _env={"AWS_ENDPOINT_URL": moto_url}, **KEYS,
        source={"image_id": image, "region": "eu-west-1"}, targets=[{"region": "us-east-1", "kms_key_id": key}],
        tags={"a": "b"}, poll=0.1, journal=str(tmp_path / "journal"),
    )  # fmt: skip
    # Moto's copy is in plain text, whatever it was asked for.
    assert result["failed"] and "not encrypted" in result["msg"], result["msg"]
    [asked, *_again] = received(tmp_path / "recording", "CopyImage")
    assert asked.pop("ClientToken")
    specifications = {name: asked.pop(name) for name in list(asked) if name.startswith("TagSpecification.")}
    assert asked == {
        "Action": "CopyImage", "Version": "2016-11-15", "Name": "golden", "SourceImageId": image,
        "SourceRegion": "eu-west-1", "Encrypted": "true", "KmsKeyId": key,
    }  # fmt: skip
    kinds = {value for name, value in specifications.items() if name.endswith("ResourceType")}
    assert kinds == {"image", "snapshot"}
    assert {name: value for name, value in specifications.items() if value in ("a", "b")}


def received(recording: Path, action: str) -> list[dict[str, str]]:
    """The parameters of the requests of an action, as moto received them."""
    bodies = [base64.b64decode(json.loads(line)["body"]).decode() for line in recording.read_text().splitlines()]
    requests = [dict(urllib.parse.parse_qsl(body)) for body in bodies]
    return [request for request in requests if request.get("Action") == action]
