# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_prune with the real boto3 against a simulated cloud, whole and killed at any call."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_in_use as in_use
from ansible_collections.goldsmith.images.plugins.module_utils._ami_prune import PRUNED_TAG
from ansible_collections.goldsmith.images.plugins.module_utils._aws_session import Aws, Login
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.ami_module import Module
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Call, Cloud

REGION = "eu-west-1"
OTHER = "222222222222"
ROLE = f"arn:aws:iam::{OTHER}:role/reader"
CALLS = 15  # one more than a run has


@pytest.fixture
def module(cloud: Cloud, tmp_path: Path) -> Module:
    return pruner(cloud, tmp_path)


def pruner(cloud: Cloud, folder: Path) -> Module:
    return Module(cloud, folder, "ami_prune", region=REGION, name_prefixes=["golden-"], keep=1)


def run(module: Module, check: bool = False, **params: Any) -> dict[str, Any]:
    result = module(check=check, **params)
    assert result is not None
    if "images" in result:
        documented.check_returned("ami_prune", result)
    return result


def ago(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days)


def deprecated(days: float) -> str:
    return f"{ago(days):%Y-%m-%dT%H:%M}:00.000Z"


def image(cloud: Cloud, name: str, days: float, **more: Any) -> Any:
    """An image of this age; moto's object of it is returned."""
    image_id = cloud.image(REGION, name=name, **more)
    [found] = [each for each in cloud.images(HOME, REGION) if each.id == image_id]
    found.creation_date = ago(days).replace(tzinfo=None)
    return found


def actions(result: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["action"] for each in result["images"]}


def client(cloud: Cloud, service: str) -> Any:
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    return boto3.client(service, region_name=REGION, endpoint_url=cloud.url, **keys)


def only(items: list[Any]) -> Any:
    assert len(items) == 1, items
    return items[0]


# ------------------------------------------------------------------------------------------------ the life of an image
def test_deprecated_then_waiting_then_gone_with_its_snapshots(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    old = image(cloud, "golden-old", 90, sizes=(8, 20))
    image(cloud, "silver-old", 900)
    would = run(module, check=True)
    assert would["changed"] and cloud.changes() == []
    assert actions(would) == {"golden-new": "kept", "golden-old": "would_deprecate"}
    result = run(module)
    assert set(result) == set(would)
    assert actions(result) == {"golden-new": "kept", "golden-old": "deprecated"}
    assert cloud.changes() == ["EnableImageDeprecation"]
    assert old.deprecation_time[:16] == result["images"][1]["deprecated"][:16]

    for check in (True, False):
        again = run(module, check=check)
        assert not again["changed"] and actions(again)["golden-old"] == "waiting"
    old.deprecation_time = deprecated(13)
    assert not run(module)["changed"]

    old.deprecation_time = deprecated(15)
    cloud.calls.clear()
    snapshots = [snapshot.id for snapshot in old.devices]
    would = run(module, check=True)
    assert would["changed"] and cloud.changes() == []
    assert would["images"][1]["snapshots"] == [{"id": each, "result": "would_delete"} for each in snapshots]
    result = run(module)
    assert set(result) == set(would) and not result["failed"]
    assert actions(result)["golden-old"] == "deregistered"
    assert result["images"][1]["snapshots"] == [{"id": each, "result": "success"} for each in snapshots]
    assert {each.name for each in cloud.images(HOME, REGION)} == {"golden-new", "silver-old"}
    assert cloud.orphans(HOME, REGION) == []
    assert result["summary"] == {**dict.fromkeys(result["summary"], 0), "kept": 1, "deregistered": 1}
    assert not run(module)["changed"]


def test_snapshots_stay_if_they_are_to_or_others_have_them(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    old = image(cloud, "golden-old", 90, sizes=(8, 20))
    twin = image(cloud, "other", 90, sizes=())
    own, shared = old.devices
    twin.devices = [shared]
    would = run(module, check=True, grace_days=0)
    assert [each["result"] for each in would["images"][1]["snapshots"]] == ["would_delete", "skipped"]
    result = run(module, grace_days=0)
    assert not result["failed"], result["msg"]
    assert {each["id"]: each["result"] for each in result["images"][1]["snapshots"]} == {
        own.id: "success",
        shared.id: "skipped",
    }
    assert PRUNED_TAG not in {tag["key"] for tag in shared.get_tags()}
    kept = image(cloud, "golden-older", 100)
    result = run(module, grace_days=0, delete_snapshots=False)
    assert only([each for each in result["images"] if each["action"] == "deregistered"])["snapshots"] == [
        {"id": kept.devices[0].id, "result": "kept"}
    ]
    assert cloud.orphans(HOME, REGION) == [kept.devices[0].id]
    # Kept on purpose, so it is none of the leftovers either.
    assert not run(module)["changed"]


def test_disabled_and_protected_images(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    image(cloud, "golden-disabled", 90, state="disabled")
    image(cloud, "golden-protected", 90, deregistration_protection="enabled", protected=True)
    assert actions(run(module)) == {
        "golden-new": "kept",
        "golden-disabled": "deregistered",
        "golden-protected": "kept",
    }


# -------------------------------------------------------------------------------------------------------- its users
def use_instance(cloud: Cloud, image_id: str) -> None:
    client(cloud, "ec2").run_instances(ImageId=image_id, MinCount=1, MaxCount=1)


def use_launch_template(cloud: Cloud, image_id: str) -> None:
    data = {"ImageId": image_id}
    client(cloud, "ec2").create_launch_template(LaunchTemplateName="template", LaunchTemplateData=data)


def use_launch_configuration(cloud: Cloud, image_id: str) -> None:
    client(cloud, "autoscaling").create_launch_configuration(
        LaunchConfigurationName="c", ImageId=image_id, InstanceType="t3.micro"
    )


def use_parameter(cloud: Cloud, image_id: str) -> None:
    client(cloud, "ssm").put_parameter(Name="/golden/ami", Value=image_id, Type="String")


def use_permission(cloud: Cloud, image_id: str) -> None:
    permission = {"Add": [{"UserId": OTHER}]}
    client(cloud, "ec2").modify_image_attribute(ImageId=image_id, LaunchPermission=permission)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (use_instance, "instance"),
        (use_launch_template, "launch_template"),
        (use_launch_configuration, "auto_scaling"),
        (use_parameter, "ssm_parameter"),
        (use_permission, "launch_permission"),
    ],
)
def test_an_image_that_is_used_stays_as_it_is(cloud: Cloud, module: Module, use: Any, kind: str) -> None:
    image(cloud, "golden-new", 1)
    old, used = image(cloud, "golden-old", 90), image(cloud, "golden-used", 100)
    use(cloud, used.id)
    cloud.calls.clear()
    result = run(module, grace_days=0)
    assert not result["failed"], result["msg"]
    assert actions(result) == {"golden-new": "kept", "golden-old": "deregistered", "golden-used": "in_use"}
    spared = result["images"][2]
    assert [user["kind"] for user in spared["in_use"]] == [kind] and kind in spared["reason"]
    assert old not in cloud.images(HOME, REGION) and used in cloud.images(HOME, REGION)
    assert not used.deprecation_time
    warned = run(module, grace_days=0, in_use_check="warn")
    assert actions(warned)["golden-used"] == "deregistered" and used.id in only(warned["warnings"])


def test_more_images_than_a_filter_takes(cloud: Cloud) -> None:
    ids = [cloud.image(REGION, name=f"golden-{number}") for number in range(450)]
    used = [min(ids), max(ids)]
    for image_id in used:
        use_instance(cloud, image_id)
    account = Aws(REGION, cloud.url).account(Login(**KEYS))
    with ThreadPoolExecutor(1) as pool:
        usages = in_use.find([account], REGION, ids, pool)
    assert not [problem for usage in usages.values() for problem in usage.unseen]
    assert {image_id for image_id, usage in usages.items() if usage.users} == set(used)


def test_nobody_looks_for_users(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    use_parameter(cloud, image(cloud, "golden-used", 100).id)
    cloud.calls.clear()
    assert actions(run(module, in_use_check="skip"))["golden-used"] == "deprecated"
    assert cloud.count("DescribeParameters") == 0


def test_users_in_an_account_that_the_image_is_shared_with(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    shared = image(cloud, "golden-shared", 100, launch_permissions=[{"UserId": OTHER}])
    accounts = [{"role_arn": ROLE}]
    assert actions(run(module, check=True))["golden-shared"] == "in_use"
    assert actions(run(module, check=True, accounts=accounts))["golden-shared"] == "would_deprecate"
    cloud.refuse[OTHER, "DescribeInstances"] = "UnauthorizedOperation"
    unseen = run(module, accounts=accounts)
    assert actions(unseen)["golden-shared"] == "in_use"
    assert f"not seen: instance of {OTHER}: UnauthorizedOperation" in unseen["images"][1]["reason"]
    assert not shared.deprecation_time
    cloud.refuse[HOME, "AssumeRole"] = "AccessDenied"
    refused = run(module, accounts=accounts)
    assert refused["failed"] and "AccessDenied" in refused["msg"] and not refused["changed"]


# ------------------------------------------------------------------------------------------------- what goes wrong
def test_one_failure_does_not_stop_the_others(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    image(cloud, "golden-protected", 90, protected=True)  # but nobody has said so
    image(cloud, "golden-old", 100)
    result = run(module, grace_days=0)
    assert result["failed"] and result["changed"] and "OperationNotPermitted" in result["msg"]
    assert actions(result) == {"golden-new": "kept", "golden-protected": "failed", "golden-old": "deregistered"}
    assert result["images"][1]["error"]["code"] == "OperationNotPermitted"


def test_snapshots_that_could_not_be_deleted_are_deleted_by_the_next_run(cloud: Cloud, module: Module) -> None:
    image(cloud, "golden-new", 1)
    old = image(cloud, "golden-old", 90, sizes=(8, 20))
    bad = old.devices[0].id
    cloud.deletions[bad] = "internal-error"
    result = run(module, grace_days=0)
    assert result["failed"] and f"{bad} (internal-error)" in result["msg"]
    assert cloud.orphans(HOME, REGION) == [bad]
    would = run(module, check=True)
    assert would["changed"] and only(would["leftover_snapshots"])["result"] == "would_delete"
    assert not run(module, delete_snapshots=False)["changed"]
    again = run(module)
    assert again["leftover_snapshots"] == [{"id": bad, "image_id": old.id, "result": "success"}]
    assert not again["failed"] and cloud.orphans(HOME, REGION) == []
    assert not run(module)["changed"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name_prefixes": [""]}, "is not the beginning of a name"),
        ({"name_prefixes": ["golden*"]}, "wildcards are not needed"),
        ({"keep": -1}, "keep: -1"),
        ({"min_age_days": -1}, "min_age_days: -1"),
        ({"grace_days": -1}, "grace_days: -1"),
        ({"in_use_check": "fail"}, "value of in_use_check must be one of"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_bad_input(cloud: Cloud, module: Module, params: dict[str, Any], message: str, check: bool) -> None:
    result = run(module, check=check, **params)
    assert result["failed"] and message in result["msg"], result["msg"]
    assert not cloud.calls


def test_no_permission_to_look_at_images(cloud: Cloud, module: Module) -> None:
    cloud.refuse[HOME, "DescribeImages"] = "UnauthorizedOperation"
    result = run(module)
    assert result["failed"] and "UnauthorizedOperation" in result["msg"] and not result["changed"]


# --------------------------------------------------------------------------------------------------------- killed
class Scenario:
    """A run that is killed, the next one, and what has to be true then."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self.cloud, self.module = cloud, pruner(cloud, folder)
        image(cloud, "golden-new", 1)
        self.used = image(cloud, "golden-used", 80)
        use_instance(cloud, self.used.id)
        going = image(cloud, "golden-deprecated", 90, sizes=(8, 4), deprecation_time=deprecated(15))
        # EC2 fails to delete it: a run that is killed then has told nobody.
        cloud.deletions[going.devices[0].id] = "internal-error"
        self.old = image(cloud, "golden-old", 100, sizes=(8, 4))
        cloud.calls.clear()

    def kill_at(self, number: int, lost: bool) -> bool:
        """Run until the call *number*, kill; return whether it came to that."""
        killed: list[bool] = []

        def kill(call: Call) -> None:
            if call.number == number:
                killed.append(True)
                self.module.kill()

        def before(call: Call) -> bool:
            if lost:
                kill(call)
            return lost and call.number >= number

        self.cloud.before = before
        if not lost:
            self.cloud.after = kill
        result = self.module(max_parallel=1)
        assert bool(killed) == (result is None), result
        self.cloud.before, self.cloud.after = (lambda call: None), (lambda call: None)
        return bool(killed)

    def check(self) -> None:
        result = run(self.module)
        if result["failed"]:  # this run was the first to come so far
            assert "(internal-error); run again" in result["msg"]
            result = run(self.module)
        assert not result["failed"], result["msg"]
        assert {each.name for each in self.cloud.images(HOME, REGION)} == {"golden-new", "golden-used", "golden-old"}
        assert self.old.deprecation_time and not self.used.deprecation_time
        assert self.cloud.orphans(HOME, REGION) == []
        assert not run(self.module, check=True)["changed"]


# The first calls only ask, which changes nothing wherever it ends.
ASKING = [pytest.param(number, marks=pytest.mark.slow_matrix) for number in range(1, 11)]


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("number", [*ASKING, *range(11, CALLS)])
def test_killed_at_every_call(cloud: Cloud, tmp_path: Path, number: int, lost: bool) -> None:
    scenario = Scenario(cloud, tmp_path)
    assert scenario.kill_at(number, lost)
    scenario.check()


def test_a_run_has_fewer_calls_than_are_tried(cloud: Cloud, tmp_path: Path) -> None:
    assert not Scenario(cloud, tmp_path).kill_at(CALLS, lost=False)
