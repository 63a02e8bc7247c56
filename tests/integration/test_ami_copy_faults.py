# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_copy_encrypt when AWS refuses, is late, or does something else than what it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.ami_copy import (
    OTHER,
    ROLE,
    client,
    keys,
    only,
    run,
    source,
)
from ansible_collections.goldsmith.images.tests.support.ami_module import Module
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, Call, Cloud, ec2_backends

ACROSS = {"regions": ["us-east-1"], "accounts": [{"role_arn": ROLE}]}


@pytest.fixture
def module(cloud: Cloud, tmp_path: Path) -> Module:
    return Module(cloud, tmp_path)


def tags_of(resource: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in resource.get_tags()}


# ------------------------------------------------------------------------------------------------------------ refused
def test_request_that_was_refused_is_not_repeated_with_what_was_wrong(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"]}
    cloud.refuse[HOME, "CopyImage"] = "InvalidParameterValue"
    assert run(module, tags={"a": "wrong"}, **params)["failed"]
    cloud.refuse.clear()
    result = run(module, tags={"a": "right"}, **params)
    assert not result["failed"], result["msg"]
    wrong, right = [call.params for call in cloud.calls if call.action == "CopyImage"]
    assert wrong["ClientToken"] != right["ClientToken"]
    assert right["TagSpecification.1.Tag.1.Value"] == ["right"]
    assert "CreateTags" not in cloud.changes()


def test_throttled_request_is_repeated_as_it_was(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"], "wait_timeout": 1}
    cloud.refuse[HOME, "CopyImage"] = "ResourceLimitExceeded"
    assert "still being copied" in run(module, **params)["msg"]
    cloud.refuse.clear()
    assert not run(module, **params)["failed"]
    assert len({call.params["ClientToken"][0] for call in cloud.calls if call.action == "CopyImage"}) == 1


def test_account_that_may_not_list_its_regions_fails_only_its_target(cloud: Cloud, module: Module) -> None:
    cloud.refuse[OTHER, "DescribeRegions"] = "UnauthorizedOperation"
    result = run(module, source=source(cloud), regions=["us-east-1"], accounts=[{}, {"role_arn": ROLE}])
    assert result["failed"]
    good, bad = result["copies"]
    assert (good["action"], bad["action"], bad["error"]["code"]) == ("created", "failed", "UnauthorizedOperation")
    assert bad["account"] == OTHER


def test_key_that_only_ec2_may_use_is_a_warning(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"], "kms_key_ids": keys(cloud, "us-east-1")}
    assert run(module, check=True, **params)["warnings"] == []
    cloud.refuse[HOME, "GenerateDataKeyWithoutPlaintext"] = "AccessDeniedException"
    assert "kms:CreateGrant" in only(run(module, check=True, **params)["warnings"])
    # EBS's own key never lets anybody else in.
    assert run(module, check=True, **{**params, "kms_key_ids": {}})["warnings"] == []


# --------------------------------------------------------------------------------------------------------------- late
def test_new_permissions_may_be_late(cloud: Cloud, module: Module) -> None:
    cloud.late_permissions = 3
    result = run(module, source=source(cloud), **ACROSS)
    assert not result["failed"], result["msg"]
    assert cloud.count("CopyImage") == 4
    assert only(cloud.images(HOME, "eu-west-1")).launch_permissions == []


def test_permissions_that_are_old_are_not_waited_for(cloud: Cloud, module: Module) -> None:
    where = source(cloud)
    image = only(cloud.images(HOME, "eu-west-1"))
    image.launch_permissions.append({"UserId": OTHER})
    image.devices[0].create_volume_permission_userids.add(OTHER)
    cloud.late_permissions = 1
    result = run(module, source=where, **ACROSS)
    assert only(result["copies"])["error"]["code"] == "InvalidRequest"
    assert cloud.count("CopyImage") == 1


def test_source_stays_shared_with_who_copies_it_though_nobody_could_look(cloud: Cloud, module: Module) -> None:
    cloud.polls = 10**6
    cloud.after = lambda call: (
        cloud.refuse.update({(OTHER, "DescribeImages"): "UnauthorizedOperation"})
        if call.action == "CopyImage"
        else None
    )
    params = {"source": source(cloud), **ACROSS}
    result = run(module, **params)
    assert only(result["copies"])["error"]["code"] == "UnauthorizedOperation"
    image = only(cloud.images(HOME, "eu-west-1"))
    assert image.launch_permissions == [{"UserId": OTHER}]
    cloud.refuse.clear()
    only(cloud.images(OTHER, "us-east-1")).polls = 1
    assert only(run(module, **params)["copies"])["action"] == "adopted"
    assert image.launch_permissions == []


# -------------------------------------------------------------------------------------------------------------- wrong
def test_encrypted_false_is_refused_where_ebs_encrypts_by_default(cloud: Cloud, module: Module) -> None:
    client(cloud, "ec2", "us-east-1").enable_ebs_encryption_by_default()
    cloud.calls.clear()
    result = module(source=source(cloud), regions=["us-east-1"], encrypted=False)
    assert result is not None and result["failed"]
    assert f"{HOME}/us-east-1: encrypted=false, but EBS encryption by default is on" in result["msg"]
    assert cloud.changes() == []


def test_copy_that_is_not_what_was_asked_for_is_removed(cloud: Cloud, module: Module) -> None:
    client(cloud, "ec2", "us-east-1").enable_ebs_encryption_by_default()
    cloud.refuse[HOME, "GetEbsEncryptionByDefault"] = "UnauthorizedOperation"
    params = {"source": source(cloud), "regions": ["us-east-1"], "encrypted": False}
    for _run in range(2):
        result = run(module, **params)
        copy = only(result["copies"])
        assert result["failed"] and result["changed"]
        assert (copy["error"]["code"], copy["state"]) == ("NotVerified", "deregistered")
        assert "is encrypted (EBS encryption by default is on?); it has been removed" in copy["error"]["message"]
        assert "UnauthorizedOperation" in only(result["warnings"])
        assert cloud.images(HOME, "us-east-1") == cloud.snapshots(HOME, "us-east-1") == []


def test_wrong_copy_that_could_not_be_removed_is_removed_by_the_next_run(cloud: Cloud, module: Module) -> None:
    far = client(cloud, "ec2", "us-east-1")
    far.enable_ebs_encryption_by_default()
    cloud.refuse.update(
        {(HOME, "GetEbsEncryptionByDefault"): "UnauthorizedOperation", (HOME, "DeregisterImage"): "Unauthorized"}
    )
    params = {"source": source(cloud), "regions": ["us-east-1"], "encrypted": False}
    assert "it could not be removed: Unauthorized" in run(module, **params)["msg"]
    wrong = only(cloud.images(HOME, "us-east-1")).id
    cloud.refuse.clear()
    far.disable_ebs_encryption_by_default()
    result = run(module, **params)
    assert not result["failed"], result["msg"]
    assert only(cloud.images(HOME, "us-east-1")).id == only(result["copies"])["image_id"] != wrong
    assert cloud.orphans(HOME, "us-east-1") == []


def test_other_account_can_copy_when_what_was_adopted_proves_wrong(cloud: Cloud, module: Module) -> None:
    where, key, other = source(cloud), cloud.key("us-east-1", OTHER), cloud.key("us-east-1", OTHER)
    cloud.polls = 4
    login = client(cloud, "sts").assume_role(RoleArn=ROLE, RoleSessionName="by-hand")["Credentials"]
    image = only(cloud.images(HOME, "eu-west-1"))
    image.launch_permissions.append({"UserId": OTHER})
    image.devices[0].create_volume_permission_userids.add(OTHER)
    request = {"SourceImageId": where["image_id"], "SourceRegion": "eu-west-1", "Name": "by hand", "Encrypted": True}
    wrong = client(cloud, "ec2", "us-east-1", login).copy_image(**request, KmsKeyId=other)["ImageId"]
    image.launch_permissions.clear()
    image.devices[0].create_volume_permission_userids.clear()
    result = run(module, source=where, targets=[{"region": "us-east-1", "role_arn": ROLE, "kms_key_id": key}])
    copy = only(result["copies"])
    assert not result["failed"], result["msg"]
    assert (copy["action"], copy["kms_key_arn"]) == ("created", key)
    assert copy["image_id"] != wrong
    assert image.launch_permissions == []


# ------------------------------------------------------------------------------------------------------------ removed
def keep_new_snapshots(cloud: Cloud, code: str | None) -> None:
    """Let no snapshot of a copy in us-east-2 be deleted with its image."""

    def before(call: Call) -> None:
        if call.action == "DeregisterImage":
            cloud.deletions.update(dict.fromkeys(ec2_backends[HOME]["us-east-2"].snapshots, code))

    cloud.before = before


def test_rollback_says_which_snapshots_are_left(cloud: Cloud, module: Module) -> None:
    keep_new_snapshots(cloud, "internal-error")
    cloud.failures[HOME, "us-east-1"] = ["no"]
    regions = ["us-east-1", "us-east-2"]
    result = run(module, source=source(cloud), regions=regions, retry_failed=0, on_failure="rollback")
    failed, left = result["copies"]
    snapshot = only(cloud.snapshots(HOME, "us-east-2")).id
    assert (left["action"], left["state"], left["error"]["code"]) == ("failed", "deregistered", "SnapshotsLeft")
    assert f"{snapshot} (internal-error)" in left["error"]["message"]
    assert failed["error"]["code"] == "Client.UnsupportedOperation"


def test_snapshots_that_deregistering_says_nothing_of_are_deleted(cloud: Cloud, module: Module) -> None:
    keep_new_snapshots(cloud, None)
    cloud.failures[HOME, "us-east-1"] = ["no"]
    regions = ["us-east-1", "us-east-2"]
    result = run(module, source=source(cloud), regions=regions, retry_failed=0, on_failure="rollback")
    assert [copy["action"] for copy in result["copies"]] == ["failed", "rolled_back"]
    assert cloud.snapshots(HOME, "us-east-2") == []


# -------------------------------------------------------------------------------------------------------------- asked
def test_limit_of_a_region_holds_for_all_accounts_together(cloud: Cloud, module: Module) -> None:
    cloud.polls = 3
    most = []

    def count(call: Call) -> None:
        places = [(account, "us-east-1") for account in (HOME, OTHER)]
        most.append(sum(image.state == "pending" for place in places for image in cloud.images(*place)))

    cloud.after = count
    params = {"regions": ["us-east-1"], "accounts": [{}, {"role_arn": ROLE}], "max_parallel_per_region": 1}
    result = run(module, source=source(cloud), **params)
    assert not result["failed"], result["msg"]
    assert max(most) == 1
    # Without waiting for the last one there is still room only after the first.
    result = run(module, source=source(cloud, name="second"), wait=False, **params)
    assert [copy["action"] for copy in result["copies"]] == ["created", "created"]
    assert max(most) == 1


def test_date_with_an_offset_is_set_once(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"], "deprecate_at": "2030-01-31T00:30:45+02:00"}
    assert not run(module, **params)["failed"]
    assert only(cloud.images(HOME, "us-east-1")).deprecation_time == "2030-01-30T22:30:00.000Z"
    assert not run(module, **params)["changed"]


def test_numbers_and_booleans_are_tags_too(cloud: Cloud, module: Module) -> None:
    params = {
        "source": source(cloud),
        "targets": [{"region": "us-east-1", "tags": {"share": 0.5}}],
        "tags": {"cost": 7, "spot": True},
        "snapshot_tags": {"days": 30},
    }
    assert not run(module, **params)["failed"]
    image = only(cloud.images(HOME, "us-east-1"))
    wanted = {"cost": "7", "spot": "True", "share": "0.5"}
    assert tags_of(image).items() >= wanted.items()
    assert tags_of(image.devices[0]).items() >= {**wanted, "days": "30"}.items()
    assert not run(module, **params)["changed"]


def test_what_is_handed_on_to_copy_image(cloud: Cloud, module: Module) -> None:
    where = source(cloud)
    only(cloud.images(HOME, "eu-west-1")).add_tags({"of": "source"})
    params = {"completion_minutes": 30, "copy_tags": True, "description": "A golden image"}
    assert not run(module, source=where, regions=["us-east-1"], **params)["failed"]
    asked = only([call.params for call in cloud.calls if call.action == "CopyImage"])
    assert asked["SnapshotCopyCompletionDurationMinutes"] == ["30"]
    assert asked["CopyImageTags"] == ["true"]
    copy = only(cloud.images(HOME, "us-east-1"))
    assert (copy.description, tags_of(copy)["of"]) == ("A golden image", "source")


def test_without_the_look_at_users_a_source_goes_but_not_the_snapshots_that_others_hold(
    cloud: Cloud, module: Module
) -> None:
    where = source(cloud)
    client(cloud, "ec2").run_instances(ImageId=where["image_id"], MinCount=1, MaxCount=1)
    snapshot = only(only(cloud.images(HOME, "eu-west-1")).devices)
    client(cloud, "ec2").register_image(
        Name="other", RootDeviceName="/dev/sda1", BlockDeviceMappings=[{"Ebs": {"SnapshotId": snapshot.id}}]
    )
    params = {"source_after": "deregister", "delete_source_snapshots": True, "in_use_check": "skip"}
    cloud.calls.clear()
    result = run(module, source=where, regions=["us-east-1"], **params)
    assert not result["failed"], result["msg"]
    assert cloud.count("DescribeInstances") == 0
    assert result["source_action"]["snapshots"] == [{"id": snapshot.id, "result": "skipped"}]
    assert only(cloud.images(HOME, "eu-west-1")).name == "other"


def test_source_and_target_are_entered_by_their_profiles(cloud: Cloud, run_module: Any, tmp_path: Path) -> None:
    login = client(cloud, "sts").assume_role(RoleArn=ROLE, RoleSessionName="profile")["Credentials"]
    file = tmp_path / "credentials"
    file.write_text(
        "[home]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = not-a-secret\n"
        f"[other]\naws_access_key_id = {login['AccessKeyId']}\naws_secret_access_key = {login['SecretAccessKey']}\n"
        f"aws_session_token = {login['SessionToken']}\n",
        encoding="utf-8",
    )
    result = run_module(
        "ami_copy_encrypt",
        _env={"AWS_SHARED_CREDENTIALS_FILE": str(file)},
        source={**source(cloud), "profile": "home"},
        targets=[{"region": "us-east-1", "profile": "other"}],
        endpoint_url=cloud.url,
        journal=str(tmp_path / "journal"),
        poll=0.05,
    )
    assert not result["failed"], result["msg"]
    assert (only(result["copies"])["account"], result["source"]["account"]) == (OTHER, HOME)
