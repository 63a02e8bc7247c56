# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the AWS modules and of docs/aws.md run, against a simulated cloud that has what they name."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud, ec2_backends
from ansible_collections.goldsmith.images.tests.support.cloud_ebs import ebs_direct
from ansible_collections.goldsmith.images.tests.support.cloud_launch import Moment, launched

REGIONS = ("eu-west-1", "eu-central-1", "us-east-1")
ACCOUNTS = (HOME, "111122223333", "444455556666")
SOURCE = "ami-0123456789abcdef0"
PREFIX = "goldsmith.images."
NAMES = ("ami_copy_encrypt", "ami_import", "ami_prune", "ec2_launch_check")
CONSOLE = "Cloud-init v. 25.1.4 finished at Fri, 27 Nov 2026 01:00:01 +0000."
Play = Callable[[list[Any]], list[dict[str, Any]]]


@pytest.fixture
def play(cloud: Cloud, tmp_path: Path, ansible_env: dict[str, str]) -> Iterator[Play]:
    """Run plays or tasks that name what this cloud has; the results of our own modules are returned."""
    for account in ACCOUNTS:
        for region in REGIONS:
            cloud.key(region, account, "alias/images")
    backend = ec2_backends[HOME]["eu-west-1"]
    cloud.image(name="launched")  # the first one is what the instance is started from
    source = backend.amis.pop(cloud.image(name="base"))
    source.id = SOURCE
    backend.amis[SOURCE] = source
    for name in ("golden-1", "cloud_base-1", "test-1"):
        cloud.image(name=name)
        old = cloud.images(HOME, "eu-west-1")[-1]
        old.creation_date = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) - datetime.timedelta(400)
    output = tmp_path / "output/cloud_base"
    output.mkdir(parents=True)
    disk = output / "cloud_base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1G"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 0 512k", str(disk)], check=True, stdout=subprocess.DEVNULL)
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    (output / "manifest.json").write_text(json.dumps({"image": {"sha256": digest}}))
    environment = {
        **ansible_env,
        "AWS_ACCESS_KEY_ID": KEYS["access_key"],
        "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"],
        "AWS_ENDPOINT_URL": cloud.url,
        "HOME": str(tmp_path),
    }
    with ebs_direct(cloud), launched() as machines:
        instance = machines.start(Moment(console=CONSOLE))
        group = instance.security_groups[0].id
        backend.authorize_security_group_ingress(group, "tcp", "22", "22", [{"CidrIp": "192.0.2.0/24"}])

        def run(items: list[Any]) -> list[dict[str, Any]]:
            text = json.dumps(
                items if "hosts" in items[0] else [{"hosts": "localhost", "gather_facts": False, "tasks": items}]
            )
            text = re.sub(r"\bi-0123456789abcdef0", instance.id, text)
            text = re.sub(r"arn:aws:kms:eu-central-1:[^\"]*", cloud.key("eu-central-1"), text)
            # Nothing is to be sent to the address that moto makes up for the instance.
            text = text.replace('"connect_ports"', '"address": "127.0.0.1", "connect_ports"')
            text = text.replace('"wait": 1200', '"wait": 0')
            (tmp_path / "play.yml").write_text(text)
            done = subprocess.run(
                [
                    *(str(shutil.which("ansible-playbook", path=ansible_env["PATH"])), "-i", "localhost,"),
                    *("-c", "local", "-e", f"ansible_python_interpreter={sys.executable} external_id=example"),
                    str(tmp_path / "play.yml"),
                ],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            plays = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
            tasks = [task for each in plays for task in each["tasks"]]
            found = []
            for task in tasks:
                result = task["hosts"]["localhost"]
                name = str(result.get("action", "")).removeprefix(PREFIX)
                if name in NAMES:
                    for each in result.get("results", [result]):
                        for of_the_loop in ("item", "ansible_loop_var"):
                            each.pop(of_the_loop, None)
                        documented.check_returned(name, each)
                        found.append(each)
            return found

        yield run


def test_copy(play: Play) -> None:
    results = play(documented.section("ami_copy_encrypt", "EXAMPLES"))
    assert [len(each["copies"]) for each in results] == [3, 4, 1]
    assert results[1]["source_action"]["result"] == "deregistered"


def test_import(play: Play) -> None:
    [result] = play(documented.section("ami_import", "EXAMPLES"))
    assert result["outcome"] == "created"


def test_prune(play: Play) -> None:
    results = play(documented.section("ami_prune", "EXAMPLES"))
    assert [[each["action"] for each in result["images"]] for result in results] == [["kept"], ["deregistered"], []]


def test_launch_check(play: Play) -> None:
    up, cml = play(documented.section("ec2_launch_check", "EXAMPLES"))
    assert up["ok"] and not cml["ok"]
    assert {check["name"] for check in cml["checks"] if check["status"] == "fail"} == {"port", "tcp", "cml_gui"}


def test_the_guide(play: Play) -> None:
    plays = sum(documented.blocks("aws.md"), [])
    made, copied, up, pruned = play(plays)
    assert made["outcome"] == "created" and len(copied["copies"]) == 2
    assert up["ok"] and up["changed"] is False
    assert sorted(image["action"] for image in pruned["images"]) == ["kept", "kept"]
