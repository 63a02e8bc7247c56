# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated cloud answers as botocore's model of EC2 says, and as AWS's documentation says where moto does not."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from typing import Any
from xml.etree import ElementTree

import boto3
import botocore.config
import botocore.exceptions
import botocore.parsers
import botocore.session
import pytest
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud, error_body
from ansible_collections.goldsmith.images.tests.support.cloud_ebs import BLOCK, ebs_direct
from ansible_collections.goldsmith.images.tests.support.cloud_launch import Moment, launched

OTHER = "210987654321"
JSON_TYPES = {"boolean": bool, "integer": int, "long": int, "string": str, "timestamp": (int, float)}
EBS, EC2, SSM = (botocore.session.Session().get_service_model(name) for name in ("ebs", "ec2", "ssm"))


def client(cloud: Cloud, service: str = "ec2", region: str = "eu-west-1", account: str = HOME) -> Any:
    session = boto3.Session(KEYS["access_key"], KEYS["secret_key"], region_name=region)
    if account != HOME:
        role = {"RoleArn": f"arn:aws:iam::{account}:role/copier", "RoleSessionName": "test"}
        keys = session.client("sts", endpoint_url=cloud.url).assume_role(**role)["Credentials"]
        session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region_name=region)
    config = botocore.config.Config(retries={"total_max_attempts": 1})
    return session.client(service, endpoint_url=cloud.url, config=config)


def refused(function: Any, **parameters: Any) -> str:
    with pytest.raises(botocore.exceptions.ClientError) as raised:
        function(**parameters)
    return raised.value.response["Error"]["Code"]


def unmodelled(element: ElementTree.Element, shape: Any, place: str) -> list[str]:
    """Which elements of an answer botocore's model does not have, and which values it could not read."""
    if shape.type_name == "list":
        name = shape.member.serialization.get("name", "item")
        wrong = [
            f"{place}: <{child.tag}> in a list of <{name}>" for child in element if child.tag.split("}")[1] != name
        ]
        return wrong + [problem for child in element for problem in unmodelled(child, shape.member, place + "[]")]
    if shape.type_name == "structure":
        members = {member.serialization.get("name", name): member for name, member in shape.members.items()}
        problems = []
        for child in element:
            tag = child.tag.split("}")[1]
            if tag not in members:
                problems += (
                    [f"{place}: <{tag}> is not in {shape.name}"] if tag not in ("requestId", "RequestId") else []
                )
            else:
                problems += unmodelled(child, members[tag], f"{place}.{tag}")
        return problems
    text = element.text or ""
    enum = getattr(shape, "enum", [])
    readable = {
        "boolean": text in ("true", "false"),
        "integer": text.lstrip("-").isdigit(),
        "long": text.lstrip("-").isdigit(),
        "string": not enum or text in enum,
    }
    return [] if readable.get(shape.type_name, True) else [f"{place}: {text!r} is no {shape.type_name} of {shape.name}"]


def unmodelled_json(answer: Any, shape: Any, place: str) -> list[str]:
    """The same of an answer in JSON."""
    if shape.type_name == "list":
        return [problem for item in answer for problem in unmodelled_json(item, shape.member, place + "[]")]
    if shape.type_name == "structure":
        wrong = [f"{place}: {name} is not in {shape.name}" for name in answer if name not in shape.members]
        known = [(name, member) for name, member in shape.members.items() if name in answer]
        return wrong + [
            problem for name, member in known for problem in unmodelled_json(answer[name], member, f"{place}.{name}")
        ]
    enum = getattr(shape, "enum", None) or [answer]
    readable = isinstance(answer, JSON_TYPES.get(shape.type_name, object)) and answer in enum
    return [] if readable else [f"{place}: {answer!r} is no {shape.name}"]


def exercise(cloud: Cloud) -> None:
    """Call everything that the double answers by itself."""
    home, far = client(cloud), client(cloud, region="us-east-1")
    key = cloud.key("us-east-1")
    source = cloud.image(sizes=(8, 20))
    tags = [{"ResourceType": kind, "Tags": [{"Key": "a", "Value": "b"}]} for kind in ("image", "snapshot")]
    cloud.failures[HOME, "us-east-1"] = ["Copy image failed with an internal error"]
    copy = {"SourceImageId": source, "SourceRegion": "eu-west-1", "Name": "copy", "TagSpecifications": tags}
    for _number in range(2):
        far.copy_image(**copy, Encrypted=True, KmsKeyId=key)
    for _number in range(3):
        images = far.describe_images(Owners=["self"], IncludeDisabled=True)["Images"]
    assert sorted(image["State"] for image in images) == ["available", "failed"]
    [good] = [image["ImageId"] for image in images if image["State"] == "available"]
    [snapshot, _other] = far.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    far.describe_snapshot_attribute(SnapshotId=snapshot["SnapshotId"], Attribute="createVolumePermission")
    add = {"Attribute": "createVolumePermission", "OperationType": "add", "UserIds": [OTHER]}
    far.modify_snapshot_attribute(SnapshotId=snapshot["SnapshotId"], **add)
    far.modify_image_attribute(ImageId=good, LaunchPermission={"Add": [{"UserId": OTHER}]})
    far.describe_image_attribute(ImageId=good, Attribute="launchPermission")
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    far.enable_image_deprecation(ImageId=good, DeprecateAt=soon)
    far.get_ebs_default_kms_key_id()
    far.describe_regions(AllRegions=True)
    device = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot["SnapshotId"]}}
    far.register_image(
        Name="registered",
        Architecture="arm64",
        BootMode="uefi",
        EnaSupport=True,
        ImdsSupport="v2.0",
        RootDeviceName="/dev/xvda",
        VirtualizationType="hvm",
        BlockDeviceMappings=[device],
        TagSpecifications=tags[:1],
    )
    far.describe_images()
    home.disable_image(ImageId=source)
    far.deregister_image(ImageId=good, DeleteAssociatedSnapshots=True)
    refused(far.describe_images, ImageIds=["ami-00000000"])
    refused(home.copy_image, SourceImageId="ami-00000000", SourceRegion="us-east-1", Name="nothing")


def test_every_answer_is_modelled(cloud: Cloud) -> None:
    exercise(cloud)
    problems, operations = [], set()
    for call in cloud.calls:
        if call.service == "ec2" and call.status == 200:
            root = ElementTree.fromstring(call.body)
            operations.add(call.action)
            shape = EC2.operation_model(call.action).output_shape
            if shape is not None:
                problems += unmodelled(root, shape, call.action)
    assert not problems
    assert operations >= {
        "CopyImage",
        "DeregisterImage",
        "DescribeImages",
        "DisableImage",
        "EnableImageDeprecation",
        "GetEbsDefaultKmsKeyId",
        "ModifySnapshotAttribute",
        "RegisterImage",
    }


def test_the_check_finds_what_is_not_modelled() -> None:
    shape = EC2.operation_model("DescribeImages").output_shape
    answer = '<R xmlns="x"><imagesSet><item><imageState>ready</imageState><keyId>k</keyId></item></imagesSet></R>'
    found = unmodelled(ElementTree.fromstring(answer), shape, "")
    assert found == [
        ".imagesSet[].imageState: 'ready' is no string of ImageState",
        ".imagesSet[]: <keyId> is not in Image",
    ]


def test_every_answer_about_an_instance_is_modelled(cloud: Cloud) -> None:
    cloud.image()
    moments = [
        Moment(state="pending", instance="initializing", system="initializing", agent=None),
        Moment(instance="impaired", system="insufficient-data", console="now", kept="first", agent="ConnectionLost"),
        Moment(state="stopped", instance="not-applicable", system="not-applicable", agent="Inactive"),
    ]
    ec2, ssm, states = client(cloud), client(cloud, "ssm"), []
    with launched() as machines:
        instance = machines.start(*moments)
        chosen = {"InstanceIds": [instance.id]}
        for _moment in moments:
            [[described]] = [each["Instances"] for each in ec2.describe_instances(**chosen)["Reservations"]]
            [status] = ec2.describe_instance_status(**chosen, IncludeAllInstances=True)["InstanceStatuses"]
            consoles = [
                ec2.get_console_output(InstanceId=instance.id, Latest=latest).get("Output") for latest in (False, True)
            ]
            filters = [{"Key": "InstanceIds", "Values": [instance.id]}]
            agents = ssm.describe_instance_information(Filters=filters)["InstanceInformationList"]
            pings = [agent["PingStatus"] for agent in agents]
            states.append((described["State"]["Name"], status["InstanceStatus"]["Status"], consoles, pings))
        machines.nitro = False
        assert refused(ec2.get_console_output, InstanceId=instance.id, Latest=True) == "UnsupportedOperation"
    assert states == [
        ("pending", "initializing", [None, None], []),
        ("running", "impaired", ["first", "now"], ["ConnectionLost"]),
        ("stopped", "not-applicable", [None, None], ["Inactive"]),
    ]
    problems, operations = [], set()
    for call in cloud.calls:
        if call.status == 200:
            operations.add(call.action)
            if call.action in ("DescribeInstanceStatus", "GetConsoleOutput"):
                shape = EC2.operation_model(call.action).output_shape
                problems += unmodelled(ElementTree.fromstring(call.body), shape, call.action)
            elif call.service == "ssm":
                problems += unmodelled_json(json.loads(call.body), SSM.operation_model(call.action).output_shape, "")
    assert not problems
    assert operations >= {"DescribeInstanceStatus", "GetConsoleOutput", "DescribeInstanceInformation"}


def test_the_check_of_json_finds_what_is_not_modelled() -> None:
    shape = SSM.operation_model("DescribeInstanceInformation").output_shape
    answer = {"InstanceInformationList": [{"PingStatus": "Here", "Agent": "3"}]}
    assert unmodelled_json(answer, shape, "") == [
        ".InstanceInformationList[]: Agent is not in InstanceInformation",
        ".InstanceInformationList[].PingStatus: 'Here' is no PingStatus",
    ]


def test_every_answer_of_the_ebs_direct_apis_is_modelled(cloud: Cloud) -> None:
    ebs, block = client(cloud, "ebs"), b"x" * BLOCK
    digest = base64.b64encode(hashlib.sha256(block).digest()).decode()
    total = base64.b64encode(hashlib.sha256(hashlib.sha256(block).digest()).digest()).decode()
    put = {"BlockIndex": 7, "BlockData": block, "DataLength": BLOCK, "ChecksumAlgorithm": "SHA256"}
    end = {"ChangedBlocksCount": 1, "ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
    with ebs_direct(cloud):
        tags = [{"Key": "a", "Value": "b"}]
        start = {"VolumeSize": 1, "Encrypted": True, "ClientToken": "t", "Tags": tags, "Description": "d"}
        chosen = {"SnapshotId": ebs.start_snapshot(**start)["SnapshotId"]}
        assert refused(ebs.put_snapshot_block, **chosen, **put, Checksum=total) == "ValidationException"
        stored = ebs.put_snapshot_block(**chosen, **put, Checksum=digest)
        assert (stored["Checksum"], stored["ChecksumAlgorithm"]) == (digest, "SHA256")  # of the headers
        assert refused(ebs.complete_snapshot, **chosen, **end, Checksum=digest) == "ValidationException"
        assert ebs.complete_snapshot(**chosen, **end, Checksum=total)["Status"] == "completed"
    answers = [json.loads(call.body or b"{}") for call in cloud.calls if call.status < 300]
    names = ("StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot")
    shapes = [EBS.operation_model(name).output_shape for name in names]
    for shape, answer in zip(shapes, answers, strict=True):
        assert unmodelled_json(answer, shape, "") == []


@pytest.mark.parametrize("service", ["autoscaling", "ebs", "ec2", "kms", "ssm", "sts"])
def test_every_refusal_is_read_as_one(service: str) -> None:
    model = botocore.session.Session().get_service_model(service)
    parser = botocore.parsers.create_parser(model.resolved_protocol)
    answer = {"status_code": 403, "headers": {}, "body": error_body(service, "AccessDenied")}
    error = parser.parse(answer, None)["Error"]
    assert (error["Code"], error["Message"]) == ("AccessDenied", "Refused by the test.")


def test_copies_take_their_time_and_keep_what_was_asked(cloud: Cloud) -> None:
    cloud.polls, cloud.invisible = 2, 1
    source, key = cloud.image(sizes=(8, 20)), cloud.key("us-east-1", alias="alias/images")
    far = client(cloud, region="us-east-1")
    copy = {"SourceImageId": source, "SourceRegion": "eu-west-1", "Name": "copy"}
    encrypted = {**copy, "Encrypted": True, "KmsKeyId": "alias/images"}
    [first, again] = [far.copy_image(**encrypted, ClientToken="t")["ImageId"] for _number in range(2)]
    assert first == again
    assert refused(far.copy_image, **copy, ClientToken="t") == "IdempotentParameterMismatch"
    assert refused(far.copy_image, **copy, KmsKeyId=key) == "InvalidParameterDependency"
    assert refused(far.describe_images, ImageIds=[first]) == "InvalidAMIID.NotFound"
    states = [far.describe_images(ImageIds=[first])["Images"][0] for _number in range(3)]
    assert [image["State"] for image in states] == ["pending", "pending", "available"]
    assert [len(image["BlockDeviceMappings"]) for image in states] == [0, 0, 2]
    assert states[2]["SourceImageId"] == source
    ids = [device["Ebs"]["SnapshotId"] for device in states[2]["BlockDeviceMappings"]]
    snapshots = far.describe_snapshots(SnapshotIds=ids)["Snapshots"]
    assert {snapshot["KmsKeyId"] for snapshot in snapshots} == {key}
    assert sorted(snapshot["VolumeSize"] for snapshot in snapshots) == [8, 20]


def test_another_account_copies_what_is_shared_with_its_snapshots(cloud: Cloud) -> None:
    source, home, other = cloud.image(), client(cloud), client(cloud, account=OTHER)
    copy = {"SourceImageId": source, "SourceRegion": "eu-west-1", "Name": "copy"}
    assert refused(other.copy_image, **copy) == "InvalidAMIID.NotFound"
    home.modify_image_attribute(ImageId=source, LaunchPermission={"Add": [{"UserId": OTHER}]})
    assert refused(other.copy_image, **copy) == "InvalidRequest"
    [snapshot] = cloud.snapshots(HOME, "eu-west-1")
    add = {"Attribute": "createVolumePermission", "OperationType": "add", "UserIds": [OTHER]}
    home.modify_snapshot_attribute(SnapshotId=snapshot.id, **add)
    assert other.copy_image(**copy)["ImageId"].startswith("ami-")
    managed = client(cloud).get_ebs_default_kms_key_id()["KmsKeyId"]
    cloud.image(name="encrypted", key=managed)
    [snapshot] = [snapshot for snapshot in cloud.snapshots(HOME, "eu-west-1") if snapshot.encrypted]
    assert refused(home.modify_snapshot_attribute, SnapshotId=snapshot.id, **add) == "OperationNotPermitted"


def test_limits_throttling_and_keys(cloud: Cloud) -> None:
    cloud.limit = 1
    source, far = cloud.image(), client(cloud, region="us-east-1")
    copy = {"SourceImageId": source, "SourceRegion": "eu-west-1", "Name": "copy", "Encrypted": True}
    image = far.copy_image(**copy, KmsKeyId=cloud.key("eu-west-1"))["ImageId"]
    assert refused(far.copy_image, **copy) == "ResourceLimitExceeded"
    for _number in range(2):
        [described] = far.describe_images(ImageIds=[image])["Images"]
    assert described["State"] == "failed"
    assert "not accessible" in described["StateReason"]["Message"]
    assert cloud.orphans(HOME, "us-east-1") == []
    cloud.throttle["CopyImage"] = 1
    assert refused(far.copy_image, **copy) == "RequestLimitExceeded"
    far.copy_image(**copy)
    cloud.refuse[HOME, "DescribeKey"] = "AccessDeniedException"
    assert refused(client(cloud, "kms").describe_key, KeyId="alias/aws/ebs") == "AccessDeniedException"
