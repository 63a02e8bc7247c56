# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The template for EC2 as a user runs it by hand, and as the role stages it for different versions of Packer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import ssh_server
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Call, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_instance import images_of_instances
from ansible_collections.goldsmith.images.tests.support.packer_build import needs_packer
from moto.ec2.models import ec2_backends

CHECKOUT = Path(__file__).resolve().parents[2]
TEMPLATE = CHECKOUT / "roles/packer/files/amazon-ebs"
REGION = "eu-west-1"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    (tmp_path / "user-data").write_text("#cloud-config\n")
    (tmp_path / "play.yml").write_text("[]\n")
    return {
        "ami_name": "mine",
        "region": "eu-west-1",
        "source_ami_owner": "136693071363",
        "source_ami_name": "debian-13-amd64-*",
        "root_device": "/dev/xvda",
        "volume_size": 10,
        "instance_type": "m5.large",
        "ssh_source_cidrs": ["192.0.2.7/32"],
        "ssh_username": "packer",
        "ssh_private_key_file": str(tmp_path / "key"),
        "user_data_file": str(tmp_path / "user-data"),
        "playbook": str(tmp_path / "play.yml"),
        "ansible_arguments": [],
        "ansible_environment": [],
        "finish_command": "sudo sh /run/goldsmith-images/finish",
    }


def packer(folder: Path, values: dict[str, Any], command: str = "validate") -> subprocess.CompletedProcess[str]:
    (folder / "values.json").write_text(json.dumps(values))
    keys = {"AWS_ACCESS_KEY_ID": KEYS["access_key"], "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"]}
    return subprocess.run(
        ["packer", command, f"-var-file={folder / 'values.json'}", str(TEMPLATE)],
        env={**os.environ, **keys, "CHECKPOINT_DISABLE": "1", "PATH": PATH, "AWS_POLL_DELAY_SECONDS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@needs_packer
@pytest.mark.parametrize("more", [{}, {"spot": True}, {"kms_key_id": "alias/images", "subnet_id": "subnet-1"}])
def test_the_template_is_valid(values: dict[str, Any], tmp_path: Path, more: dict[str, Any]) -> None:
    done = packer(tmp_path, {**values, **more})
    assert done.returncode == 0, done.stdout


@needs_packer
@pytest.mark.parametrize(
    ("cidrs", "said"),
    [
        ([], "Say who may reach SSH"),
        (["0.0.0.0/0"], "The whole Internet, or half of it, must not reach SSH"),
        (["192.0.2.7/32", "::/0"], "The whole Internet, or half of it, must not reach SSH"),
        (["128.0.0.0/1"], "The whole Internet, or half of it, must not reach SSH"),
    ],
)
def test_ssh_is_never_open_to_the_world(values: dict[str, Any], tmp_path: Path, cidrs: list[str], said: str) -> None:
    done = packer(tmp_path, {**values, "ssh_source_cidrs": cidrs})
    assert done.returncode == 1
    assert said in done.stdout


def test_no_id_of_an_ami_is_in_it() -> None:
    assert "ami-" not in (TEMPLATE / "amazon-ebs.pkr.hcl").read_text()


@pytest.mark.parametrize(
    ("version", "nested"),
    [
        ("1.6.6", True),
        pytest.param("1.7.0", False, marks=pytest.mark.slow_matrix),
        pytest.param("1.16.0", True, marks=pytest.mark.slow_matrix),
    ],
)
def test_only_what_this_packer_knows_is_staged(
    ansible_env: dict[str, str], tmp_path: Path, version: str, nested: bool
) -> None:
    # Says its version, and keeps what it is to build.
    (tmp_path / "bin").mkdir()
    packer = tmp_path / "bin/packer"
    packer.write_text(
        f'#!/bin/sh\ncase "$1" in --version) echo {version} ;; version) echo Packer v{version} ;;\n'
        f'*) for last; do :; done; cp -r "$last" {tmp_path}/staged; exit 1 ;; esac\n'
    )
    packer.chmod(0o755)
    names = ("profile", "endpoint_url", "kms_key_id", "subnet_id", "ssh_host", "iam_instance_profile")
    settings = {
        **dict.fromkeys(names, ""),
        "region": "eu-west-1", "source_ami": {"owner": "self", "name": "debian-*"}, "root_device": "/dev/xvda",
        "volume_size": 10, "instance_type": "m8i.large", "nested_virtualization": nested, "spot": False,
        "public_ip": False, "security_group_ids": [], "ssh_source_cidrs": ["192.0.2.7/32"],
        "ssh_interface": "public_ip", "ssh_port": 22, "tags": {},
    }  # fmt: skip
    role = {"name": "goldsmith.images.packer", "tasks_from": "amazon_ebs"}
    variables = {"packer_work_dir": str(tmp_path / "work"), "packer_amazon_ebs": settings}
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{"include_role": role, "vars": variables}]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [str(shutil.which("ansible-playbook", path=ansible_env["PATH"])), "-i", "localhost,", "-c", "local"]
    environment = {**ansible_env, "PATH": f"{tmp_path}/bin:{ansible_env['PATH']}"}
    arguments = ["-e", f"ansible_python_interpreter={sys.executable}", str(tmp_path / "play.yml")]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    staged = tmp_path / "staged"
    assert staged.is_dir(), done.stdout + done.stderr
    template = (staged / "amazon-ebs.pkr.hcl").read_text()
    lines = [line.strip() for line in template.splitlines()]
    new = version != "1.6.6"
    assert (staged / "plugins.pkr.hcl").exists() is new
    assert ('imds_support = "v2.0"' in lines) is new
    assert ('http_tokens                 = "required"' in lines) is new
    assert ("enable_nested_virtualization = true" in lines) is (new and nested)
    if shutil.which("packer"):
        # It is well-formed all the same, whoever knows what it says.
        subprocess.run([str(shutil.which("packer")), "fmt", "-check", str(staged)], check=True, capture_output=True)


def tags_asked(params: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """The tags of a request, by what they are for."""
    found: dict[str, dict[str, str]] = {}
    for name, [value] in params.items():
        if match := re.fullmatch(r"(TagSpecification\.\d+)\.Tag\.\d+\.Key", name):
            tag_value = params[name.removesuffix("Key") + "Value"]
            found.setdefault(params[f"{match[1]}.ResourceType"][0], {})[value] = tag_value[0]
    return found


@needs_packer
@pytest.mark.parametrize(
    "spot", [pytest.param(False, id="on demand"), pytest.param(True, id="spot", marks=pytest.mark.slow_matrix)]
)
def test_packer_makes_an_encrypted_ami_and_cleans_up(
    cloud: Cloud, values: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, spot: bool
) -> None:
    """The instance is an SSH server on this host, the playbook does nothing; the real one is in test_amazon_ebs.py."""
    key = cloud.key(REGION, alias="alias/images")
    disk = {"architecture": "x86_64", "virtualization_type": "hvm", "root_device_name": "/dev/xvda"}
    source = cloud.image(REGION, name="debian-13-amd64-20260101", **disk)
    finished = tmp_path / "finished"

    def power_off(call: Call) -> None:
        if call.action == "DescribeInstances" and finished.exists():
            for reservation in ec2_backends[HOME][REGION].reservations.values():
                [instance.stop() for instance in reservation.instances if instance.state == "running"]

    (tmp_path / "play.yml").write_text(
        "[{hosts: all, gather_facts: false, tasks: [{ansible.builtin.command: {cmd: id, creates: /}}]}]"
    )
    with images_of_instances(cloud), ssh_server.running(tmp_path_factory.mktemp("sshd")) as host:
        cloud.before = power_off
        values |= {
            "endpoint_ec2": cloud.url, "source_ami_owner": HOME, "kms_key_id": "alias/images", "spot": spot,
            "ssh_host": host["ansible_host"], "ssh_port": host["ansible_port"], "ssh_username": host["ansible_user"],
            "ssh_private_key_file": host["ansible_ssh_private_key_file"], "tags": {"team": "platform"},
            "ansible_environment": ["ANSIBLE_HOST_KEY_CHECKING=False", f"ANSIBLE_SSH_ARGS={ssh_server.CLIENT}"],
            "ansible_arguments": ["--extra-vars", f"ansible_python_interpreter={sys.executable}"],
            "finish_command": f"touch {finished}",
        }  # fmt: skip
        done = packer(tmp_path, values, "build")
    assert done.returncode == 0, done.stdout[-6000:]
    assert finished.exists()
    [made] = [image for image in cloud.images(HOME, REGION) if image.id != source]
    # Moto does not look at the volumes of a launch template, so for spot what was asked has to do.
    prefix, action = ("LaunchTemplateData.", "CreateLaunchTemplate") if spot else ("", "RunInstances")
    [asked] = [call.params for call in cloud.calls if call.action == action]
    volume = {
        name: asked[f"{prefix}BlockDeviceMapping.1.Ebs.{name}"] for name in ("Encrypted", "KmsKeyId", "VolumeType")
    }
    assert volume == {"Encrypted": ["true"], "KmsKeyId": ["alias/images"], "VolumeType": ["gp3"]}
    if not spot:
        assert tags_asked(asked) == dict.fromkeys(("instance", "volume"), {"team": "platform", "Name": "build of mine"})
        assert [(each.encrypted, each.kms_key_id, each.volume.size) for each in made.devices] == [(True, key, 10)]
    assert {"team": "platform", "goldsmith.images:source-ami": source}.items() <= {
        tag["key"]: tag["value"] for tag in made.get_tags()
    }.items()
    ec2 = ec2_backends[HOME][REGION]
    assert [group.name for group in ec2.describe_security_groups()] == ["default"]
    assert not ec2.volumes, "the instance's volume stayed"
    assert not ec2.launch_templates
    assert cloud.count("TerminateInstances") == 1
