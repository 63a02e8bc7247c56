# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: amis_by_region
short_description: Turn the copies of an AMI into a mapping from region to AMI
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - What Terraform variables, playbooks and CloudFormation want, from what M(goldsmith.images.ami_copy_encrypt) returns.
  - Copies without an AMI (failed, or only predicted by check mode) are left out.
options:
  _input:
    description: The value RV(goldsmith.images.ami_copy_encrypt#module:copies).
    type: list
    elements: dict
    required: true
  account:
    description:
      - Take the copies of this account.
      - Needed where a region occurs in several accounts.
    type: str
"""

EXAMPLES = r"""
- name: Write variables for Terraform
  ansible.builtin.copy:
    content: "{{ {'ami_ids': copied.copies | goldsmith.images.amis_by_region} | to_nice_json }}"
    dest: ./images.auto.tfvars.json
    mode: "0644"
"""

RETURN = r"""
_value:
  description: Region and AMI, sorted by region.
  type: dict
  sample: {"eu-west-1": "ami-0123456789abcdef0", "us-east-1": "ami-0fedcba9876543210"}
"""

import typing as t

from ansible.errors import AnsibleFilterError


def amis_by_region(copies: list[dict[str, t.Any]], account: str | None = None) -> dict[str, str]:
    """Return {region: AMI} of the copies that have one."""
    found: dict[str, str] = {}
    try:
        for copy in copies:
            if not copy["image_id"] or (account is not None and str(copy["account"]) != str(account)):
                continue
            if copy["region"] in found:
                raise AnsibleFilterError(
                    f"amis_by_region: {copy['region']} occurs in several accounts; name one: account"
                )
            found[copy["region"]] = copy["image_id"]
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"amis_by_region: not a list of copies with account, region and image_id ({error!r})"
        ) from error
    return dict(sorted(found.items()))


class FilterModule:
    """Offers the filter to Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters of this file."""
        return {"amis_by_region": amis_by_region}
