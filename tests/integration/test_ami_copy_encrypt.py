# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_copy_encrypt with the real boto3 against a simulated cloud."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._ami import KEY_TAG, SOURCE_TAG
from ansible_collections.goldsmith.images.tests.support.ami_copy import (
    FRIEND,
    OTHER,
    ROLE,
    client,
    keys,
    only,
    run,
    source,
)
from ansible_collections.goldsmith.images.tests.support.ami_module import Module
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, Cloud, ec2_backends, kms_backends

ORGANISATION = "arn:aws:organizations::123456789012:organization/o-a1b2c3d4e5"
UNIT = "arn:aws:organizations::123456789012:ou/o-a1b2c3d4e5/ou-ab12-abcdefgh"


@pytest.fixture
def module(cloud: Cloud, tmp_path: Path) -> Module:
    return Module(cloud, tmp_path)


# ------------------------------------------------------------------------------------------------------ copies
def test_regions_and_accounts_get_verified_copies_and_a_second_run_changes_nothing(
    cloud: Cloud, module: Module
) -> None:
    cloud.polls, cloud.invisible = 2, 1
    params = {
        "source": source(cloud, sizes=(8, 20)),
        "regions": ["eu-west-1", "us-east-1"],
        "accounts": [{}, {"role_arn": ROLE, "account": OTHER}],
        "kms_key_ids": keys(cloud, "eu-west-1", "us-east-1", accounts=(HOME, OTHER)),
        "tags": {"team": "platform"},
        "snapshot_tags": {"kind": "root"},
    }
    would = run(module, check=True, **params)
    assert would["changed"] and cloud.changes() == []
    assert [copy["action"] for copy in would["copies"]] == ["would_create"] * 4
    result = run(module, **params)
    assert not result["failed"], result["msg"]
    assert set(result) >= set(would) - {"invocation"}
    assert [(copy["account"], copy["region"]) for copy in result["copies"]] == [
        (HOME, "eu-west-1"),
        (HOME, "us-east-1"),
        (OTHER, "eu-west-1"),
        (OTHER, "us-east-1"),
    ]
    for copy in result["copies"]:
        assert (copy["action"], copy["state"], copy["encrypted"], copy["name"]) == (
            "created",
            "available",
            True,
            "golden",
        )
        assert f":{copy['region']}:{copy['account']}:" in copy["kms_key_arn"]
        assert [snapshot["kms_key_id"] for snapshot in copy["snapshots"]] == [copy["kms_key_arn"]] * 2
        backend = ec2_backends[copy["account"]][copy["region"]]
        image = backend.amis[copy["image_id"]]
        tags = {tag["key"]: tag["value"] for tag in image.get_tags()}
        marks = {SOURCE_TAG: f"eu-west-1/{params['source']['image_id']}", KEY_TAG: copy["kms_key_arn"]}
        assert tags == {"team": "platform", **marks}
        for snapshot in image.devices:
            tags = {tag["key"]: tag["value"] for tag in snapshot.get_tags()}
            assert tags == {"team": "platform", "kind": "root", **marks}
    assert "CreateTags" not in cloud.changes()  # tagged in the call that made them
    assert result["summary"]["created"] == 4
    cloud.calls.clear()
    again = run(module, **params)
    assert not again["changed"] and cloud.changes() == []
    assert [copy["action"] for copy in again["copies"]] == ["unchanged"] * 4
    assert [copy["image_id"] for copy in again["copies"]] == [copy["image_id"] for copy in result["copies"]]


def test_source_is_shared_only_for_the_time_of_the_copy_and_only_what_was_added_is_taken_back(
    cloud: Cloud, module: Module
) -> None:
    where = source(cloud)
    image = only(cloud.images(HOME, "eu-west-1"))
    snapshot = image.devices[0]
    image.launch_permissions.append({"UserId": FRIEND})
    snapshot.create_volume_permission_userids.add(FRIEND)
    during: list[Any] = []
    cloud.after = lambda call: (
        during.append((list(image.launch_permissions), set(snapshot.create_volume_permission_userids)))
        if call.action == "CopyImage"
        else None
    )
    accounts = [{"role_arn": ROLE}, {"role_arn": ROLE.replace(OTHER, FRIEND)}]
    result = run(module, source=where, regions=["us-east-1"], accounts=accounts)
    assert not result["failed"], result["msg"]
    assert len(during) == 2
    assert all({"UserId": OTHER} in permissions and OTHER in users for permissions, users in during)
    assert image.launch_permissions == [{"UserId": FRIEND}]
    assert snapshot.create_volume_permission_userids == {FRIEND}


def test_without_temporary_share_another_account_cannot_copy(cloud: Cloud, module: Module) -> None:
    result = run(
        module, source=source(cloud), regions=["us-east-1"], accounts=[{"role_arn": ROLE}], temporary_share=False
    )
    assert result["failed"]
    assert only(result["copies"])["error"]["code"] == "InvalidAMIID.NotFound"
    assert "ModifyImageAttribute" not in cloud.changes()


def test_pending_copy_is_adopted(cloud: Cloud, module: Module) -> None:
    cloud.polls = 6
    params = {"source": source(cloud), "regions": ["us-east-1"], "kms_key_ids": keys(cloud, "us-east-1")}
    started = run(module, wait=False, **params)
    assert not started["failed"]
    [copy] = started["copies"]
    assert (copy["action"], copy["state"], started["summary"]["pending"]) == ("created", "pending", 1)
    assert only(run(module, check=True, **params)["copies"])["action"] == "would_adopt"
    result = run(module, **params)
    assert (only(result["copies"])["action"], only(result["copies"])["image_id"]) == ("adopted", copy["image_id"])
    assert cloud.count("CopyImage") == 1


def test_copy_by_somebody_else_counts_if_its_keys_are_right(cloud: Cloud, module: Module) -> None:
    where, key, other = source(cloud), cloud.key("us-east-1"), cloud.key("us-east-1")
    far = client(cloud, "ec2", "us-east-1")
    request = {"SourceImageId": where["image_id"], "SourceRegion": "eu-west-1", "Name": "by hand", "Encrypted": True}
    right = far.copy_image(**request, KmsKeyId=key)["ImageId"]
    far.copy_image(**request, KmsKeyId=other)
    for _number in range(2):
        far.describe_images(Owners=["self"])
    params = {"source": where, "targets": [{"region": "us-east-1", "kms_key_id": key, "tags": {"a": "b"}}]}
    would = run(module, check=True, **params)
    assert would["changed"] and only(would["copies"])["tags_changed"]
    result = run(module, **params)
    copy = only(result["copies"])
    assert (copy["action"], copy["image_id"], copy["tags_changed"]) == ("unchanged", right, True)
    assert result["changed"]
    assert cloud.count("CopyImage") == 2
    image = ec2_backends[HOME]["us-east-1"].amis[right]
    assert {tag["key"] for tag in image.get_tags()} == {"a", SOURCE_TAG, KEY_TAG}
    assert not run(module, **params)["changed"]


def test_pending_copy_that_turns_out_to_have_the_wrong_key_is_not_taken(cloud: Cloud, module: Module) -> None:
    where, key, other = source(cloud), cloud.key("us-east-1"), cloud.key("us-east-1")
    cloud.polls = 4
    request = {"SourceImageId": where["image_id"], "SourceRegion": "eu-west-1", "Name": "by hand", "Encrypted": True}
    wrong = client(cloud, "ec2", "us-east-1").copy_image(**request, KmsKeyId=other)["ImageId"]
    result = run(module, source=where, targets=[{"region": "us-east-1", "kms_key_id": key}])
    copy = only(result["copies"])
    assert (copy["action"], copy["kms_key_arn"]) == ("created", key)
    assert copy["image_id"] != wrong


def test_several_copies_are_a_warning_and_the_newest_is_taken(cloud: Cloud, module: Module) -> None:
    where, key = source(cloud), cloud.key("us-east-1")
    far = client(cloud, "ec2", "us-east-1")
    request = {"SourceImageId": where["image_id"], "SourceRegion": "eu-west-1", "Name": "by hand", "Encrypted": True}
    ids = [far.copy_image(**request, KmsKeyId=key)["ImageId"] for _number in range(2)]
    backend = ec2_backends[HOME]["us-east-1"]
    backend.amis[ids[0]].creation_date += datetime.timedelta(hours=1)
    for _number in range(2):
        far.describe_images(Owners=["self"])
    result = run(module, source=where, targets=[{"region": "us-east-1", "kms_key_id": key}])
    assert only(result["copies"])["image_id"] == ids[0]
    assert ids[1] in only(result["warnings"])


def test_failed_copy_is_removed_and_made_again_with_another_token(cloud: Cloud, module: Module) -> None:
    cloud.failures[HOME, "us-east-1"] = ["Copy image failed with an internal error"]
    result = run(module, source=source(cloud), regions=["us-east-1"])
    assert not result["failed"], result["msg"]
    assert only(result["copies"])["action"] == "created"
    assert only(cloud.images(HOME, "us-east-1")).state == "available"
    tokens = [call.params["ClientToken"] for call in cloud.calls if call.action == "CopyImage"]
    assert len(tokens) == 2 and tokens[0] != tokens[1]


def test_copy_that_keeps_failing_says_why_and_the_next_run_begins_anew(cloud: Cloud, module: Module) -> None:
    cloud.failures[HOME, "us-east-1"] = ["no", "Given key ID is not accessible"]
    params = {"source": source(cloud), "regions": ["us-east-1", "us-east-2"], "source_after": "deregister"}
    result = run(module, **params)
    assert result["failed"]
    bad, good = result["copies"]
    assert bad["error"]["state_reason"] == "Given key ID is not accessible"
    assert "Given key ID is not accessible" in result["msg"]
    assert (bad["action"], good["action"]) == ("failed", "created")
    assert result["source_action"]["result"] == "refused"
    assert only(cloud.images(HOME, "eu-west-1")).state == "available"
    assert [image.state for image in cloud.images(HOME, "us-east-1")] == ["failed"]
    again = run(module, **params)
    assert not again["failed"], again["msg"]
    assert [copy["action"] for copy in again["copies"]] == ["created", "unchanged"]
    assert [image.state for image in cloud.images(HOME, "us-east-1")] == ["available"]
    assert cloud.images(HOME, "eu-west-1") == []


def test_failed_image_of_somebody_else_is_left_alone(cloud: Cloud, module: Module) -> None:
    where = source(cloud)
    far = client(cloud, "ec2", "us-east-1")
    cloud.failures[HOME, "us-east-1"] = ["no"]
    far.copy_image(SourceImageId=where["image_id"], SourceRegion="eu-west-1", Name="by hand", Encrypted=True)
    for _number in range(2):
        far.describe_images(Owners=["self"])
    run(module, source=where, regions=["us-east-1"])
    assert sorted(image.state for image in cloud.images(HOME, "us-east-1")) == ["available", "failed"]


def test_rollback_removes_what_this_run_made(cloud: Cloud, module: Module) -> None:
    where = source(cloud)
    before = only(run(module, source=where, regions=["eu-central-1"])["copies"])["image_id"]
    cloud.failures[HOME, "us-east-1"] = ["no"]
    regions = ["eu-central-1", "us-east-1", "us-east-2"]
    result = run(module, source=where, regions=regions, retry_failed=0, on_failure="rollback")
    assert result["failed"] and result["changed"]
    assert [copy["action"] for copy in result["copies"]] == ["unchanged", "failed", "rolled_back"]
    assert only(cloud.images(HOME, "eu-central-1")).id == before
    for region in ("us-east-1", "us-east-2"):
        assert cloud.images(HOME, region) == cloud.snapshots(HOME, region) == []


def test_time_out_leaves_the_copies_to_aws(cloud: Cloud, module: Module) -> None:
    cloud.polls = 1000
    params = {"source": source(cloud), "regions": ["us-east-1"], "accounts": [{"role_arn": ROLE}]}
    result = run(module, wait_timeout=1, source_after="deregister", **params)
    assert result["failed"] and "still being copied" in result["msg"]
    assert (only(result["copies"])["state"], result["source_action"]["result"]) == ("pending", "refused")
    # The other account still reads the source.
    assert only(cloud.images(HOME, "eu-west-1")).launch_permissions == [{"UserId": OTHER}]
    only(cloud.images(OTHER, "us-east-1")).polls = 3
    assert only(run(module, **params)["copies"])["action"] == "adopted"
    assert only(cloud.images(HOME, "eu-west-1")).launch_permissions == []


def test_copy_that_was_deregistered_is_made_again(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"]}
    first = only(run(module, **params)["copies"])["image_id"]
    client(cloud, "ec2", "us-east-1").deregister_image(ImageId=first, DeleteAssociatedSnapshots=True)
    for journal in (module.folder / "journal").iterdir():  # much later
        lines = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
        older = [json.dumps({**line, "time": line["time"] - 86400}) for line in lines]
        journal.write_text("".join(f"{line}\n" for line in older), encoding="utf-8")
    copy = only(run(module, **params)["copies"])
    assert copy["action"] == "created" and copy["image_id"] != first


def test_limits_and_throttling_are_waited_out(cloud: Cloud, module: Module) -> None:
    cloud.limit, cloud.polls = 2, 10**6
    request = {"SourceImageId": cloud.image(sizes=(8, 8)), "SourceRegion": "eu-west-1", "Name": "of somebody else"}
    client(cloud, "ec2", "us-east-1").copy_image(**request)
    other = only(cloud.images(HOME, "us-east-1"))

    def make_room(call: Any) -> None:
        if b"ResourceLimitExceeded" in call.body:
            other.state = "available"

    cloud.after, cloud.polls = make_room, 1
    cloud.throttle.update(CopyImage=1, DescribeImages=1)
    result = run(module, source=source(cloud, sizes=(8, 8)), regions=["us-east-1"])
    assert not result["failed"], result["msg"]
    assert other.state == "available"
    # Somebody else's, the one that was throttled, the one for which there was no room, and the one that was taken.
    assert cloud.count("CopyImage") == 4


def test_one_describe_images_for_each_account_region_and_poll(cloud: Cloud, module: Module) -> None:
    cloud.polls = 4  # pending at four looks, available at the fifth
    run(module, source=source(cloud), regions=["us-east-1", "us-east-2"])
    looks = Counter(call.region for call in cloud.calls if call.action == "DescribeImages")
    search = 1
    assert looks["us-east-1"] == looks["us-east-2"] == search + 5


def test_encrypted_false_copies_plain(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"], "encrypted": False}
    result = run(module, **params)
    copy = only(result["copies"])
    assert not result["failed"], result["msg"]
    assert (copy["encrypted"], copy["kms_key_arn"]) == (False, None)
    assert not run(module, **params)["changed"]


def test_role_that_cannot_be_assumed_fails_only_its_target(cloud: Cloud, module: Module) -> None:
    cloud.refuse[HOME, "AssumeRole"] = "AccessDenied"
    result = run(
        module, source=source(cloud), regions=["us-east-1"], accounts=[{}, {"role_arn": ROLE, "account": OTHER}]
    )
    assert result["failed"]
    good, bad = result["copies"]
    assert (good["action"], bad["action"], bad["error"]["code"]) == ("created", "failed", "AccessDenied")
    assert bad["account"] == OTHER
    assert run(
        module,
        check=True,
        source={"image_id": result["source"]["image_id"], "region": "eu-west-1"},
        regions=["us-east-1"],
        accounts=[{}, {"role_arn": ROLE, "account": OTHER}],
    )["failed"]


# ----------------------------------------------------------------------------------------------------- sharing, date
def test_sharing_with_accounts_organisations_and_units(cloud: Cloud, module: Module) -> None:
    params = {
        "source": source(cloud, sizes=(8, 8)),
        "targets": [
            {"region": "us-east-1", "kms_key_id": cloud.key("us-east-1"), "share_with": {"orgs": [ORGANISATION]}}
        ],
        "share_with": {"accounts": [FRIEND], "ous": [UNIT]},
        "deprecate_at": "2030-01-31T12:30:00Z",
    }
    result = run(module, **params)
    assert not result["failed"], result["msg"]
    assert sorted(only(result["copies"])["shared_with"]) == sorted([FRIEND, ORGANISATION, UNIT])
    image = only(cloud.images(HOME, "us-east-1"))
    assert {tuple(permission.items())[0] for permission in image.launch_permissions} == {
        ("UserId", FRIEND),
        ("OrganizationArn", ORGANISATION),
        ("OrganizationalUnitArn", UNIT),
    }
    assert [snapshot.create_volume_permission_userids for snapshot in image.devices] == [{FRIEND}] * 2
    assert image.deprecation_time == "2030-01-31T12:30:00.000Z"
    assert not run(module, **params)["changed"]
    params["share_with"]["accounts"].append(OTHER)
    assert run(module, check=True, **params)["changed"]
    assert {"UserId": OTHER} not in image.launch_permissions
    assert run(module, **params)["changed"]
    assert {"UserId": OTHER} in image.launch_permissions


# ----------------------------------------------------------------------------------------------------- the source
@pytest.mark.parametrize("after", ["deprecate", "disable", "deregister"])
def test_source_after(cloud: Cloud, module: Module, after: str) -> None:
    where = source(cloud, sizes=(8, 8))
    image = only(cloud.images(HOME, "eu-west-1"))
    params = {"source": where, "regions": ["us-east-1"], "source_after": after}
    params["delete_source_snapshots"] = after == "deregister"
    assert run(module, check=True, **params)["source_action"]["result"] == f"would_{after}"
    assert cloud.changes() == []
    result = run(module, **params)
    assert not result["failed"], result["msg"]
    done = {"deprecate": "deprecated", "disable": "disabled", "deregister": "deregistered"}[after]
    assert result["source_action"]["result"] == done
    if after == "deregister":
        assert cloud.images(HOME, "eu-west-1") == cloud.snapshots(HOME, "eu-west-1") == []
        assert [entry["result"] for entry in result["source_action"]["snapshots"]] == ["success"] * 2
    else:
        assert (image.state == "disabled") == (after == "disable")
        assert bool(image.deprecation_time) == (after == "deprecate")
    cloud.calls.clear()
    again = run(module, **params)
    assert not again["changed"] and not again["failed"] and cloud.changes() == []
    assert again["source_action"]["result"] == "unchanged"


def test_snapshots_that_cannot_be_deleted_are_reported_and_deleted_by_the_next_run(
    cloud: Cloud, module: Module
) -> None:
    params = {"source": source(cloud, sizes=(8, 8)), "regions": ["us-east-1"]}
    params.update(source_after="deregister", delete_source_snapshots=True)
    bad, _good = [snapshot.id for snapshot in cloud.snapshots(HOME, "eu-west-1")]
    cloud.deletions[bad] = "internal-error"
    result = run(module, **params)
    assert result["failed"] and result["changed"] and bad in result["msg"]
    assert {"id": bad, "result": "internal-error"} in result["source_action"]["snapshots"]
    again = run(module, **params)
    assert not again["failed"], again["msg"]
    assert again["source_action"]["snapshots"] == [{"id": bad, "result": "success"}]
    assert cloud.snapshots(HOME, "eu-west-1") == []


def test_source_by_name_is_known_when_it_is_gone(cloud: Cloud, module: Module) -> None:
    cloud.image(name="golden 1")
    params = {"source": {"name": "golden *", "region": "eu-west-1"}, "regions": ["us-east-1"]}
    result = run(module, source_after="deregister", **params)
    assert not result["failed"], result["msg"]
    again = run(module, source_after="deregister", **params)
    assert not again["failed"] and not again["changed"]
    assert again["source"]["image_id"] == result["source"]["image_id"]


def use_instance(cloud: Cloud, image: str) -> None:
    client(cloud, "ec2").run_instances(ImageId=image, MinCount=1, MaxCount=1)


def use_launch_template(cloud: Cloud, image: str) -> None:
    data = {"ImageId": image}
    client(cloud, "ec2").create_launch_template(LaunchTemplateName="template", LaunchTemplateData=data)


def use_old_version_in_a_group(cloud: Cloud, image: str) -> None:
    ec2 = client(cloud, "ec2")
    use_launch_template(cloud, image)
    other = {"ImageId": cloud.image(name="other")}
    ec2.create_launch_template_version(LaunchTemplateName="template", LaunchTemplateData=other)
    ec2.modify_launch_template(LaunchTemplateName="template", DefaultVersion="2")
    client(cloud, "autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="g",
        MinSize=0,
        MaxSize=0,
        AvailabilityZones=["eu-west-1a"],
        LaunchTemplate={"LaunchTemplateName": "template", "Version": "1"},
    )


def use_launch_configuration(cloud: Cloud, image: str) -> None:
    client(cloud, "autoscaling").create_launch_configuration(
        LaunchConfigurationName="c", ImageId=image, InstanceType="t3.micro"
    )


def use_parameter(cloud: Cloud, image: str) -> None:
    client(cloud, "ssm").put_parameter(Name="/golden/ami", Value=image, Type="String")


def use_permission(cloud: Cloud, image: str) -> None:
    permission = {"Add": [{"UserId": FRIEND}]}
    client(cloud, "ec2").modify_image_attribute(ImageId=image, LaunchPermission=permission)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (use_instance, "instance"),
        (use_launch_template, "launch_template"),
        (use_old_version_in_a_group, "auto_scaling"),
        (use_launch_configuration, "auto_scaling"),
        (use_parameter, "ssm_parameter"),
        (use_permission, "launch_permission"),
    ],
)
def test_source_that_is_used_is_not_touched(cloud: Cloud, module: Module, use: Any, kind: str) -> None:
    where = source(cloud)
    use(cloud, where["image_id"])
    params = {"source": where, "regions": ["us-east-1"], "source_after": "disable"}
    assert run(module, check=True, **params)["failed"]
    result = run(module, **params)
    assert result["failed"] and "may be in use" in result["msg"]
    assert kind in {user["kind"] for user in result["source_action"]["in_use"]}
    assert only(result["copies"])["state"] == "available"
    assert ec2_backends[HOME]["eu-west-1"].amis[where["image_id"]].state == "available"
    warned = run(module, in_use_check="warn", **params)
    assert not warned["failed"] and "may be in use" in only(warned["warnings"])
    assert ec2_backends[HOME]["eu-west-1"].amis[where["image_id"]].state == "disabled"


def test_what_cannot_be_looked_at_counts_as_a_user(cloud: Cloud, module: Module) -> None:
    cloud.refuse[OTHER, "DescribeInstances"] = "UnauthorizedOperation"
    accounts = [{"role_arn": ROLE}]
    result = run(module, source=source(cloud), regions=["us-east-1"], accounts=accounts, source_after="deregister")
    assert result["failed"] and "UnauthorizedOperation" in result["msg"] and OTHER in result["msg"]
    assert only(cloud.images(HOME, "eu-west-1")).state == "available"


# ----------------------------------------------------------------------------------------------------- bad input
def disabled_key(cloud: Cloud) -> str:
    arn = cloud.key("us-east-1")
    kms_backends[HOME]["us-east-1"].disable_key(arn.partition("key/")[2])
    return arn


BAD = {
    "no image": ({"source": {"image_id": "ami-00000000", "region": "eu-west-1"}}, "no image ami-00000000"),
    "no image of that name": ({"source": {"name": "x*", "region": "eu-west-1"}}, "no image of self named 'x*'"),
    "unknown region": ({"regions": ["us-east-9"]}, "us-east-9 is no region; did you mean us-east-"),
    "no id": ({"source": {"image_id": "ami-1", "region": "eu-west-1"}}, "'ami-1' is no image id"),
    "region of the source not enabled": (
        {"source": {"image_id": "ami-00000000", "region": "eu-south-2"}},
        "source.region: eu-south-2 is not enabled",
    ),
    "region not enabled": ({"regions": ["eu-south-2"]}, "eu-south-2 is not enabled"),
    "target twice": (
        {"targets": [{"region": "us-east-1"}, {"region": "us-east-1", "account": HOME}]},
        "is there twice",
    ),
    "partition": ({"regions": ["cn-north-1"]}, "partition aws-cn"),
    "wrong account": ({"targets": [{"region": "us-east-1", "account": OTHER}]}, "is entered as"),
    "key of another region": (
        {"kms_key_ids": {"us-east-1": "arn:aws:kms:us-east-2:123456789012:key/x"}},
        "is in us-east-2; a copy needs a key of its own region",
    ),
    "key of another partition": (
        {"kms_key_ids": {"us-east-1": "arn:aws-cn:kms:us-east-1:123456789012:key/x"}},
        "is in the partition aws-cn, not in aws",
    ),
    "key and no encryption": ({"kms_key_ids": {"us-east-1": "alias/x"}, "encrypted": False}, "exclude each other"),
    "unknown key": ({"kms_key_ids": {"us-east-1": "alias/none"}}, "alias/none cannot be used: NotFoundException"),
    "managed key, shared": ({"share_with": {"accounts": [FRIEND]}}, "managed by AWS"),
    "shared with no account": ({"share_with": {"accounts": ["1234"]}}, "'1234' is no account number of 12 digits"),
    "nested tag": ({"tags": {"a": {"b": "c"}}}, "a tag is a text"),
    "minutes": ({"completion_minutes": 20}, "20 is not a multiple of 15 from 15 to 2880"),
    "minutes, too many": ({"completion_minutes": 2895}, "2895 is not a multiple of 15 from 15 to 2880"),
    "source goes without waiting": ({"source_after": "deregister", "wait": False}, "needs wait=true"),
    "illegal name": ({"name": "golden:{region}"}, "'golden:us-east-1' is not one of"),
    "long name": ({"name": "x" * 129}, "is not one of 3 to 128"),
    "date is over": ({"deprecate_at": "2020-01-01"}, "2020-01-01 is over"),
}


@pytest.mark.parametrize("check", [False, pytest.param(True, marks=pytest.mark.slow_matrix)])
@pytest.mark.parametrize(("params", "message"), BAD.values(), ids=BAD)
def test_bad_input(cloud: Cloud, module: Module, params: dict[str, Any], message: str, check: bool) -> None:
    defaults = {"source": source(cloud), **({} if "targets" in params else {"regions": ["us-east-1"]})}
    refuse(cloud, module, message, check=check, **{**defaults, **params})


def refuse(cloud: Cloud, module: Module, message: str, check: bool = False, **params: Any) -> None:
    result = module(check=check, **params)
    assert result is not None and result["failed"]
    assert message in result["msg"]
    assert result["changed"] is False
    assert cloud.changes() == []
    assert not list((module.folder / "journal").glob("*.jsonl")) or cloud.calls


def test_bad_keys(cloud: Cloud, module: Module) -> None:
    where = source(cloud)
    for key, message in (
        (disabled_key(cloud), "is Disabled, not Enabled"),
        (cloud.key("us-east-1", spec="RSA_2048"), "EBS needs a symmetric key"),
        (cloud.key("eu-west-1").partition("key/")[2], "cannot be used"),
    ):
        refuse(cloud, module, message, source=where, regions=["us-east-1"], kms_key_ids={"us-east-1": key})
    cloud.refuse[HOME, "DescribeKey"] = "AccessDeniedException"
    refuse(cloud, module, "AccessDeniedException", source=where, regions=["us-east-1"])


def test_bad_sources(cloud: Cloud, module: Module) -> None:
    managed = client(cloud, "ec2").get_ebs_default_kms_key_id()["KmsKeyId"]
    own = cloud.key("eu-west-1")
    there = {"regions": ["us-east-1"]}
    foreign = cloud.image(account=OTHER, name="foreign", launch_permissions=[{"UserId": HOME}])
    refuse(cloud, module, "is pending, not available", source=source(cloud, state="pending", polls=99), **there)
    refuse(cloud, module, "instance store", source=source(cloud, root_device_type="instance-store"), **there)
    refuse(
        cloud,
        module,
        f"belongs to {OTHER}",
        source={"image_id": foreign, "region": "eu-west-1"},
        source_after="disable",
        **there,
    )
    refuse(cloud, module, "is encrypted", source=source(cloud, key=own), encrypted=False, **there)
    across = {**there, "accounts": [{"role_arn": ROLE}]}
    refuse(cloud, module, "EBS's own key", source=source(cloud, key=managed), **across)
    protected = source(cloud, deregistration_protection="enabled")
    refuse(cloud, module, "is protected", source=protected, source_after="deregister", **there)
    for _number in range(2):
        cloud.image(name="twin")
    twins = {"name": "twin", "region": "eu-west-1"}
    refuse(cloud, module, "2 images", source=twins, **there)
    first, second = [image for image in cloud.images(HOME, "eu-west-1") if image.name == "twin"]
    first.creation_date = second.creation_date
    refuse(cloud, module, "two of them are equally recent", source={**twins, "most_recent": True}, **there)
    cloud.refuse[HOME, "GetCallerIdentity"] = "InvalidClientTokenId"
    nowhere = {"image_id": "ami-00000000", "region": "us-east-9"}
    refuse(cloud, module, "source.region: us-east-9 is no region or not enabled", source=nowhere, **there)


def test_second_run_of_the_same_image_is_refused(cloud: Cloud, module: Module) -> None:
    cloud.polls = 1000
    params = {"source": source(cloud), "regions": ["us-east-1"]}
    module.start(**params)
    first = module.process
    while not cloud.count("CopyImage"):
        assert first.is_alive()
        first.join(0.05)
    result = module(**params)
    assert result is not None and "another run copies this image" in result["msg"]
    for image in cloud.images(HOME, "us-east-1"):
        image.polls = 0
    first.join(60)
