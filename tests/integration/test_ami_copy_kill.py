# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_copy_encrypt, killed at any call: the next run ends what was begun, once.

Three regions, two accounts, one copy that fails at first. The request is lost on its way (the module is killed before)
or answered to nobody (killed after); both leave a journal and a cloud that say different things.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.ami_module import Module
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, Call, Cloud

OTHER = "222222222222"
FRIEND = "333333333333"
REGIONS = ("eu-west-1", "us-east-1", "us-east-2")
CALLS = 125  # more than a run has; the last ones are never reached
EVERY = 13


class Scenario:
    """A run that is killed, the next one, and what has to be true then."""

    def __init__(self, cloud: Cloud, folder: Path, after: str) -> None:
        self.cloud, self.module = cloud, Module(cloud, folder)
        self.source = cloud.image(sizes=(8, 4))
        self.image = cloud.images(HOME, "eu-west-1")[0]
        for account in (HOME, OTHER):
            for region in REGIONS:
                cloud.key(region, account, "alias/images")
        cloud.failures[OTHER, "us-east-1"] = ["Copy image failed with an internal error"]
        self.early: list[str] = []
        self.params: dict[str, Any] = {
            "source": {"image_id": self.source, "region": "eu-west-1"},
            "regions": list(REGIONS),
            "accounts": [{}, {"role_arn": f"arn:aws:iam::{OTHER}:role/copier"}],
            "kms_key_ids": dict.fromkeys(REGIONS, "alias/images"),
            "tags": {"a": "b"},
            "share_with": {"accounts": [FRIEND]},
            "deprecate_at": "2030-01-31",
            "source_after": after,
            "delete_source_snapshots": after == "deregister",
        }

    def copies(self) -> list[Any]:
        places = [(account, region) for account in (HOME, OTHER) for region in REGIONS]
        return [image for place in places for image in self.cloud.images(*place) if image.id != self.source]

    def good(self) -> list[Any]:
        return [image for image in self.copies() if image.state == "available" and encrypted(image)]

    def watch(self, call: Call) -> bool:
        """Note when the source goes before every copy is there."""
        if call.action == "DeregisterImage" and call.params["ImageId"] == [self.source] and len(self.good()) < 6:
            self.early.append(f"call {call.number}: {len(self.good())} copies")
        return False

    def kill_at(self, number: int, lost: bool) -> bool:
        """Run until the call *number*, kill; return whether it came to that."""
        killed: list[bool] = []

        def kill(call: Call) -> None:
            if call.number == number:
                killed.append(True)
                self.module.kill()

        def before(call: Call) -> bool:
            self.watch(call)
            if lost:
                kill(call)
            return lost and call.number >= number

        self.cloud.before = before
        if not lost:
            self.cloud.after = kill
        result = self.module(**self.params)
        assert bool(killed) == (result is None), result
        self.cloud.before, self.cloud.after = self.watch, lambda call: None
        return bool(killed)

    def check(self) -> None:
        result = self.module(**self.params)
        assert result is not None and not result["failed"], result
        assert not self.early
        assert sorted((image.owner_id, image.ec2_backend.region_name) for image in self.copies()) == sorted(
            (account, region) for account in (HOME, OTHER) for region in REGIONS
        )
        assert len(self.good()) == 6
        for image in self.copies():
            assert {"a", "imagefactory:source"} <= {tag["key"] for tag in image.get_tags()}
            assert image.launch_permissions == [{"UserId": FRIEND}]
            assert image.deprecation_time.startswith("2030-01-31")
            for snapshot in image.devices:
                assert {"a", "imagefactory:source"} <= {tag["key"] for tag in snapshot.get_tags()}
                assert snapshot.create_volume_permission_userids == {FRIEND}
        for account in (HOME, OTHER):
            for region in REGIONS:
                assert self.cloud.orphans(account, region) == []
        if self.params["source_after"] == "deregister":
            assert self.source not in [image.id for image in self.cloud.images(HOME, "eu-west-1")]
        else:
            assert self.image.state == "available"
            assert self.image.launch_permissions == []
            assert [snapshot.create_volume_permission_userids for snapshot in self.image.devices] == [set()] * 2
        again = self.module(check=True, **self.params)
        assert again is not None and not again["failed"] and not again["changed"], again


def encrypted(image: Any) -> bool:
    place = f":{image.ec2_backend.region_name}:{image.owner_id}:"
    return bool(image.devices) and all(device.encrypted and place in device.kms_key_id for device in image.devices)


def kill_and_run_again(cloud: Cloud, folder: Path, number: int, lost: bool, after: str) -> None:
    scenario = Scenario(cloud, folder, after)
    scenario.kill_at(number, lost)
    scenario.check()


# The sample is a fixed one: a failure is found again. Both ways to die and both fates of the source take turns.
@pytest.mark.parametrize("number", range(4, CALLS, EVERY))
def test_killed_at_some_calls(cloud: Cloud, tmp_path: Path, number: int) -> None:
    kill_and_run_again(cloud, tmp_path, number, lost=number % 2 == 0, after="keep" if number % 4 < 2 else "deregister")


@pytest.mark.slow_matrix
@pytest.mark.parametrize("after", ["keep", "deregister"])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("number", range(1, CALLS))
def test_killed_at_every_call(cloud: Cloud, tmp_path: Path, number: int, lost: bool, after: str) -> None:
    kill_and_run_again(cloud, tmp_path, number, lost, after)


def test_killed_twice(cloud: Cloud, tmp_path: Path) -> None:
    scenario = Scenario(cloud, tmp_path, "deregister")
    assert scenario.kill_at(28, lost=False)
    assert scenario.kill_at(len(cloud.calls) + 40, lost=True)
    scenario.check()


def test_a_run_has_fewer_calls_than_are_tried(cloud: Cloud, tmp_path: Path) -> None:
    for after in ("keep", "deregister"):
        cloud.reset()
        scenario = Scenario(cloud, tmp_path / after, after)
        (tmp_path / after).mkdir()
        assert not scenario.kill_at(CALLS, lost=False)
