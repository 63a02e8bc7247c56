#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ami_release
short_description: Write down what is proven of an AMI that was built in EC2
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Asks EC2 whether the AMI is available and every snapshot of it is encrypted with the key that was asked for, makes
    it require version 2 of the metadata service (IMDSv2), and writes C(manifest.json), the logs and C(SHA256SUMS).
  - Nothing here can boot an AMI, so the manifest says C(passed) null, what is proven by which means, and what is not.
  - Refuses an AMI that is not what was promised. It stays in EC2 for inspection; what was released before stays, too.
extends_documentation_fragment:
  - goldsmith.images.attributes
  - goldsmith.images.aws
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details: The manifest has the time of the release.
  platform:
    platforms: posix
options:
  name:
    description: Name of the image.
    type: str
    required: true
  image_id:
    description: The AMI.
    type: str
    required: true
  region:
    description: Its region.
    type: str
    required: true
  kms_key_arn:
    description: The key that its snapshots must be encrypted with.
    type: str
    required: true
  output_dir:
    description: Where manifest and evidence are put. Made if missing.
    type: path
    required: true
  evidence:
    description:
      - Name in the output folder to the files it is made of, in this order. Files that do not exist are left out.
    type: dict
    default: {}
  manifest:
    description: What the manifest says beside the AMI itself.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Release the AMI
  goldsmith.images.ami_release:
    name: cml
    image_id: ami-0123456789abcdef0
    region: eu-west-1
    kms_key_arn: arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555
    output_dir: output/cml-amazon-ebs
    manifest: "{{ manifest }}"
"""

RETURN = r"""
ami:
  description: The AMI, its snapshots with key and size in GiB, the AMI it was made from, and its metadata service.
  returned: success
  type: dict
  sample:
    image_id: ami-0123456789abcdef0
    name: cml-20261127083000
    region: eu-west-1
    source_ami: ami-0fedcba9876543210
    imds_support: v2.0
    snapshots: [{"snapshot_id": "snap-0123456789abcdef0", "kms_key_arn": "arn:aws:kms:...", "size": 20}]
files:
  description: The files in the output folder; none in check mode.
  returned: success
  type: list
  elements: str
summary:
  description: The outcome in words, one fact a line.
  returned: success
  type: list
  elements: str
"""

import datetime
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._command import Interrupted, interruptible
from ansible_collections.goldsmith.images.plugins.module_utils._ec2_build import Ec2BuildError, prove
from ansible_collections.goldsmith.images.plugins.module_utils._image_plan import SCHEMA
from ansible_collections.goldsmith.images.plugins.module_utils._image_release import write_output

PROVEN = [
    "the roles, their own checks and those of cloud-init ended without an error in an instance of the source AMI",
    "the AMI is available, and each of its snapshots is encrypted with the key of the plan: EC2 says so",
]
NOT_PROVEN = [
    "that an instance of the AMI boots: goldsmith.images.ec2_launch_check looks at one",
    "that the disk is as the checks of an image want it, without leftovers of the build: they need a disk at hand",
]


def summary(ami: dict[str, t.Any], output: Path) -> list[str]:
    """Return the lines that a user sees last."""
    return [
        f"AMI       {ami['image_id']} ({ami['name']}) in {ami['region']}",
        *(
            f"snapshot  {each['snapshot_id']}, {each['size']} GiB, key {each['kms_key_arn']}"
            for each in ami["snapshots"]
        ),
        f"made of   {ami['source_ami'] or 'an unknown AMI'}",
        f"proof     {output / 'manifest.json'}; not proven: {'; '.join(NOT_PROVEN)}",
    ]


def release(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Prove what can be proven, then write it down."""
    output = Path(params["output_dir"])
    ec2 = aws.Aws.of(params, params["region"]).account(aws.Login.of(params)).client("ec2")
    ami = {"region": params["region"], **prove(ec2, params["image_id"], params["kms_key_arn"])}
    if ami["imds_support"] != "v2.0":
        if not check_mode:
            # The AMI inherits it from its source, or gets it from Packer 1.7 and later; others get it here.
            aws.call(ec2.modify_image_attribute, ImageId=ami["image_id"], ImdsSupport={"Value": "v2.0"})
        ami["imds_support"] = "v2.0"
    manifest = {
        "schema": SCHEMA,
        "name": params["name"],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **params["manifest"],
        "amis": {ami["region"]: ami},
        "verification": {"passed": None, "tests": 0, "proven": PROVEN, "not_proven": NOT_PROVEN},
    }
    files = [] if check_mode else write_output(output, params["evidence"], manifest, {})
    return {"changed": True, "ami": ami, "files": files, "summary": summary(ami, output)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "image_id": {"type": "str", "required": True},
            "region": {"type": "str", "required": True},
            "kms_key_arn": {"type": "str", "required": True, "no_log": False},
            "output_dir": {"type": "path", "required": True},
            "evidence": {"type": "dict", "default": {}},
            "manifest": {"type": "dict", "required": True},
            **aws.LOGIN_SPEC,
        },
        supports_check_mode=True,
        **aws.LOGIN_RULES,
    )
    try:
        with interruptible():
            released = release(module.params, module.check_mode)
    except (Ec2BuildError, Interrupted, OSError, aws.AwsError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**released)


if __name__ == "__main__":
    main()
