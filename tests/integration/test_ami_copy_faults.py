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
    changes,
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
    assert "CreateTags" not in changes(cloud)


def test_throttled_request_is_repeated_as_it_was(cloud: Cloud, module: Module) -> None:
    params = {"source": source(cloud), "regions": ["us-east-1"], "wait_timeout": 1}
    cloud.refuse[HOME, "CopyImage"] = "ResourceLimitExceeded"
    assert "still being copied" in run(module, **params)["msg"]
    cloud.refuse.clear()
    assert not run(module, **params)["failed"]
    assert len({call.params["ClientToken"][0] for call in cloud.calls if call.action == "CopyImage"}) == 1


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


# -------------------------------------------------------------------------------------------------------------- wrong
# ------------------------------------------------------------------------------------------------------------ removed
def keep_new_snapshots(cloud: Cloud, code: str | None) -> None:
    """Let no snapshot of a copy in us-east-2 be deleted with its image."""

    def before(call: Call) -> None:
        if call.action == "DeregisterImage":
            cloud.deletions.update(dict.fromkeys(ec2_backends[HOME]["us-east-2"].snapshots, code))

    cloud.before = before


# -------------------------------------------------------------------------------------------------------------- asked
