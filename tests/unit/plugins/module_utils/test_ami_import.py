# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._ami_import import Wanted

WANTED = Wanted(
    name="golden", description="", sha256="0" * 64, size=10, kms_key_arn=None, architecture="x86_64",
    boot_mode="uefi-preferred", root_device="/dev/xvda", volume_type="gp3", imds="required", tpm=False,
)  # fmt: skip
# As EC2 describes such an image.
IMAGE = {
    "Architecture": "x86_64",
    "BlockDeviceMappings": [
        {
            "DeviceName": "/dev/xvda",
            "Ebs": {
                "DeleteOnTermination": True,
                "Encrypted": True,
                "SnapshotId": "snap-0123456789abcdef0",
                "VolumeSize": 10,
                "VolumeType": "gp3",
            },
        }
    ],
    "BootMode": "uefi-preferred",
    "EnaSupport": True,
    "ImageId": "ami-0123456789abcdef0",
    "ImdsSupport": "v2.0",
    "Name": "of another name",
    "RootDeviceName": "/dev/xvda",
    "SriovNetSupport": "simple",
    "State": "available",
    "VirtualizationType": "hvm",
}


@pytest.mark.parametrize(
    ("image", "wanted", "said"),
    [
        ({}, {}, []),
        ({"ImdsSupport": None}, {}, ["ImdsSupport None, not v2.0"]),
        ({}, {"imds": "optional"}, ["ImdsSupport v2.0, not None"]),
        ({"EnaSupport": False}, {}, ["EnaSupport False, not True"]),
        ({}, {"tpm": True}, ["TpmSupport None, not v2.0"]),
        ({}, {"boot_mode": "uefi"}, ["BootMode uefi-preferred, not uefi"]),
        ({}, {"architecture": "arm64"}, ["Architecture x86_64, not arm64"]),
        ({}, {"volume_type": "io2", "size": 20}, ["VolumeSize 10, not 20", "VolumeType gp3, not io2"]),
    ],
)
def test_in_what_an_image_differs(image: dict[str, Any], wanted: dict[str, Any], said: list[str]) -> None:
    assert dataclasses.replace(WANTED, **wanted).differences({**IMAGE, **image}) == said
