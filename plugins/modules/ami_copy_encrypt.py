#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ami_copy_encrypt
short_description: Copy an AMI, encrypted, to every region and account that needs it
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Makes one encrypted copy of an image for each target, an account and a region, all at the same time, and verifies
    that every snapshot of every copy is encrypted with the very key that was asked for.
  - A copy that is there already is found by its lineage, owner and keys, so a second run changes nothing. A copy that
    is under way is taken up; one that failed is made again.
  - A failure of one target does not stop the others. At a time-out the copies go on in AWS, and the next run takes
    them up.
  - Every call that changes something is in a journal before it is made. A run may be killed at any moment; the next one
    ends what it began, without a second image and without a permission that stays behind.
  - The source is never touched unless every target has an available copy, encrypted with the key asked for, and nobody
    uses the source.
extends_documentation_fragment:
  - goldsmith.images.attributes
  - goldsmith.images.aws
attributes:
  check_mode:
    support: full
    details: Asks AWS everything that the real run asks first, and fails where it would. Writes no journal.
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  source:
    description: The image to copy.
    type: dict
    required: true
    suboptions:
      image_id:
        description: Its id. Either this or O(source.name).
        type: str
      name:
        description: Its name; V(*) and V(?) are wildcards.
        type: str
      owner:
        description: Whose image of that O(source.name), an account number, V(self) or V(amazon).
        type: str
        default: self
      most_recent:
        description: Take the most recent of several images with that O(source.name). Otherwise there may be only one.
        type: bool
        default: false
      region:
        description: The region that it is in.
        type: str
        required: true
      profile:
        description: The profile of the source's account, where that is not the account of the module's own credentials.
        type: str
      role_arn:
        description: The role to assume in the source's account.
        type: str
      external_id:
        description: The external id that O(source.role_arn) asks for.
        type: str
  targets:
    description: Where copies are wanted. Either this or O(regions).
    type: list
    elements: dict
    suboptions:
      region:
        description: The region.
        type: str
        required: true
      account:
        description: The number of the account; it has to be the one that the credentials lead to.
        type: str
      profile:
        description: The profile to enter the account with.
        type: str
      role_arn:
        description: The role to assume in the account. Without it and a profile, the module's own credentials count.
        type: str
      external_id:
        description: The external id that the role asks for.
        type: str
      kms_key_id:
        description: The key, as id, alias or ARN of either. Before O(kms_key_ids).
        type: str
      name:
        description: The copy's name. Instead of O(name).
        type: str
      tags:
        description: More tags, which win over O(tags).
        type: dict
      share_with:
        description: Who else may use this copy, besides those of O(share_with).
        type: dict
        suboptions: &share
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
  regions:
    description: Regions for every one of O(accounts).
    type: list
    elements: str
  accounts:
    description: Accounts for every one of O(regions). Without it, the account of the module's own credentials.
    type: list
    elements: dict
    suboptions:
      account:
        description: The number of the account; it has to be the one that the credentials lead to.
        type: str
      profile:
        description: The profile to enter the account with.
        type: str
      role_arn:
        description: The role to assume in the account.
        type: str
      external_id:
        description: The external id that the role asks for.
        type: str
  encrypted:
    description:
      - Whether the copies are encrypted. Where an account's EBS encryption by default is on, EC2 makes no plain ones.
    type: bool
    default: true
  kms_key_ids:
    description:
      - Region to key. A region that is not in it gets the account's default key for EBS.
      - An id or an alias is looked up in each target's own account; an ARN may name a key of another one.
    type: dict
  name:
    description:
      - The name of the copies. C({source_name}), C({source_id}), C({source_region}), C({region}) and C({account}) are
        replaced.
    type: str
    default: "{source_name}"
  description:
    description: The description of the copies.
    type: str
  tags:
    description: Tags of the copies and of their snapshots, given in the call that makes them. All values become text.
    type: dict
  snapshot_tags:
    description: More tags, of the snapshots only.
    type: dict
  copy_tags:
    description: Whether new copies get the source's own tags too. Across accounts EC2 does not copy them.
    type: bool
    default: false
  completion_minutes:
    description: Pay for copies that take no longer than this, a multiple of 15 up to 2880.
    type: int
  wait:
    description: Wait until the copies are available, and verify them. Otherwise only start them.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait at the most.
    type: int
    default: 7200
  poll:
    description:
      - Seconds between two looks at the copies at first; later up to six times as long. One look is one call for each
        account and region.
    type: float
    default: 5.0
  max_parallel:
    description: How many calls are made at the same time.
    type: int
    default: 8
  max_parallel_per_region:
    description:
      - How many snapshots are copied at once into one region, all accounts together. EC2 allows 20 in each account.
      - An image with more snapshots than that is copied into one account after the other.
    type: int
    default: 20
  share_with:
    description: Who else may use the copies. What is missing is added, nothing is taken away.
    type: dict
    suboptions: *share
  share_snapshots:
    description:
      - Share the snapshots too, with the accounts of O(share_with); they need that to copy the image. EC2 cannot share
        snapshots with organisations and their units.
    type: bool
    default: true
  temporary_share:
    description:
      - Let other accounts at the source and its snapshots for as long as they copy it, and take back afterwards what
        was added for that.
    type: bool
    default: true
  deprecate_at:
    description: When the copies are deprecated, a date or a date with time and zone; to the minute, as EC2 keeps it.
    type: str
  on_failure:
    description: What becomes of the copies that this run has made when a target fails.
    type: str
    choices:
      keep: They stay, and the next run only makes what is missing.
      rollback: They are deregistered with their snapshots.
    default: keep
  retry_failed:
    description: How often a copy that failed is made again in the same run.
    type: int
    default: 1
  source_after:
    description: What becomes of the source when every target has a verified copy and nobody uses the source.
    type: str
    choices:
      keep: Nothing.
      deprecate: It is deprecated as of now.
      disable: It is disabled, which ends its permissions; C(aws ec2 enable-image) brings it back without them.
      deregister: It is deregistered.
    default: keep
  delete_source_snapshots:
    description: Delete the source's snapshots with O(source_after=deregister), but not those that other images use.
    type: bool
    default: false
  in_use_check:
    description:
      - What a user of the source means. Looked for are instances, launch templates, Auto Scaling groups and launch
        configurations, SSM parameters, in the source's region of every account of this run, and permissions of accounts
        outside it. What cannot be looked at counts as a user.
    type: str
    choices:
      fail: The source is not touched and the module fails.
      warn: There is a warning.
      skip: Nobody looks.
    default: fail
  journal:
    description: The folder of the journals, one file for each source.
    type: path
    default: ~/.local/state/goldsmith-images/ami_copy_encrypt
seealso:
  - name: Guide
    description: How copies are found, what the journal does, which permissions are needed.
    link: https://github.com/goldsmith-images/goldsmith.images/blob/main/docs/ami_copy_encrypt.md
"""

EXAMPLES = r"""
---
- name: Give three regions an encrypted copy
  goldsmith.images.ami_copy_encrypt:
    source: {image_id: ami-0123456789abcdef0, region: eu-west-1}
    regions: [eu-west-1, eu-central-1, us-east-1]
    kms_key_ids:
      eu-west-1: alias/images
      eu-central-1: alias/images
      us-east-1: alias/images
    tags: {team: platform}
  register: ami

- name: Show the copies
  ansible.builtin.debug:
    msg: "{{ ami.copies | items2dict(key_name='region', value_name='image_id') }}"

- name: Give two accounts their own copies, each with its own key, and remove the plain source
  goldsmith.images.ami_copy_encrypt:
    source: {name: "golden-*", most_recent: true, region: eu-west-1}
    regions: [eu-west-1, us-east-1]
    accounts:
      - role_arn: arn:aws:iam::111122223333:role/image-copier
      - role_arn: arn:aws:iam::444455556666:role/image-copier
        external_id: "{{ external_id }}"
    kms_key_ids: {eu-west-1: alias/images, us-east-1: alias/images}
    source_after: deregister
    delete_source_snapshots: true

- name: Share one copy with an organisation and let it age
  goldsmith.images.ami_copy_encrypt:
    source: {image_id: ami-0123456789abcdef0, region: eu-west-1}
    targets:
      - region: eu-central-1
        kms_key_id: arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab
        name: "golden {region}"
        share_with:
          accounts: ["111122223333"]
          orgs: ["arn:aws:organizations::123456789012:organization/o-a1b2c3d4e5"]
    deprecate_at: "2027-06-30"
"""

RETURN = r"""
source:
  description: The source as it was found.
  returned: when the parameters were accepted
  type: dict
  contains:
    image_id:
      description: Its id.
      returned: always
      type: str
      sample: ami-0123456789abcdef0
    region:
      description: Its region.
      returned: always
      type: str
      sample: eu-west-1
    account:
      description: Its owner.
      returned: always, null if it is gone
      type: str
      sample: "123456789012"
    name:
      description: Its name.
      returned: always, null if it is gone
      type: str
      sample: golden
    state:
      description: Its state before O(source_after), V(deregistered) if it is gone.
      returned: always
      type: str
      sample: available
    encrypted:
      description: Whether all of its snapshots are encrypted.
      returned: always, null if they cannot be described
      type: bool
      sample: false
    snapshots:
      description: Its snapshots.
      returned: always
      type: list
      elements: str
      sample: [snap-0123456789abcdef0]
copies:
  description: One for each target, in the order of the parameters.
  returned: when the parameters were accepted
  type: list
  elements: dict
  contains:
    account:
      description: The account.
      returned: always, null if it could not be entered and its number was not given
      type: str
      sample: "111122223333"
    region:
      description: The region.
      returned: always
      type: str
      sample: us-east-1
    image_id:
      description: The copy.
      returned: always, null if there is none
      type: str
      sample: ami-0fedcba9876543210
    name:
      description: Its name.
      returned: always, null if it is not known
      type: str
      sample: golden
    state:
      description: Its state in EC2's words; V(deregistered) if it was removed.
      returned: always, null if there is no copy
      type: str
      sample: available
    action:
      description:
        - V(created), V(adopted) (it was under way already), V(unchanged), V(failed), V(rolled_back), V(not_started)
          (the time was over before there was room for it), or in check mode V(would_create) or V(would_adopt).
      returned: always
      type: str
      sample: created
    snapshots:
      description: Its snapshots as they were verified.
      returned: always, empty before it is available
      type: list
      elements: dict
      contains:
        id:
          description: The snapshot.
          returned: always
          type: str
          sample: snap-0fedcba9876543210
        encrypted:
          description: Whether it is encrypted.
          returned: always
          type: bool
          sample: true
        kms_key_id:
          description: The ARN of its key.
          returned: always, null if it is not encrypted
          type: str
          sample: arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
        size:
          description: Size of the volume in GiB.
          returned: always
          type: int
          sample: 10
    encrypted:
      description: Whether every snapshot is encrypted.
      returned: always, null before it is available
      type: bool
      sample: true
    kms_key_arn:
      description: The key that was asked for, resolved.
      returned: always, null with O(encrypted=false) or if the account could not be entered
      type: str
      sample: arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
    tags_changed:
      description: Whether an existing copy lacked tags and got them, or would in check mode.
      returned: always
      type: bool
      sample: false
    shared_with:
      description: Accounts, organisations and units of O(share_with) that may use the copy, or would in check mode.
      returned: always
      type: list
      elements: str
      sample: ["444455556666"]
    duration:
      description: Seconds from its start, or from when it was taken up, until it was seen to be available.
      returned: always, 0 if it was not waited for
      type: float
      sample: 412.7
    error:
      description: Why the target has failed.
      returned: always, null if it has not
      type: dict
      contains:
        code:
          description: AWS's code; V(Gone), V(NotVerified) and V(SnapshotsLeft) are this module's.
          returned: always
          type: str
          sample: AccessDenied
        message:
          description: AWS's message.
          returned: always
          type: str
          sample: User is not authorized to perform sts:AssumeRole
        state_reason:
          description: What the failed image says of itself.
          returned: always, null if it does not
          type: str
          sample: Given key ID is not accessible
source_action:
  description: What became of the source.
  returned: when the parameters were accepted
  type: dict
  contains:
    action:
      description: O(source_after).
      returned: always
      type: str
      sample: deregister
    result:
      description:
        - V(none) (O(source_after=keep)), V(unchanged), V(deprecated), V(disabled), V(deregistered), V(refused),
          V(failed), or in check mode V(would_deprecate), V(would_disable) or V(would_deregister).
      returned: always
      type: str
      sample: deregistered
    reason:
      description: Why it was refused or failed.
      returned: always, null if it was not
      type: str
      sample: "not every copy is available and verified: 111122223333/us-east-1"
    in_use:
      description: Who uses the source.
      returned: always, empty if nobody does or nobody has looked
      type: list
      elements: dict
      contains:
        account:
          description: Whose it is.
          returned: always
          type: str
          sample: "123456789012"
        kind:
          description: V(instance), V(launch_template), V(auto_scaling), V(ssm_parameter) or V(launch_permission).
          returned: always
          type: str
          sample: instance
        id:
          description: What uses the source.
          returned: always
          type: str
          sample: i-0123456789abcdef0
    snapshots:
      description: What became of its snapshots with O(source_after=deregister).
      returned: always, empty if it was not deregistered
      type: list
      elements: dict
      contains:
        id:
          description: The snapshot.
          returned: always
          type: str
          sample: snap-0123456789abcdef0
        result:
          description:
            - V(kept) without O(delete_source_snapshots), else V(success), V(skipped) (another image uses it), or the
              code of what went wrong.
          returned: always
          type: str
          sample: success
summary:
  description: How many copies had which action, how many are V(pending), and how many there are.
  returned: when the parameters were accepted
  type: dict
  sample: {created: 5, adopted: 1, unchanged: 0, failed: 0, pending: 0, total: 6}
journal:
  description: The journal of this source.
  returned: when the parameters were accepted
  type: str
  sample: /home/ci/.local/state/goldsmith-images/ami_copy_encrypt/123456789012-eu-west-1-ami-0123456789abcdef0.jsonl
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_run as logic
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import conclude

ENTRANCE = {name: {"type": "str"} for name in ("profile", "role_arn", "external_id")}
SHARE = {
    "type": "dict",
    "options": {name: {"type": "list", "elements": "str"} for name in ("accounts", "orgs", "ous")},
}
TARGET = {
    "region": {"type": "str", "required": True},
    "account": {"type": "str"},
    **ENTRANCE,
    "kms_key_id": {"type": "str", "no_log": False},
    "name": {"type": "str"},
    "tags": {"type": "dict"},
    "share_with": SHARE,
}
SOURCE = {
    "image_id": {"type": "str"},
    "name": {"type": "str"},
    "owner": {"type": "str", "default": "self"},
    "most_recent": {"type": "bool", "default": False},
    "region": {"type": "str", "required": True},
    **ENTRANCE,
}


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            **aws.LOGIN_SPEC,
            "source": {
                "type": "dict",
                "required": True,
                "options": SOURCE,
                "mutually_exclusive": [("image_id", "name")],
                "required_one_of": [("image_id", "name")],
            },
            "targets": {"type": "list", "elements": "dict", "options": TARGET},
            "regions": {"type": "list", "elements": "str"},
            "accounts": {"type": "list", "elements": "dict", "options": {"account": {"type": "str"}, **ENTRANCE}},
            "encrypted": {"type": "bool", "default": True},
            "kms_key_ids": {"type": "dict", "no_log": False},
            "name": {"type": "str", "default": "{source_name}"},
            "description": {"type": "str"},
            "tags": {"type": "dict"},
            "snapshot_tags": {"type": "dict"},
            "copy_tags": {"type": "bool", "default": False},
            "completion_minutes": {"type": "int"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 7200},
            "poll": {"type": "float", "default": 5.0},
            "max_parallel": {"type": "int", "default": 8},
            "max_parallel_per_region": {"type": "int", "default": 20},
            "share_with": SHARE,
            "share_snapshots": {"type": "bool", "default": True},
            "temporary_share": {"type": "bool", "default": True},
            "deprecate_at": {"type": "str"},
            "on_failure": {"type": "str", "choices": ["keep", "rollback"], "default": "keep"},
            "retry_failed": {"type": "int", "default": 1},
            "source_after": {
                "type": "str",
                "choices": ["keep", "deprecate", "disable", "deregister"],
                "default": "keep",
            },
            "delete_source_snapshots": {"type": "bool", "default": False},
            "in_use_check": {"type": "str", "choices": ["fail", "warn", "skip"], "default": "fail"},
            "journal": {"type": "path", "default": "~/.local/state/goldsmith-images/ami_copy_encrypt"},
        },
        mutually_exclusive=[("targets", "regions"), ("targets", "accounts"), *aws.LOGIN_RULES["mutually_exclusive"]],
        required_one_of=[("targets", "regions")],
        required_together=aws.LOGIN_RULES["required_together"],
        supports_check_mode=True,
    )
    conclude(module, logic.run)


if __name__ == "__main__":
    main()
