# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_copy_encrypt through Ansible against moto as it is: none of our own answers, so the wire format stays honest."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
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
    environment = {**os.environ, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}
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


def client(url: str, region: str) -> Any:
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    return boto3.client("ec2", region_name=region, endpoint_url=url, **keys)


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
