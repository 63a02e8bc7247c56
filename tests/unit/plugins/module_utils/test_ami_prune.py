# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._ami import AmiError
from ansible_collections.goldsmith.images.plugins.module_utils._ami_prune import check, decide

NOW = datetime(2026, 11, 27, 8, 0, tzinfo=timezone.utc)
PARAMS = {"name_prefixes": ["golden-"], "keep": 2, "min_age_days": 30, "grace_days": 14, "max_parallel": 8}


def at(days: float) -> str:
    """A date so many days ago, as EC2 writes it."""
    return f"{NOW - timedelta(days=days):%Y-%m-%dT%H:%M:%S}.000Z"


def image(name: str, days: float, **more: Any) -> dict[str, Any]:
    return {"ImageId": f"ami-{name}", "Name": name, "CreationDate": at(days), "State": "available", **more}


def actions(images: list[dict[str, Any]], **params: Any) -> dict[str, str]:
    return {fate.image["Name"]: fate.action for fate in decide(images, {**PARAMS, **params}, NOW)}


def test_the_newest_stay_and_older_ones_are_deprecated_first() -> None:
    images = [image(f"golden-{days}", days) for days in (200, 40, 100, 90)]
    assert actions(images) == {
        "golden-40": "kept", "golden-90": "kept", "golden-100": "deprecate", "golden-200": "deprecate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "params", "action", "reason"),
    [
        ({}, {}, "deprecate", "older than the newest 2"),
        ({}, {"min_age_days": 101}, "kept", "younger than 101 days"),
        ({}, {"min_age_days": 100}, "deprecate", "older"),
        ({}, {"grace_days": 0}, "deregister", "no time of grace"),
        ({"DeprecationTime": at(14)}, {}, "deregister", "grace is over"),
        ({"DeprecationTime": at(13.9)}, {}, "waiting", "deregistered after 2026-11-27 10:24 UTC"),
        ({"DeprecationTime": at(-0.001)}, {}, "waiting", "being deprecated"),
        ({"DeprecationTime": at(-300)}, {}, "deprecate", "older"),
        ({"DeregistrationProtection": "enabled-with-cooldown"}, {}, "kept", "protected"),
        ({"DeregistrationProtection": "disabled"}, {}, "deprecate", "older"),
        ({"State": "pending"}, {}, "kept", "it is pending"),
        ({"State": "failed"}, {}, "deregister", "it is failed"),
        ({"State": "disabled"}, {}, "deregister", "it is disabled"),
        ({"State": "disabled"}, {"min_age_days": 101}, "kept", "younger"),
    ],
)
def test_what_becomes_of_an_old_image(more: dict[str, Any], params: dict[str, Any], action: str, reason: str) -> None:
    images = [image("golden-1", 1), image("golden-2", 2), image("golden-old", 100, **more)]
    [fate] = [fate for fate in decide(images, {**PARAMS, **params}, NOW) if fate.image["Name"] == "golden-old"]
    assert fate.action == action and reason in fate.reason


def test_what_nobody_can_launch_is_not_one_of_those_that_stay() -> None:
    images = [image("golden-1", 40, State="failed"), image("golden-2", 50), image("golden-3", 60)]
    assert actions(images) == {"golden-1": "deregister", "golden-2": "kept", "golden-3": "kept"}


def test_deprecated_ones_count_as_those_that_stay() -> None:
    images = [image(f"golden-{days}", days, DeprecationTime=at(20)) for days in (100, 110, 120)]
    assert actions(images) == {"golden-100": "kept", "golden-110": "kept", "golden-120": "deregister"}


def test_each_image_belongs_to_its_longest_prefix_and_others_to_none() -> None:
    images = [image(f"golden-{days}", days) for days in (100, 110)]
    images += [image(f"golden-arm-{days}", days) for days in (40, 50)] + [
        image("silver-1", 400),
        image("my golden-", 9),
    ]
    nameless = {"ImageId": "ami-none", "CreationDate": at(400), "State": "failed"}
    found = decide([*images, nameless], {**PARAMS, "name_prefixes": ["golden-", "golden-arm-"], "keep": 1}, NOW)
    assert [(fate.prefix, fate.image["Name"], fate.action) for fate in found] == [
        ("golden-", "golden-100", "kept"),
        ("golden-", "golden-110", "deprecate"),
        ("golden-arm-", "golden-arm-40", "kept"),
        ("golden-arm-", "golden-arm-50", "deprecate"),
    ]


def test_nothing_has_to_stay() -> None:
    assert actions([image("golden-1", 40)], keep=0) == {"golden-1": "deprecate"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name_prefixes": []}, "never meant"),
        ({"name_prefixes": [""]}, "'' is not the beginning of a name"),
        ({"name_prefixes": ["golden-*"]}, "wildcards are not needed"),
        ({"keep": -1}, "keep: -1 is not between 0 and 10000"),
        ({"min_age_days": -1}, "min_age_days"),
        ({"grace_days": 4000}, "grace_days"),
        ({"max_parallel": 0}, "max_parallel"),
    ],
)
def test_bad_input(params: dict[str, Any], message: str) -> None:
    with pytest.raises(AmiError) as raised:
        check({**PARAMS, **params})
    assert message in str(raised.value)
