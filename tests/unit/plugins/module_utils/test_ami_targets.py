# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ami_copy_encrypt refuses before it asks anybody."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_targets as logic
from ansible_collections.goldsmith.images.plugins.module_utils._ami import AmiError
from ansible_collections.goldsmith.images.plugins.module_utils._aws_session import AwsError

KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
DEFAULTS: dict[str, t.Any] = {
    "source": {"image_id": "ami-0123456789abcdef0", "name": None, "region": "eu-west-1"},
    "targets": None,
    "regions": ["us-east-1"],
    "accounts": None,
    "encrypted": True,
    "kms_key_ids": None,
    "name": "{source_name}",
    "tags": None,
    "snapshot_tags": None,
    "share_with": None,
    "completion_minutes": None,
    "deprecate_at": None,
    "wait": True,
    "wait_timeout": 7200,
    "poll": 5.0,
    "max_parallel": 8,
    "max_parallel_per_region": 20,
    "retry_failed": 1,
    "source_after": "keep",
    "delete_source_snapshots": False,
}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        *(
            ({"source": {"image_id": bad, "region": "eu-west-1"}}, "is no image id")
            for bad in ("ami-1", "AMI-01234567")
        ),
        ({"source": {"image_id": "ami-0123456789abcdef", "region": "eu-west-1"}}, "is no image id"),
        *(({"completion_minutes": bad}, "multiple of 15") for bad in (0, 14, 20, 2895)),
        *(({"source_after": bad, "wait": False}, "needs wait=true") for bad in ("deprecate", "disable", "deregister")),
        ({"delete_source_snapshots": True}, "needs source_after=deregister"),
        ({"max_parallel_per_region": 21}, "max_parallel_per_region: 21 is not between 1 and 20"),
        ({"max_parallel": 0}, "max_parallel: 0"),
        ({"poll": -1}, "poll: -1"),
        ({"wait_timeout": 0}, "wait_timeout: 0"),
        ({"retry_failed": -1}, "retry_failed: -1"),
        ({"name": "{source}"}, "source is not known in a name; these are: {source_name}"),
        ({"name": "golden {"}, "name: 'golden {'"),
        ({"name": "golden {region.x}"}, "region.x is not known"),
        ({"accounts": [{"account": "1234"}]}, "'1234' is no account number"),
        ({"share_with": {"accounts": ["1234"]}}, "share_with.accounts: '1234'"),
        ({"share_with": {"orgs": ["o-a1b2c3d4e5"]}}, "share_with.orgs: 'o-a1b2c3d4e5' is no ARN"),
        ({"share_with": {"ous": ["ou-ab12-abcdefgh"]}}, "share_with.ous"),
        ({"kms_key_ids": {"us-east-1": KEY}}, "is in eu-west-1; a copy needs a key of its own region"),
        ({"kms_key_ids": {"us-east-1": "arn:aws:s3:::x"}}, "is no ARN of a key"),
        ({"kms_key_ids": {"us-east-1": "alias/x"}, "encrypted": False}, "exclude each other"),
        ({"kms_key_ids": {"us-east-1": KEY.replace("aws:kms:eu-west-1", "aws-cn:kms:cn-north-1")}}, "is in cn-north-1"),
        ({"tags": {"a": {"b": "c"}}}, "the value of 'a' is {'b': 'c'}; a tag is a text"),
        ({"tags": {"a": None}}, "the value of 'a' is None"),
        ({"snapshot_tags": {"a": ["b"]}}, "snapshot_tags: the value of 'a'"),
        ({"deprecate_at": "0001-01-01T00:00+02:00"}, "is no date"),
        ({"deprecate_at": "soon"}, "'soon' is no date"),
        ({"deprecate_at": "2999-01-01"}, "more than ten years"),
    ],
)
def test_bad_input(params: dict[str, t.Any], message: str) -> None:
    with pytest.raises(AmiError) as raised:
        logic.check({**DEFAULTS, **params})
    assert message in str(raised.value)


def test_regions_and_accounts_multiply() -> None:
    accounts = [{"role_arn": "arn:aws:iam::111122223333:role/x"}, {"profile": "other"}]
    keys = {"us-east-1": "alias/a"}
    request = logic.check(
        {**DEFAULTS, "regions": ["us-east-1", "eu-west-1"], "accounts": accounts, "kms_key_ids": keys}
    )
    assert [(target.login.role_arn, target.login.profile, target.region, target.key) for target in request.targets] == [
        ("arn:aws:iam::111122223333:role/x", None, "us-east-1", "alias/a"),
        ("arn:aws:iam::111122223333:role/x", None, "eu-west-1", None),
        (None, "other", "us-east-1", "alias/a"),
        (None, "other", "eu-west-1", None),
    ]


def test_a_target_adds_to_what_is_said_for_all() -> None:
    target = {"region": "us-east-1", "tags": {"a": "2", "b": "3"}, "share_with": {"accounts": ["111122223333"]}}
    every = {"tags": {"a": "1", "c": "4"}, "share_with": {"accounts": ["444455556666", "111122223333"]}}
    [found] = logic.check({**DEFAULTS, **every, "regions": None, "targets": [target]}).targets
    assert found.tags == {"a": "2", "b": "3", "c": "4"}
    assert found.share["UserId"] == ["444455556666", "111122223333"]


@pytest.mark.parametrize("code", ["EndpointConnectionError", "InvalidClientTokenId"])
def test_region_without_a_token_service_is_called_no_region(code: str) -> None:
    class Closed:
        def enter(self) -> str:
            raise AwsError(code, "no")

    with pytest.raises(AmiError, match="source.region: eu-west-9 is no region or not enabled"):
        logic.enter_source(t.cast(t.Any, Closed()), "eu-west-9")


def test_secrets_are_not_shown() -> None:
    params = {"access_key": "AKIA", "secret_key": "s3cret", "session_token": "t0ken", "external_id": "ext"}
    [target] = logic.check({**DEFAULTS, **params}).targets
    assert not any(secret in repr(target) for secret in ("s3cret", "t0ken", "ext'"))
