# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts are entered as they should be, and stay open."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as logic
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud

OTHER = "222222222222"
ROLE = f"arn:aws:iam::{OTHER}:role/copier"
BASE = logic.Login(**KEYS)


def test_assumed_credentials_renew_themselves(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    # botocore renews what ends within 15 minutes, so these are renewed before each call.
    monkeypatch.setattr(logic, "ROLE_SECONDS", 900)
    account = logic.Aws("eu-west-1", cloud.url).account(BASE.then({"role_arn": ROLE, "external_id": "some id"}))
    client = account.client("ec2", "us-east-1")
    for _number in range(3):
        logic.call(client.describe_images, Owners=["self"])
    assumed = [call for call in cloud.calls if call.action == "AssumeRole"]
    assert len(assumed) == 3
    assert assumed[0].params["ExternalId"] == ["some id"]
    assert {call.account for call in cloud.calls if call.action == "DescribeImages"} == {OTHER}


def test_one_account_a_login_and_one_client_a_region(cloud: Cloud) -> None:
    aws = logic.Aws("eu-west-1", cloud.url)
    account = aws.account(BASE)
    assert aws.account(BASE.then({})) is account
    assert account.client("ec2") is account.client("ec2", "eu-west-1") is not account.client("ec2", "us-east-1")
    assert (account.id, account.partition, account.partition_of("cn-north-1")) == (HOME, "aws", "aws-cn")
    problems: list[Exception] = []

    def make() -> None:
        try:
            account.client("kms")
        except RuntimeError as exc:
            problems.append(exc)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(problems) == 1


def test_errors_have_a_code(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = logic.Aws("eu-west-1", cloud.url).account(BASE)
    client = account.client("ec2")
    with pytest.raises(logic.AwsError) as raised:
        logic.call(client.describe_images, ImageIds=["ami-00000000"])
    assert raised.value.report()["code"] == "InvalidAMIID.NotFound"
    with pytest.raises(logic.AwsError) as raised:
        logic.call(client.describe_images, ImageIds=1)
    assert raised.value.code == "ParamValidationError"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(logic.AwsError) as raised:
        logic.Aws("eu-west-1", cloud.url).account(logic.Login(profile="nobody")).client("ec2")
    assert raised.value.code == "ProfileNotFound"


def test_patience_with_a_limit(cloud: Cloud) -> None:
    cloud.limit = 1
    client = logic.Aws("eu-west-1", cloud.url).account(BASE).client("ec2", "us-east-1")
    request = {"SourceImageId": cloud.image(), "SourceRegion": "eu-west-1", "Name": "copy"}
    logic.call(client.copy_image, **request)
    with pytest.raises(logic.AwsError) as raised:
        logic.call(client.copy_image, **request)
    assert raised.value.busy
    cloud.after = lambda call: setattr(cloud, "limit", 2)
    assert logic.call(client.copy_image, patience=30, **request)["ImageId"]
