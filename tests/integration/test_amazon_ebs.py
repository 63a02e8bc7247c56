# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An AMI is built by the real Packer in a simulated EC2, whose instance is a real machine on this host."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_build
from ansible_collections.goldsmith.images.plugins.module_utils._image_definition import load_definition
from ansible_collections.goldsmith.images.tests.support import ssh_server
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_instance import images_of_instances, machine_behind
from ansible_collections.goldsmith.images.tests.support.packer_build import needs_packer, needs_qemu

CHECKOUT = Path(__file__).resolve().parents[2]
PLAYBOOK = CHECKOUT / "playbooks/build-image.yml"
CLOUD_BASE = yaml.safe_load((CHECKOUT / "playbooks/images/cloud_base.yml").read_text())
REGION = "eu-west-1"
HOUR = 3600
Environment = dict[str, str]


@pytest.fixture
def cloud(cloud: Cloud) -> Iterator[Cloud]:
    with images_of_instances(cloud):
        yield cloud


@pytest.fixture
def source_ami(cloud: Cloud) -> str:
    """An AMI to start from, and an older one that must not be taken."""
    disk = {"architecture": "x86_64", "virtualization_type": "hvm", "root_device_name": "/dev/xvda", "sizes": (8,)}
    cloud.image(
        REGION, name="debian-13-amd64-20250101", creation_date=datetime(2025, 1, 1, tzinfo=timezone.utc), **disk
    )
    return cloud.image(
        REGION, name="debian-13-amd64-20260101", creation_date=datetime(2026, 1, 1, tzinfo=timezone.utc), **disk
    )


@pytest.fixture
def environment(ansible_env: Environment, cloud: Cloud) -> Environment:
    """A user's environment: no keys in the definition."""
    path = f"{ansible_env['PATH']}:/usr/sbin:/sbin"
    own = {"AWS_ACCESS_KEY_ID": KEYS["access_key"], "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"], "PATH": path}
    # Packer waits a quarter of a minute between two looks at an instance.
    return {
        **ansible_env,
        **own,
        "AWS_POLL_DELAY_SECONDS": "1",
        "AWS_MAX_ATTEMPTS": "3000",
        "AWS_ENDPOINT_URL": cloud.url,
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def definition(cloud: Cloud, tmp_path: Path) -> Callable[..., Path]:
    """Write the definition of an AMI."""

    def write(amazon_ebs: dict[str, Any] | None = None, **keys: Any) -> Path:
        settings = {
            "region": REGION,
            "endpoint_url": cloud.url,
            "source_ami": {"owner": HOME, "name": "debian-13-amd64-*"},
            "instance_type": "m5.large",
            "ssh_source_cidrs": ["192.0.2.7/32"],
            **(amazon_ebs or {}),
        }
        path = tmp_path / "mine.yml"
        path.write_text(yaml.safe_dump({"name": "mine", "builder": "amazon-ebs", "amazon_ebs": settings, **keys}))
        return path

    return write


@pytest.fixture
def build(environment: Environment, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the playbook as a user does."""

    def run(image: Path | str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        values = [f"image={image}", f"image_output={tmp_path}/output", f"image_cache={tmp_path}/cache"]
        command = [str(shutil.which("ansible-playbook", path=environment["PATH"])), str(PLAYBOOK), *arguments]
        for value in (f"ansible_python_interpreter={sys.executable}", *values):
            command += ["-e", value]
        plain = {
            **environment,
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_CALLBACKS_ENABLED": "goldsmith.images.image_summary",
        }
        return subprocess.run(
            command, cwd=tmp_path, env=plain, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT, timeout=timeout, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def decide(cloud: Cloud, definition, monkeypatch: pytest.MonkeyPatch) -> Callable[..., _ec2_build.Decision]:
    """Decide about a definition as the plan does, without Ansible around it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret_key"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
    defaults = yaml.safe_load((CHECKOUT / "playbooks/images/defaults.yml").read_text())

    def run(settings: dict[str, Any], packer_version: tuple[int, ...] = (1, 6, 6), **keys: Any) -> _ec2_build.Decision:
        data = yaml.safe_load(definition(settings, **keys).read_text())
        complete = load_definition(data, defaults, source="mine.yml")
        return _ec2_build.decide(complete, allow_no_kvm=False, packer_version=packer_version, environment={})

    return run


def folded(output: str) -> str:
    return " ".join(output.split())


# ------------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_says_what_it_has_decided(cloud: Cloud, source_ami: str, definition, build) -> None:
    done = build(definition(disk_size="20G", roles=["base_packages"]), "--check")
    output = folded(done.stdout)
    assert done.returncode == 0, done.stdout
    assert f"source AMI {source_ami} debian-13-amd64-20260101" in output
    assert "instance m5.large in eu-west-1" in output
    assert re.search(r"root volume gp3, 20 GiB, encrypted from the start with arn:aws:kms:eu-west-1:\d+:key/", output)
    assert "SSH from 192.0.2.7/32 only" in output
    assert "no, Packer before 1.7 cannot say so" in output
    assert "[WARNING]: The instance that the AMI is built in does not require IMDSv2" in output
    assert "yes: there is no finished image yet" in output
    assert all(call.action.startswith(("Describe", "Get")) for call in cloud.calls)


@pytest.mark.parametrize(
    ("settings", "keys", "said"),
    [
        ({}, {"needs_kvm": True}, "instance of the build could not run VMs: The instance type m5.large cannot run VMs"),
        ({"instance_type": "m8i.large"}, {"needs_kvm": True}, "m8i.large can, with amazon_ebs.nested_virtualization"),
        ({"nested_virtualization": True}, {"packer_version": (1, 11, 2)}, "The instance type m5.large cannot run VMs"),
        ({"instance_type": "m8i.large", "nested_virtualization": True}, {}, "nested_virtualization needs Packer 1.7"),
        ({"instance_type": "m5.lrage"}, {}, "amazon_ebs.instance_type: there is no m5.lrage in eu-west-1"),
        ({"instance_type": "t4g.micro"}, {}, "amazon_ebs.instance_type: t4g.micro is arm64, images are x86_64"),
        ({"source_ami": {"owner": HOME, "name": "ubuntu*"}}, {}, f"source_ami: {HOME} has no available x86_64 image"),
        ({"kms_key_id": "alias/nothing"}, {}, "amazon_ebs.kms_key_id: the key alias/nothing cannot be used"),
        ({"security_group_ids": ["sg-12345678"]}, {}, "amazon_ebs.security_group_ids: InvalidGroup.NotFound"),
        ({}, {"disk_size": "4G"}, "disk_size: the source AMI has 8 GiB, 4G are too few"),
        ({"ssh_interface": "private_ip", "ssh_source_cidrs": []}, {}, "Say who may reach SSH: amazon_ebs."),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_started(
    decide, source_ami: str, settings: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(_ec2_build.Ec2BuildError) as raised:
        decide(settings, **keys)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_all_that_cannot_work_is_said_together(decide, source_ami: str) -> None:
    with pytest.raises(_ec2_build.Ec2BuildError) as raised:
        decide({"instance_type": "m5.lrage", "kms_key_id": "alias/nothing"}, disk_size="4G")
    assert len(str(raised.value).splitlines()) == 3


def test_a_newer_packer_may_have_nested_virtualisation(decide, source_ami: str) -> None:
    wanted = {"instance_type": "m8i.large", "nested_virtualization": True}
    decision = decide(wanted, packer_version=(1, 11, 2), needs_kvm=True)
    assert decision.nested == "can run VMs"
    assert (decision.imds(), decision.warnings()) == ("yes", [])


def test_the_instance_requires_imdsv2_where_its_source_does(cloud: Cloud, decide, source_ami: str) -> None:
    assert [warning for warning in decide({}).warnings() if source_ami in warning]
    cloud.images(HOME, REGION)[1].imds_support = "v2.0"
    decision = decide({})
    assert (decision.imds(), decision.warnings()) == ("yes, its source AMI wants it", [])


@pytest.mark.parametrize(
    ("protocol", "first", "last", "cidr", "wide"),
    [
        ("tcp", 22, 22, "192.0.2.7/32", False),
        ("tcp", 443, 443, "0.0.0.0/0", False),
        ("udp", 22, 22, "0.0.0.0/0", False),
        ("tcp", 22, 22, "0.0.0.0/0", True),
        ("tcp", 1, 1024, "128.0.0.0/1", True),
        ("tcp", 22, 22, "::/0", True),
        ("-1", -1, -1, "0.0.0.0/0", True),
    ],
)
def test_a_group_of_the_users_own_is_not_open_to_the_world(
    cloud: Cloud, decide, source_ami: str, protocol: str, first: int, last: int, cidr: str, wide: bool
) -> None:
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=cloud.url, **keys)
    group = ec2.create_security_group(GroupName="mine", Description="mine")["GroupId"]
    version, name = ("Ipv6Ranges", "CidrIpv6") if ":" in cidr else ("IpRanges", "CidrIp")
    rule = {"IpProtocol": protocol, "FromPort": first, "ToPort": last, version: [{name: cidr}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    settings = {"security_group_ids": [group]}
    if not wide:
        assert decide(settings).settings["security_group_ids"] == [group]
        return
    with pytest.raises(_ec2_build.Ec2BuildError, match=f"security_group_ids: {group} lets the whole Internet"):
        decide(settings)


def test_an_account_that_cannot_be_entered_is_the_only_problem(cloud: Cloud, decide) -> None:
    cloud.refuse[HOME, "GetCallerIdentity"] = "ExpiredToken"
    with pytest.raises(_ec2_build.Ec2BuildError, match="account cannot be entered: ExpiredToken") as raised:
        decide({"instance_type": "m5.lrage"})
    assert len(str(raised.value).splitlines()) == 1


def test_a_play_ends_in_the_plan(cloud: Cloud, source_ami: str, definition, build) -> None:
    done = build(definition(needs_kvm=True))
    assert done.returncode == 2, done.stdout
    assert "The instance type m5.large cannot run VMs" in folded(done.stdout)
    assert "TASK [Be the only one" not in done.stdout
    assert all(call.action.startswith(("Describe", "Get")) for call in cloud.calls)


@pytest.mark.slow_matrix
def test_keys_of_the_command_line_replace_others(cloud: Cloud, source_ami: str, definition, build) -> None:
    metal = json.dumps({"amazon_ebs": {"instance_type": "m5.metal"}})
    done = build(definition(needs_kvm=True), "--check", "-e", metal)
    assert "instance m5.metal in eu-west-1; can run VMs" in folded(done.stdout)
    allowed = build(definition(needs_kvm=True), "--check", "-e", "image_allow_no_kvm=true")
    assert "cannot run VMs, which is allowed" in folded(allowed.stdout)


def test_the_image_cml_can_be_planned_for_ec2(cloud: Cloud, build) -> None:
    owner = yaml.safe_load((CHECKOUT / "playbooks/images/cml.yml").read_text())["amazon_ebs"]["source_ami"]["owner"]
    image = cloud.image(REGION, name="debian-13-amd64-20260101", architecture="x86_64", virtualization_type="hvm")
    cloud.images(HOME, REGION)[0].owner_id = owner
    settings = {"region": REGION, "endpoint_url": cloud.url, "ssh_source_cidrs": ["192.0.2.7/32"]}
    done = build("cml", "--check", "-v", "-e", "builder=amazon-ebs", "-e", json.dumps({"amazon_ebs": settings}))
    assert f"source AMI {image} debian-13-amd64-20260101 (owner {owner}" in folded(done.stdout), done.stdout
    assert "instance m5zn.metal in eu-west-1; can run VMs" in folded(done.stdout)
    assert "output/cml-amazon-ebs" in done.stdout
    assert re.search(r'"roles": \[[^]]*"cml_build_checks"', folded(done.stdout))
    assert '"cml_build_checks_kvm": "fail"' in done.stdout


# ------------------------------------------------------------------------------------------------------------ the build


@needs_packer
def test_a_play_leads_from_a_definition_to_an_ami(
    cloud: Cloud, source_ami: str, definition, build, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Everything but the machine: the instance is an SSH server on this host, and the playbook in it does nothing."""
    key = cloud.key(REGION, alias="alias/images")
    folder, finished = tmp_path_factory.mktemp("sshd"), tmp_path / "finished"
    (tmp_path / "nothing.yml").write_text("[{hosts: all, gather_facts: false, tasks: []}]")

    def start(user_data: str) -> int:
        [account] = yaml.safe_load(user_data)["users"]
        (folder / "key.pub").write_text("".join(account["ssh_authorized_keys"]) + "\n")
        return subprocess.Popen(["sh", "-c", f"until test -e {finished}; do sleep 0.2; done"]).pid

    with ssh_server.running(folder) as host, machine_behind(cloud, start) as stopped:
        image = definition(
            {"ssh_host": "127.0.0.1", "ssh_port": host["ansible_port"], "kms_key_id": "alias/images"},
            description="made by a test",
        )
        replaced = {
            "packer_playbook": str(tmp_path / "nothing.yml"),
            "packer_ssh_username": host["ansible_user"],
            "__packer_finish_command": f"touch {finished}",
        }
        done = build(image, "-e", json.dumps(replaced))
    assert done.returncode == 0, done.stdout[-8000:]
    assert stopped.is_set()
    manifest = json.loads((tmp_path / "output/mine/manifest.json").read_text())
    ami = manifest["amis"][REGION]
    assert ami["source_ami"] == source_ami
    assert [(each["kms_key_arn"], each["size"]) for each in ami["snapshots"]] == [(key, 10)]
    assert manifest["verification"]["passed"] is None
    assert {"packer build", "packer provision"} & {phase["name"] for phase in manifest["phases"]}
    assert not list((tmp_path / "cache/work").iterdir())

    # A second run has nothing to do, until somebody deregisters the AMI.
    assert "nothing has changed since the last build" in folded(build(image, "--check").stdout)
    session = boto3.Session(KEYS["access_key"], KEYS["secret_key"], region_name=REGION)
    session.client("ec2", endpoint_url=cloud.url).deregister_image(ImageId=ami["image_id"])
    assert f"yes: {ami['image_id']} is gone" in folded(build(image, "--check").stdout)


@pytest.fixture
def ssh_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start(run_module, ssh_port: int, tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Start a machine with user-data, on the disk that the default image is made from; returns its process."""
    base = CLOUD_BASE["base"]
    disk = run_module(
        "base_disk", release=base["release"], packages=base["packages"], size=CLOUD_BASE["disk_size"], _timeout=1800
    )
    assert not disk["failed"], disk["msg"]
    runtime_dir = str(tmp_path / "vm")

    def run(user_data: str) -> int:
        started = run_module(
            "qemu_vm", state="started", runtime_dir=runtime_dir, image=disk["path"], ssh_port=ssh_port,
            seed={"user_data": user_data, "meta_data": "instance-id: i-test\nlocal-hostname: build\n"},
        )  # fmt: skip
        assert not started["failed"], started["msg"]
        return started["vm"]["pid"]

    yield run
    run_module("qemu_vm", state="absent", runtime_dir=runtime_dir)


def assert_clean(run_module, machine: Path) -> None:
    """The disk of a machine that is off has nothing of the build."""
    disk = machine.parent / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(machine / "overlay.qcow2"), str(disk)], check=True)
    hygiene = run_module("image_hygiene", path=str(disk), build_user="packer")
    assert hygiene.get("violations") == [], hygiene


@pytest.mark.slow_matrix
@needs_packer
@needs_qemu
def test_an_ami_is_built_in_a_real_machine_copied_and_verified(
    cloud: Cloud, source_ami: str, definition, build, start, run_module, ssh_port: int, tmp_path: Path
) -> None:
    key, far_key = cloud.key(REGION, alias="alias/images"), cloud.key("us-east-1")
    image = definition(
        {"ssh_host": "127.0.0.1", "ssh_port": ssh_port, "kms_key_id": "alias/images", "tags": {"team": "platform"}},
        roles=["base_packages", "node_exporter"], vars={"node_exporter_listen_address": "127.0.0.1:9100"},
        description="made by a test",
    )  # fmt: skip
    with machine_behind(cloud, start) as stopped:
        done = build(image, "-e", "image_ssh_timeout=900", timeout=HOUR)
    assert done.returncode == 0, done.stdout[-12000:]
    assert stopped.is_set(), "the machine was not powered off by the clean-up"

    # What was asked of EC2: encrypted from the start, SSH for the builder only, tags from the first moment.
    [asked] = [call.params for call in cloud.calls if call.action == "RunInstances"]
    assert asked["ImageId"] == [source_ami]
    assert asked["BlockDeviceMapping.1.DeviceName"] == ["/dev/xvda"]
    assert asked["BlockDeviceMapping.1.Ebs.Encrypted"] == ["true"]
    assert asked["BlockDeviceMapping.1.Ebs.KmsKeyId"] == ["alias/images"]
    assert asked["BlockDeviceMapping.1.Ebs.VolumeType"] == ["gp3"]
    assert asked["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == ["true"]
    opened = [call.params for call in cloud.calls if call.action == "AuthorizeSecurityGroupIngress"]
    assert [rule["IpPermissions.1.IpRanges.1.CidrIp"] for rule in opened] == [["192.0.2.7/32"]]
    assert cloud.count("DeleteSecurityGroup") == cloud.count("CreateSecurityGroup") == 1
    assert cloud.count("TerminateInstances") == 1
    assert cloud.count("CopyImage") == 0

    # The manifest says what is proven, and what is not.
    folder = tmp_path / "output/mine"
    manifest = json.loads((folder / "manifest.json").read_text())
    ami = manifest["amis"][REGION]
    assert ami["source_ami"] == source_ami
    assert [snapshot["kms_key_arn"] for snapshot in ami["snapshots"]] == [key]
    assert ami["imds_support"] == "v2.0"
    [made] = [each for each in cloud.images(HOME, REGION) if each.id == ami["image_id"]]
    assert made.imds_support == "v2.0"
    assert {tag["key"]: tag["value"] for tag in made.get_tags()}["team"] == "platform"
    assert manifest["verification"]["passed"] is None
    assert manifest["verification"]["not_proven"]
    assert ami["image_id"] in done.stdout[done.stdout.index("PLAY RECAP") :]

    # The roles were really applied, and nobody who built it can log in any more.
    log = (folder / "build.log").read_text(errors="replace")
    assert "TASK [goldsmith.images.node_exporter" in log
    assert_clean(run_module, tmp_path / "vm")
    assert KEYS["secret_key"] not in done.stdout + log
    assert not list((tmp_path / "cache/work").iterdir())

    copied = run_module(
        "ami_copy_encrypt", source={"image_id": ami["image_id"], "region": REGION}, endpoint_url=cloud.url,
        targets=[{"region": "us-east-1", "kms_key_id": far_key}], poll=0.05, journal=str(tmp_path / "journal"), **KEYS,
    )  # fmt: skip
    assert not copied["failed"], copied["msg"]
    [copy] = copied["copies"]
    assert [snapshot["kms_key_id"] for snapshot in copy["snapshots"]] == [far_key]


@pytest.mark.slow_matrix
@needs_packer
@needs_qemu
def test_nothing_writes_in_a_spot_instance_after_the_clean_up(
    cloud: Cloud, source_ami: str, definition, build, start, run_module, ssh_port: int, tmp_path: Path
) -> None:
    image = definition(
        {"ssh_host": "127.0.0.1", "ssh_port": ssh_port, "spot": True}, roles=["base_packages"], needs_kvm=False
    )
    with machine_behind(cloud, start) as stopped:
        done = build(image, "-e", "image_ssh_timeout=900", timeout=HOUR)
        # It would be gone if it had powered itself off; now somebody pulls the plug.
        assert not stopped.is_set()
        run_module("qemu_vm", state="stopped", runtime_dir=str(tmp_path / "vm"), stop_timeout=0)
    assert cloud.count("CreateFleet") == cloud.count("CreateImage") == 1, done.stdout[-12000:]
    # Moto's fleets do not look at the volumes of their launch template: an AMI in plain text is not released.
    assert "is not encrypted. Deregister ami-" in folded(done.stdout)
    assert not (tmp_path / "output").exists()
    assert_clean(run_module, tmp_path / "vm")
