#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ami_import
short_description: Turn a local disk image into an encrypted AMI, without an instance or a bucket
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Uploads the data of a disk image to an EBS snapshot through the EBS direct APIs, several blocks at a time, and
    registers an AMI of it. No EC2 instance, no S3 bucket and no C(vmimport) role are needed.
  - Only blocks that hold data are sent. Each goes with its SHA-256 digest, and the snapshot with one over all of them.
  - Image and snapshot carry the digest of the disk image as a tag. An AMI of the same content with the same key and the
    same settings is found and nothing is done; tags and descriptions of one that is there are left alone. An upload
    that was interrupted goes on where it was.
  - The snapshot is registered only if it is encrypted with the key that was asked for.
extends_documentation_fragment:
  - goldsmith.images.attributes
  - goldsmith.images.aws
requirements:
  - Python 3.11 or later
  - qemu-img, unless the image is raw
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  path:
    description: The disk image, in any format of C(qemu-img) that needs no other file.
    type: path
    required: true
  sha256:
    description:
      - The digest that the file must have, 64 hexadecimal digits. Give the one that the verification has passed.
    type: str
  region:
    description: The region of the AMI.
    type: str
    required: true
  name:
    description: The name of the AMI, that no other has. See P(goldsmith.images.ami_name#filter).
    type: str
    required: true
  description:
    description: The description of AMI and snapshot.
    type: str
    default: ""
  tags:
    description: Tags of AMI and snapshot.
    type: dict
    default: {}
  snapshot_tags:
    description: More tags of the snapshot.
    type: dict
    default: {}
  encrypted:
    description: Whether the snapshot is encrypted. V(false) leaves it to the account's default.
    type: bool
    default: true
  kms_key_id:
    description:
      - Id, ARN or alias of the KMS key of the region. Without it, the account's default key for EBS.
      - An AMI that is to be shared or copied to other accounts needs a key of one's own.
    type: str
  architecture:
    description: The processor that the image is for.
    type: str
    choices: [x86_64, arm64]
    default: x86_64
  boot_mode:
    description: How the image boots. The images of this collection do both.
    type: str
    choices: [uefi-preferred, uefi, legacy-bios]
    default: uefi-preferred
  root_device:
    description: The name of the root device.
    type: str
    default: /dev/xvda
  volume_type:
    description: The type of the root volume.
    type: str
    choices: [gp3, gp2, io1, io2]
    default: gp3
  volume_size:
    description: The size of the root volume in GiB. By default that of the disk, rounded up.
    type: int
  imds:
    description: V(required) makes instances answer version 2 of the metadata service only.
    type: str
    choices: [required, optional]
    default: required
  tpm:
    description: Whether instances have a virtual TPM. Needs O(boot_mode=uefi).
    type: bool
    default: false
  share_with:
    description:
      - Who else may use the AMI. What is missing is added, nothing is taken away. Accounts get the use of the snapshot
        too, which they need to copy the AMI.
      - Needs a O(kms_key_id) of one's own, with a policy that lets them use it.
    type: dict
    suboptions:
      accounts:
        description: Numbers of accounts.
        type: list
        elements: str
      orgs:
        description: ARNs of organisations.
        type: list
        elements: str
      ous:
        description: ARNs of organisational units.
        type: list
        elements: str
  parallel:
    description: How many blocks are sent at a time.
    type: int
    default: 16
  state_dir:
    description: Where interrupted uploads are remembered, and the raw disk lies meanwhile.
    type: path
    default: ~/.cache/goldsmith-images/ami_import
  wait_timeout:
    description: Seconds to wait for snapshot and AMI.
    type: int
    default: 1800
  progress_path:
    description: A JSON file with the state of the upload, for programs to follow.
    type: path
  progress_keep:
    description: Whether the file of O(progress_path) stays after the end.
    type: bool
    default: true
  no_progress:
    description: Do not show live progress on the controller.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Make an encrypted AMI of the verified image
  goldsmith.images.ami_import:
    path: output/cloud_base/cloud_base.qcow2
    sha256: "{{ (lookup('ansible.builtin.file', 'output/cloud_base/manifest.json') | from_json).image.sha256 }}"
    region: eu-west-1
    name: cloud_base 2026-11-27
    kms_key_id: alias/images
    tags:
      team: platform
  register: imported
"""

RETURN = r"""
outcome:
  description:
    - V(unchanged) if there was such an AMI of the same content, V(registered) if a complete snapshot was there,
      V(created) if the disk was uploaded. In check mode, what the run would do.
  returned: success
  type: str
  sample: created
image_id:
  description: The AMI; null in check mode if there is none.
  returned: success
  type: str
  sample: ami-0123456789abcdef0
snapshot_id:
  description: The snapshot; null in check mode if there is none.
  returned: success
  type: str
  sample: snap-0123456789abcdef0
account:
  description: The account that the AMI belongs to.
  returned: success
  type: str
  sample: "111111111111"
name:
  description: The name of the AMI; of one that was there already, its own.
  returned: success
  type: str
  sample: cloud_base 2026-11-27
shared_with:
  description: Accounts, organisations and units of O(share_with) that have got a permission, or would in check mode.
  returned: success
  type: list
  elements: str
  sample: ["222222222222"]
kms_key_arn:
  description: The key that the snapshot is encrypted with; null if it is not.
  returned: success
  type: str
  sample: arn:aws:kms:eu-west-1:111111111111:key/11111111-2222-3333-4444-555555555555
source_sha256:
  description: The digest of the disk image.
  returned: success
  type: str
  sample: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
volume_size:
  description: The size of the root volume in GiB.
  returned: success
  type: int
  sample: 10
bytes_to_send:
  description: Bytes that the upload has to send in all; 0 if it is not needed.
  returned: success
  type: int
  sample: 1073741824
bytes_sent:
  description: Bytes that this run has sent.
  returned: success
  type: int
  sample: 1073741824
seconds:
  description: How long the upload took.
  returned: success
  type: float
  sample: 93.2
phases:
  description: The phases of this run, each with its beginning and its duration in seconds.
  returned: success
  type: list
  elements: dict
  sample:
    - {phase: upload, build: "", at: 2.1, seconds: 93.2}
"""

import contextlib
import hashlib
import os
import re
import time
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_finish, _ami_targets, _disk, _ebs_upload
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_import as logic
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import NAME, AmiError, find_key
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError, file_digest, make_key
from ansible_collections.goldsmith.images.plugins.module_utils._command import (
    CommandError,
    Interrupted,
    Runner,
    interruptible,
)
from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError
from ansible_collections.goldsmith.images.plugins.module_utils._packer_log import Progress

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "sha256": {"type": "str"},
    "region": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "description": {"type": "str", "default": ""},
    "tags": {"type": "dict", "default": {}},
    "snapshot_tags": {"type": "dict", "default": {}},
    "encrypted": {"type": "bool", "default": True},
    "kms_key_id": {"type": "str", "no_log": False},
    "architecture": {"type": "str", "choices": ["x86_64", "arm64"], "default": "x86_64"},
    "boot_mode": {"type": "str", "choices": ["uefi-preferred", "uefi", "legacy-bios"], "default": "uefi-preferred"},
    "root_device": {"type": "str", "default": "/dev/xvda"},
    "volume_type": {"type": "str", "choices": ["gp3", "gp2", "io1", "io2"], "default": "gp3"},
    "volume_size": {"type": "int"},
    "imds": {"type": "str", "choices": ["required", "optional"], "default": "required"},
    "tpm": {"type": "bool", "default": False},
    "share_with": {
        "type": "dict",
        "options": {name: {"type": "list", "elements": "str"} for name in ("accounts", "orgs", "ous")},
    },
    "parallel": {"type": "int", "default": 16},
    "state_dir": {"type": "path", "default": "~/.cache/goldsmith-images/ami_import"},
    "wait_timeout": {"type": "int", "default": 1800},
    "progress_path": {"type": "path"},
    "progress_keep": {"type": "bool", "default": True},
    "no_progress": {"type": "bool", "default": False},
}
ERRORS = (
    AmiError,
    aws.AwsError,
    logic.AmiImportError,
    CacheError,
    CommandError,
    Interrupted,
    OSError,
    PackerError,
    _disk.DiskError,
)


def check(params: dict[str, t.Any]) -> None:
    """Refuse what cannot work, before anything is asked or sent."""
    path = Path(params["path"])
    for wrong, message in (
        (not path.is_file(), f"path: {path} is not a file"),
        (not NAME.fullmatch(params["name"]), f"name: {params['name']!r} has to be 3 to 128 of the characters that EC2 "
         "allows: the filter goldsmith.images.ami_name makes such a name"),
        (params["sha256"] and not re.fullmatch(r"[0-9a-f]{64}", params["sha256"]),
         f"sha256: {params['sha256']!r} has to be 64 hexadecimal digits"),
        (params["kms_key_id"] and not params["encrypted"], "kms_key_id: a key is of no use with encrypted=false"),
        (params["tpm"] and params["boot_mode"] != "uefi", "tpm: EC2 wants boot_mode=uefi for it"),
        (not 1 <= params["parallel"] <= 64, f"parallel: {params['parallel']} has to be from 1 to 64"),
    ):  # fmt: skip
        if wrong:
            raise logic.AmiImportError(message)


class Run:
    """One import."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.params: dict[str, t.Any] = module.params
        self.check_mode: bool = module.check_mode
        self.progress = progress
        self.path = Path(self.params["path"])
        self.share = _ami_targets.launch_permissions(self.params["share_with"])
        region = self.params["region"]
        self.account = aws.Aws.of(self.params, region).account(aws.Login.of(self.params))
        self.ec2, self.ebs = self.account.client("ec2"), self.account.client("ebs")
        # Its work folders go with their makers, and what is partial when nobody came back for it.
        self.cache = Cache(Path(self.params["state_dir"]), 0)
        self.cache.open()
        self.deadline = time.monotonic() + self.params["wait_timeout"]

    def __call__(self) -> dict[str, t.Any]:
        """Import the image and return the module's result."""
        self.progress.update("digest")
        wanted = self.wanted()
        self.progress.update("look")
        found = logic.find(self.ec2, wanted)
        if not found.image:
            logic.check_name(self.ec2, wanted)
        outcome = "unchanged" if found.image else "registered" if found.snapshot else "created"
        result: dict[str, t.Any] = {
            "changed": outcome != "unchanged",
            "outcome": outcome,
            "image_id": found.image["ImageId"] if found.image else None,
            "snapshot_id": found.snapshot["SnapshotId"] if found.snapshot else None,
            "account": self.account.id,
            "name": found.image["Name"] if found.image else wanted.name,
            "shared_with": [name for names in self.share.values() for name in names],
            "kms_key_arn": wanted.kms_key_arn,
            "source_sha256": wanted.sha256,
            "volume_size": wanted.size,
            "bytes_to_send": 0,
            "bytes_sent": 0,
            "seconds": 0.0,
        }
        if outcome == "created":
            with self.raw() as raw:
                result.update(self.upload(raw, wanted))
        if not self.check_mode:
            result["image_id"] = self.register(result["snapshot_id"], result["image_id"], wanted)
        if result["image_id"] and any(self.share.values()):
            result["shared_with"] = self.permit(result["image_id"], result["snapshot_id"])
            result["changed"] = result["changed"] or bool(result["shared_with"])
        return {**result, "phases": self.progress.phases}

    def wanted(self) -> logic.Wanted:
        params = self.params
        digest = file_digest(self.path)
        if params["sha256"] and params["sha256"] != digest:
            raise logic.AmiImportError(
                f"{self.path} has the sha256 {digest}, not {params['sha256']}: it is not the image that was verified"
            )
        size = self.volume_size()
        key = self.key() if params["encrypted"] else None
        kept = ("name", "description", "architecture", "boot_mode", "root_device", "volume_type", "imds", "tpm")
        tags = {name: {k: str(v) for k, v in params[name].items()} for name in ("tags", "snapshot_tags")}
        return logic.Wanted(
            sha256=digest, size=size, kms_key_arn=key, **{name: params[name] for name in kept}, **tags
        )  # fmt: skip

    def key(self) -> str:
        key, region = self.params["kms_key_id"], self.params["region"]
        try:
            return str(find_key(self.ec2, self.account.client("kms"), key, region, any(self.share.values()))["Arn"])
        except AmiError as error:
            raise logic.AmiImportError(
                f"kms_key_id: {error}; name a key of {region}, and allow kms:DescribeKey, kms:CreateGrant and "
                "kms:GenerateDataKeyWithoutPlaintext"
            ) from error

    def volume_size(self) -> int:
        virtual = int(_disk.image_info(self.path)["virtual-size"])
        needed = -(-virtual // _ebs_upload.GIB)
        size = self.params["volume_size"] or needed
        if size < needed:
            raise logic.AmiImportError(f"volume_size: {size} GiB are too small for the disk, which has {needed} GiB")
        return size

    @contextlib.contextmanager
    def raw(self) -> t.Iterator[Path]:
        """The content of the image as a sparse file, for the time of the upload."""
        if _disk.image_info(self.path)["format"] == "raw":
            yield self.path
            return
        self.progress.update("unpack")
        with self.cache.workspace(make_key({"raw": str(self.path)})) as folder:
            raw = folder / "disk.raw"
            _disk.to_raw(Runner(folder / "log"), self.path, raw)
            yield raw

    def upload(self, raw: Path, wanted: logic.Wanted) -> dict[str, t.Any]:
        """Bring the snapshot to its end and return what the result says of it."""
        blocks = _ebs_upload.data_blocks(raw)
        total = len(blocks) * _ebs_upload.BLOCK
        identity = {"sha256": wanted.sha256, "kms_key_arn": wanted.kms_key_arn, "size": wanted.size,
                    "account": self.account.id, "region": self.params["region"]}  # fmt: skip
        name = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:24]
        state = _ebs_upload.State.load(self.cache.path / "partial" / f"{name}.jsonl", identity)
        if state.snapshot_id and not logic.is_pending(self.ec2, state.snapshot_id):
            state.forget()
        if self.check_mode:
            missing = [number for number in blocks if number not in state.digests]
            return {"bytes_to_send": len(missing) * _ebs_upload.BLOCK, "snapshot_id": state.snapshot_id or None}
        if not state.snapshot_id:
            # Written down first: a run that dies in the call leaves a snapshot that the next gets by the same token.
            state.save()
            state.snapshot_id = logic.start_snapshot(self.ebs, wanted, _ebs_upload.PENDING_MINUTES, state.token)
            state.save()
        there = len(state.digests) * _ebs_upload.BLOCK

        def tell(sent: int) -> None:
            done = there + sent
            self.progress.update("upload", last=f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")

        tell(0)
        start = time.monotonic()
        sent = _ebs_upload.upload(self.ebs, raw, blocks, state, self.params["parallel"], tell)
        seconds = round(time.monotonic() - start, 2)
        aws.call(
            self.ebs.complete_snapshot, SnapshotId=state.snapshot_id, ChangedBlocksCount=len(state.digests),
            Checksum=state.checksum(), ChecksumAlgorithm="SHA256", ChecksumAggregationMethod="LINEAR",
        )  # fmt: skip
        self.progress.update("complete")
        snapshot = logic.wait_for_snapshot(self.ec2, state.snapshot_id, self.deadline)
        state.path.unlink(missing_ok=True)
        if problem := logic.key_problem(snapshot, wanted.kms_key_arn):
            raise logic.AmiImportError(f"{problem}: no AMI was made of it")
        return {"bytes_to_send": total, "bytes_sent": sent, "seconds": seconds, "snapshot_id": state.snapshot_id}

    def register(self, snapshot_id: str, image_id: str | None, wanted: logic.Wanted) -> str:
        self.progress.update("register")
        image_id = image_id or aws.call(self.ec2.register_image, **wanted.registration(snapshot_id))["ImageId"]
        logic.wait_for_image(self.ec2, image_id, self.deadline)
        return image_id

    def permit(self, image_id: str, snapshot_id: str) -> list[str]:
        """Let those of share_with use the AMI, as far as they may not yet; returns who that is."""
        permissions = _ami_finish.missing_permissions(self.ec2, image_id, self.share)
        users = _ami_finish.missing_users(self.ec2, snapshot_id, self.share["UserId"]) if self.share["UserId"] else []
        if permissions and not self.check_mode:
            aws.call(self.ec2.modify_image_attribute, ImageId=image_id, LaunchPermission={"Add": permissions})
        if users and not self.check_mode:
            _ami_finish.allow(self.ec2, snapshot_id, "add", users)
        return list(dict.fromkeys([*(name for each in permissions for name in each.values()), *users]))


def main() -> None:
    module = AnsibleModule(
        argument_spec={**SPEC, **aws.LOGIN_SPEC},
        supports_check_mode=True,
        **aws.LOGIN_RULES,
    )
    progress_path = module.params["progress_path"] or ""
    try:
        check(module.params)
        progress = Progress(progress_path)
        with interruptible():
            result = Run(module, progress)()
        progress.finish()
    except ERRORS as error:
        module.fail_json(msg=str(error))
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "botocore":
            raise
        module.fail_json(msg=str(aws.explain(error)))
    finally:
        if progress_path and not module.params["progress_keep"]:
            with contextlib.suppress(OSError):
                os.unlink(progress_path)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
