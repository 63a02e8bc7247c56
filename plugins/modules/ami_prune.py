#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ami_prune
short_description: Remove old AMIs that nobody uses, with a time of grace
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Keeps the newest images of each name prefix. Of the others, those that are old enough and that nobody uses are first
    deprecated, so that nobody new finds them. A later run deregisters them when the time of grace is over, with their
    snapshots.
  - Works on one account and one region. Images of other owners are never touched.
  - One image's failure does not stop the others; the module fails at the end, with all results.
  - How far it has come is in the cloud itself, in the date of the deprecation and in a tag on the snapshots. A run may
    be killed at any moment; the next one, from any machine, ends what it began.
extends_documentation_fragment:
  - goldsmith.images.attributes
  - goldsmith.images.aws
attributes:
  check_mode:
    support: full
    details: A dry run. Asks AWS everything that the real run asks, and says what that would do.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Until an image becomes old enough or its time of grace is over.
  platform:
    platforms: posix
options:
  region:
    description: The region.
    type: str
    required: true
  name_prefixes:
    description:
      - Beginnings of names, 3 to 128 characters each. The images of each are counted by themselves.
      - An image that several fit belongs to the longest one, so V(golden-arm-) is not counted with V(golden-).
    type: list
    elements: str
    required: true
  keep:
    description: How many of the newest available images of each prefix stay, however old they are.
    type: int
    default: 3
  min_age_days:
    description: Days since its creation before an image is touched at all.
    type: int
    default: 30
  grace_days:
    description:
      - Days between the deprecation and the deregistration. A deprecation by others counts too.
      - V(0) deregisters without deprecating first.
      - Images that nobody can launch, disabled or failed ones, are deregistered without it.
    type: int
    default: 14
  deregister:
    description: Whether images are deregistered at all, or only deprecated.
    type: bool
    default: true
  delete_snapshots:
    description: Whether the snapshots of an image go with it, except those that other images have.
    type: bool
    default: true
  in_use_check:
    description:
      - What becomes of an image that somebody uses. Looked for are instances, launch templates, Auto Scaling groups and
        launch configurations, SSM parameters, in the region of this account and of O(accounts), and permissions of
        other accounts. What cannot be looked at counts as a user.
    type: str
    choices:
      keep: It stays as it is.
      warn: It goes, with a warning.
      skip: Nobody looks.
    default: keep
  accounts:
    description:
      - Other accounts that the images are shared with, to look there for users. An image that is shared with an account
        that is not among them stays.
    type: list
    elements: dict
    suboptions:
      profile:
        description: The profile to enter the account with.
        type: str
      role_arn:
        description: The role to assume in the account.
        type: str
      external_id:
        description: The external id that the role asks for.
        type: str
  max_parallel:
    description: How many calls are made at the same time.
    type: int
    default: 8
seealso:
  - module: goldsmith.images.ami_copy_encrypt
  - name: Guide
    description: AMIs from the upload to the end of their life.
    link: https://github.com/goldsmith-images/goldsmith.images/blob/main/docs/aws.md
"""

EXAMPLES = r"""
---
- name: Keep the last five images of each line; the others end two weeks after their deprecation
  goldsmith.images.ami_prune:
    region: eu-west-1
    name_prefixes: [cloud_base-, cml-]
    keep: 5
    min_age_days: 60
  register: pruned

- name: Show what is still in use
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.reason }}"
  loop: "{{ pruned.images | selectattr('action', 'equalto', 'in_use') }}"
  loop_control:
    label: "{{ item.image_id }}"

- name: Remove test images at once, in every region, and look for users in the account that they are shared with
  goldsmith.images.ami_prune:
    region: "{{ item }}"
    name_prefixes: [test-]
    keep: 0
    min_age_days: 1
    grace_days: 0
    accounts:
      - role_arn: arn:aws:iam::111122223333:role/image-reader
  loop: [eu-west-1, us-east-1]
"""

RETURN = r"""
region:
  description: The region.
  returned: when the parameters were accepted
  type: str
  sample: eu-west-1
account:
  description: The number of the account.
  returned: when the parameters were accepted
  type: str
  sample: "123456789012"
images:
  description: The images with these prefixes, those of a prefix together, the newest first.
  returned: when the parameters were accepted
  type: list
  elements: dict
  contains:
    image_id:
      description: The image.
      returned: always
      type: str
      sample: ami-0123456789abcdef0
    name:
      description: Its name.
      returned: always
      type: str
      sample: cloud_base-2026-09-01
    prefix:
      description: The prefix that it is counted with.
      returned: always
      type: str
      sample: cloud_base-
    state:
      description: Its state before the run, in EC2's words.
      returned: always
      type: str
      sample: available
    created:
      description: When it was created, in UTC.
      returned: always
      type: str
      sample: "2026-09-01T10:00:00Z"
    age_days:
      description: Full days since then.
      returned: always
      type: int
      sample: 87
    deprecated:
      description: The date of its deprecation, in UTC.
      returned: always, null if there is none
      type: str
      sample: "2026-11-10T10:02:00Z"
    action:
      description:
        - V(kept), V(in_use), V(waiting) (deprecated, in its time of grace), V(deprecated), V(deregistered), V(failed),
          or in check mode V(would_deprecate) or V(would_deregister).
      returned: always
      type: str
      sample: deregistered
    reason:
      description: Why.
      returned: always
      type: str
      sample: the time of grace is over
    in_use:
      description: Who uses it.
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
          sample: launch_template
        id:
          description: What uses the image.
          returned: always
          type: str
          sample: nodes:7
    snapshots:
      description: What became of its snapshots.
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
            - V(success) (it is deleted), V(skipped) (another image has it), V(kept) (O(delete_snapshots=false)), in
              check mode V(would_delete), or the code of what went wrong.
          returned: always
          type: str
          sample: success
    error:
      description: Why it has failed; the next run tries again.
      returned: always, null if it has not
      type: dict
      contains:
        code:
          description: AWS's code.
          returned: always
          type: str
          sample: UnauthorizedOperation
        message:
          description: AWS's message.
          returned: always
          type: str
          sample: You are not authorized to perform this operation.
leftover_snapshots:
  description: Snapshots that an earlier run could not delete, or did not come to delete.
  returned: when the parameters were accepted
  type: list
  elements: dict
  contains:
    id:
      description: The snapshot.
      returned: always
      type: str
      sample: snap-0123456789abcdef0
    image_id:
      description: The image that it belonged to.
      returned: always
      type: str
      sample: ami-0123456789abcdef0
    result:
      description: As in RV(images).
      returned: always
      type: str
      sample: success
summary:
  description: How many images had which action.
  returned: when the parameters were accepted
  type: dict
  sample: {kept: 5, in_use: 1, waiting: 2, deprecated: 1, deregistered: 3, failed: 0}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_prune as logic
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import conclude


def main() -> t.NoReturn:
    entrance = {name: {"type": "str"} for name in ("profile", "role_arn", "external_id")}
    module = AnsibleModule(
        argument_spec={
            **aws.LOGIN_SPEC,
            "region": {"type": "str", "required": True},
            "name_prefixes": {"type": "list", "elements": "str", "required": True},
            "keep": {"type": "int", "default": 3},
            "min_age_days": {"type": "int", "default": 30},
            "grace_days": {"type": "int", "default": 14},
            "deregister": {"type": "bool", "default": True},
            "delete_snapshots": {"type": "bool", "default": True},
            "in_use_check": {"type": "str", "choices": ["keep", "warn", "skip"], "default": "keep"},
            "accounts": {"type": "list", "elements": "dict", "options": entrance},
            "max_parallel": {"type": "int", "default": 8},
        },
        supports_check_mode=True,
        **aws.LOGIN_RULES,
    )
    conclude(module, logic.run)


if __name__ == "__main__":
    main()
