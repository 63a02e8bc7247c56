# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of ami_copy_encrypt share."""

from __future__ import annotations

from typing import Any

import boto3
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.ami_module import Module
from ansible_collections.goldsmith.images.tests.support.cloud import HOME, KEYS, Cloud

OTHER = "222222222222"
FRIEND = "333333333333"
ROLE = f"arn:aws:iam::{OTHER}:role/copier"


def run(module: Module, check: bool = False, **params: Any) -> dict[str, Any]:
    result = module(check=check, **params)
    assert result is not None
    documented.check_returned("ami_copy_encrypt", result)
    return result


def source(cloud: Cloud, **attributes: Any) -> dict[str, str]:
    return {"image_id": cloud.image(**attributes), "region": "eu-west-1"}


def client(cloud: Cloud, service: str, region: str = "eu-west-1", login: dict[str, str] | None = None) -> Any:
    """A client of the home account, or of the one that *login*, the credentials of an assumed role, lead to."""
    login = login or {"AccessKeyId": KEYS["access_key"], "SecretAccessKey": KEYS["secret_key"]}
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=cloud.url,
        aws_access_key_id=login["AccessKeyId"],
        aws_secret_access_key=login["SecretAccessKey"],
        aws_session_token=login.get("SessionToken"),
    )


def keys(cloud: Cloud, *regions: str, accounts: tuple[str, ...] = (HOME,)) -> dict[str, str]:
    for account in accounts:
        for region in regions:
            cloud.key(region, account, "alias/images")
    return dict.fromkeys(regions, "alias/images")


def only(items: list[Any]) -> Any:
    assert len(items) == 1, items
    return items[0]
