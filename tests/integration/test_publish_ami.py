# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook publish_ami.yml from a released image to the files of the next tools, in a simulated cloud."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_ebs import ebs_direct

CHECKOUT = Path(__file__).resolve().parents[2]
OTHER = "222222222222"
FRIEND = "333333333333"
ROLE = f"arn:aws:iam::{OTHER}:role/publisher"
REGION, FAR = "eu-west-1", "us-east-1"
CONFIG = """\
# what the labs run on
aws:
  region: us-east-1
  cml_ami: ami-00000000000000000  # set by publish_ami
"""

Publish = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def cloud(cloud: Cloud) -> Iterator[Cloud]:
    with ebs_direct(cloud):
        for account in (HOME, OTHER):
            for region in (REGION, FAR):
                cloud.key(region, account, "alias/images")
        yield cloud


def release(run_module: Any, tmp_path: Path, created: str) -> Path:
    """Release an image as a build does; *created* stands for the time that has passed."""
    image, output = tmp_path / "new.qcow2", tmp_path / "output/node"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M"], check=True)
    subprocess.run(
        ["qemu-io", "-c", "write -P 7 0 64k", "-c", f"write -P {len(created)} 64k 1k", str(image)], check=True
    )
    with image.open("ab") as file:
        file.write(created.encode().ljust(512))
    released = run_module(
        "image_release",
        name="node",
        image=str(image),
        output_dir=str(output),
        verified_sha256=hashlib.sha256(image.read_bytes()).hexdigest(),
        manifest={
            "description": "A node",
            "created": created,
            "fingerprint": "f" * 64,
            "verification": {"passed": True, "tests": 3, "failures": 0, "skipped": 0},
            "plan": {"kubernetes": None},
            "phases": [],
            "packages": [],
        },
    )
    assert not released["failed"], released
    return output


@pytest.fixture(scope="module")
def released(run_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(run_module, tmp_path_factory.mktemp("released"), "2026-11-27T06:37:16+00:00")


@pytest.fixture
def image(released: Path, tmp_path: Path) -> Path:
    return shutil.copytree(released, tmp_path / "output/node")


@pytest.fixture
def publish(cloud: Cloud, ansible_env: dict[str, str], tmp_path: Path) -> Publish:
    """Run the playbook; returns what it says of the host, with the results of its tasks, and all its output."""

    def run(_check: bool = False, **variables: Any) -> tuple[dict[str, Any], str]:
        given = {
            "image": "node",
            "publish_ami_import_options": {"state_dir": str(tmp_path / "state"), "no_progress": True},
            "publish_ami_copy_options": {"poll": 0.05, "journal": str(tmp_path / "journal")},
            **variables,
        }
        environment = {
            **{name: value for name, value in ansible_env.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL": cloud.url,
            "AWS_ACCESS_KEY_ID": KEYS["access_key"],
            "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"],
            "PWD": str(tmp_path),
            "ANSIBLE_PIPELINING": "true",
        }
        done = subprocess.run(
            [
                "ansible-playbook",
                str(CHECKOUT / "playbooks/publish_ami.yml"),
                "-e",
                json.dumps(given),
                *["--check"] * _check,
            ],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        output = done.stdout + done.stderr
        report = json.loads(done.stdout[done.stdout.index("{") :])
        stats = report["stats"]["localhost"]
        tasks = [task["hosts"]["localhost"] for play in report["plays"] for task in play["tasks"]]
        assert (done.returncode == 0) == (stats["failures"] == 0), output
        messages = [str(task.get("msg")) for task in tasks if task.get("failed")]
        messages += [str(item["msg"]) for task in tasks for item in task.get("results", []) if item.get("failed")]
        shown = [task["publish_ami_result"] for task in tasks if "publish_ami_result" in task]
        return {**stats, "msg": " ".join(messages), "result": shown[0] if shown else None}, output

    return run


def client(cloud: Cloud, service: str, region: str, account: str = HOME) -> Any:
    place = {"region_name": region, "endpoint_url": cloud.url}
    home = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    if account == HOME:
        return boto3.client(service, **place, **home)
    sts = boto3.client("sts", **place, **home)
    keys = sts.assume_role(RoleArn=f"arn:aws:iam::{account}:role/test", RoleSessionName="test")["Credentials"]
    return boto3.client(
        service,
        **place,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )


def tags_of(image: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in image.get_tags()}


def documented_variables(number: int) -> dict[str, Any]:
    """The variables in a block of the documentation."""
    return [block for block in documented.blocks("publish_ami.md") if isinstance(block, dict)][number]


def test_from_the_image_to_the_next_tools(
    cloud: Cloud, publish: Publish, image: Path, tmp_path: Path, run_module: Any
) -> None:
    nodes = {"ImageId": "ami-00000000000000000", "InstanceType": "m7i.large"}
    templates = client(cloud, "ec2", FAR, OTHER)
    templates.create_launch_template(LaunchTemplateName="nodes", LaunchTemplateData=nodes)
    (tmp_path / "config.yml").write_text(CONFIG)
    variables = documented_variables(2)
    before = len(cloud.calls)
    predicted, output = publish(_check=True, **variables)
    assert (predicted["failures"], predicted["changed"]) == (0, 1), output
    assert cloud.changes(before) == []

    made, output = publish(**variables)
    assert made["failures"] == 0, output
    digest = hashlib.sha256((image / "node.qcow2").read_bytes()).hexdigest()
    [home], [far], [other] = cloud.images(HOME, REGION), cloud.images(HOME, FAR), cloud.images(OTHER, FAR)
    amis = {(each["account"], each["region"]): each["image_id"] for each in made["result"]["amis"]}
    assert amis == {(HOME, REGION): home.id, (HOME, FAR): far.id, (OTHER, FAR): other.id}
    assert (made["result"]["name"], made["result"]["sha256"]) == ("node", digest)
    for ami in (home, far, other):
        assert ami.name == "node-20261127063716"
        assert tags_of(ami)["team"] == "platform"
        assert tags_of(ami)["goldsmith.images:verified-sha256"] == digest
        assert ami.launch_permissions == [{"UserId": FRIEND}]
        assert [snapshot.create_volume_permission_userids for snapshot in ami.devices] == [{FRIEND}]
        assert all(snapshot.encrypted for snapshot in ami.devices)
    assert (tmp_path / "config.yml").read_text() == CONFIG.replace("ami-00000000000000000", other.id)
    mappings = json.loads((tmp_path / "images.json").read_text())["Mappings"]["Images"]
    assert mappings == {REGION: {"cloudBase": home.id}, FAR: {"cloudBase": far.id}}
    for account, ami in ((HOME, far), (OTHER, other)):
        parameter = client(cloud, "ssm", FAR, account).get_parameter(Name="/images/cloud_base")["Parameter"]
        assert parameter["Value"] == ami.id
    assert not client(cloud, "ssm", REGION).describe_parameters()["Parameters"]
    # Moto does not take over what the version before says; EC2 does when it is asked to.
    [version] = [call.params for call in cloud.calls if call.action == "CreateLaunchTemplateVersion"]
    assert version["SourceVersion"] == ["1"]
    newest = templates.describe_launch_template_versions(LaunchTemplateName="nodes")["LaunchTemplateVersions"][-1]
    assert (newest["VersionNumber"], newest["DefaultVersion"]) == (2, True)
    assert newest["LaunchTemplateData"] == {"ImageId": other.id}
    assert KEYS["secret_key"] not in output

    before = len(cloud.calls)
    again, output = publish(**variables)
    assert (again["failures"], again["changed"]) == (0, 0), output
    assert again["result"] == {**made["result"], "deprecated": []}
    assert cloud.changes(before) == []

    # The next release takes the place of this one.
    release(run_module, tmp_path, "2026-12-04T06:37:16+00:00")
    newer, output = publish(**documented_variables(0))
    assert newer["failures"] == 0, output
    assert sorted(newer["result"]["deprecated"]) == sorted([home.id, far.id])
    for ami in (home, far):
        assert ami.deprecation_time and ami.state == "available"
    assert not other.deprecation_time
    written = json.loads((tmp_path / "images.auto.tfvars.json").read_text())
    assert written == {"ami_ids": {each["region"]: each["image_id"] for each in newer["result"]["amis"]}}
    assert set(written["ami_ids"]) == {REGION, FAR} and not set(written["ami_ids"].values()) & {home.id, far.id}


def test_an_ami_of_packer(cloud: Cloud, publish: Publish, tmp_path: Path) -> None:
    old = cloud.image(FAR, name="golden-1", key=cloud.key(FAR))
    plain = cloud.image(REGION, name="golden-2")
    own = {"poll": 0.05, "journal": str(tmp_path / "journal")}
    variables = documented_variables(1)
    variables["publish_ami_source"]["image_id"] = plain
    variables["publish_ami_copy_options"].update(own)
    made, output = publish(**variables)
    assert made["failures"] == 0, output
    assert plain not in [image.id for image in cloud.images(HOME, REGION)]
    [near], [far] = cloud.images(HOME, REGION), [image for image in cloud.images(HOME, FAR) if image.id != old]
    assert {each["image_id"] for each in made["result"]["amis"]} == {near.id, far.id}
    assert {tags_of(ami)["goldsmith.images:verified-by"] for ami in (near, far)} == {"ec2_launch_check of build 17"}
    assert made["result"]["deprecated"] == [old]
    again, output = publish(**variables)
    assert (again["failures"], again["changed"]) == (0, 0), output


FOLDER: dict[str, Any] = {"publish_ami_image_dir": "x", "publish_ami_region": REGION}
AMI: dict[str, Any] = {"publish_ami_source": {"image_id": "ami-1", "region": REGION}, "publish_ami_verified_by": "x"}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({**FOLDER, **AMI}, "not both"),
    ({"publish_ami_image_dir": "x"}, "publish_ami_region"),
    ({**AMI, "publish_ami_regions": [FAR], "publish_ami_verified_by": ""}, "what has proved it"),
    (AMI, "Say where the copies of publish_ami_source go"),
    ({**FOLDER, "publish_ami_accounts": [{"role_arn": ROLE}]}, "Say which regions of publish_ami_accounts"),
    (
        {**FOLDER, "publish_ami_targets": [{"region": FAR}], "publish_ami_regions": [FAR]},
        "Give one or the other",
    ),
    (
        {**FOLDER, "publish_ami_yaml_values": [{"path": "config.yml", "key": "a", "region": FAR}]},
        f"config.yml: there will be no AMI in {FAR}",
    ),
    (
        {
            **FOLDER,
            "publish_ami_regions": [REGION],
            "publish_ami_accounts": [{"role_arn": ROLE}],
            "publish_ami_tfvars": [{"path": "a.tfvars.json"}],
        },
        "a.tfvars.json: a region occurs in several accounts",
    ),
    (FOLDER, "manifest.json: No such file or directory"),
    ({**FOLDER, "publish_ami_share_with": {"accounts": 1, "nobody": []}}, "nobody"),
]


def test_what_cannot_be_meant_or_was_not_verified_is_refused(
    image: Path, ansible_env: dict[str, str], tmp_path: Path
) -> None:
    with (image / "node.qcow2").open("ab") as file:
        file.write(b"one byte more is another image")
    mistakes = [*MISTAKES, ({**FOLDER, "publish_ami_image_dir": str(image)}, "node.qcow2 has the sha256")]
    include = {"ansible.builtin.include_role": {"name": "goldsmith.images.publish_ami"}}
    tell = {"ansible.builtin.debug": {"msg": "{{ ansible_failed_result | to_json }}"}}
    tasks = [{"block": [{**include, "vars": variables}], "rescue": [tell]} for variables, _message in mistakes]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    command = ["ansible-playbook", str(tmp_path / "play.yml")]
    done = subprocess.run(command, env=ansible_env, capture_output=True, text=True, timeout=300, check=False)
    [play] = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
    told = [
        task["hosts"]["localhost"]["msg"] for task in play["tasks"] if task["task"]["name"] == "ansible.builtin.debug"
    ]
    assert len(told) == len(mistakes), done.stdout + done.stderr
    assert [message for (_variables, message), text in zip(mistakes, told) if message not in text] == [], told


def test_the_playbook_of_the_documentation(image: Path, ansible_env: dict[str, str], tmp_path: Path) -> None:
    [play] = [block for block in documented.blocks("publish_ami.md") if isinstance(block, list)]
    path = tmp_path / "play.yml"
    path.write_text(json.dumps(play).replace("output/cloud_base", str(image)))
    command = ["ansible-playbook", str(path)]
    done = subprocess.run(command, env=ansible_env, capture_output=True, text=True, timeout=120, check=False)
    digest = hashlib.sha256((image / "node.qcow2").read_bytes()).hexdigest()
    assert f"node.qcow2 has {digest}" in done.stdout, done.stdout + done.stderr
