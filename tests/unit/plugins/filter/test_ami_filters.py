# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import botocore.session
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.goldsmith.images.plugins.filter.ami_name import ami_name
from ansible_collections.goldsmith.images.plugins.filter.amis_by_region import amis_by_region
from ansible_collections.goldsmith.images.plugins.filter.cloudformation_ami_mapping import cloudformation_ami_mapping
from ansible_collections.goldsmith.images.plugins.filter.launch_template_versions import launch_template_versions
from botocore.validate import ParamValidator

COPIES = [
    {"account": "111111111111", "region": "us-east-1", "image_id": "ami-1"},
    {"account": "111111111111", "region": "eu-west-1", "image_id": "ami-2"},
    {"account": "222222222222", "region": "eu-west-1", "image_id": "ami-3"},
    {"account": "222222222222", "region": "eu-west-2", "image_id": None},
]


def test_amis_of_one_account():
    assert list(amis_by_region(COPIES, "111111111111").items()) == [("eu-west-1", "ami-2"), ("us-east-1", "ami-1")]
    assert amis_by_region(COPIES, 222222222222) == {"eu-west-1": "ami-3"}
    assert amis_by_region([]) == {}


def test_a_region_in_several_accounts_is_not_guessed():
    with pytest.raises(AnsibleFilterError, match="eu-west-1 occurs in several accounts"):
        amis_by_region(COPIES)


@pytest.mark.parametrize("copies", [None, [{"region": "eu-west-1"}], "text", 3])
def test_what_is_no_list_of_copies(copies: object):
    with pytest.raises(AnsibleFilterError, match="not a list of copies"):
        amis_by_region(copies)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cloud_base: 1.36+build.7", "cloud_base- 1.36-build.7"),
        ("a/b (c) [d] 'e' @f", "a/b (c) [d] 'e' @f"),
        ("größe***x", "gr-e-x"),
        ("x" * 200, "x" * 128),
        (f"{'x' * 127} y", "x" * 127),
    ],
)
def test_names(text: str, expected: str):
    assert ami_name(text) == expected


def test_a_name_that_is_too_short():
    with pytest.raises(AnsibleFilterError, match="less than 3"):
        ami_name("é")


def test_mapping():
    mapping = cloudformation_ami_mapping({"eu-west-1": "ami-2"}, key="cloudBase")
    assert mapping == {"Mappings": {"Images": {"eu-west-1": {"cloudBase": "ami-2"}}}}
    with pytest.raises(AnsibleFilterError, match="key is 'cloud_base'"):
        cloudformation_ami_mapping({}, key="cloud_base")


def test_launch_template_versions_are_requests_that_ec2_takes():
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("CreateLaunchTemplateVersion").input_shape
    [version] = launch_template_versions({"eu-west-1": "ami-2"}, "nodes")
    assert (version["region"], version["template_name"], version["image_id"]) == ("eu-west-1", "nodes", "ami-2")
    assert not ParamValidator().validate(version["request"], shape).has_errors()
