# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cloudformation_ami_mapping
short_description: Turn AMIs by region into the Mappings of a CloudFormation template
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - The template finds the AMI of its region with C(!FindInMap [Images, !Ref AWS::Region, cloudBase]).
options:
  _input:
    description: What P(goldsmith.images.amis_by_region#filter) returns.
    type: dict
    required: true
  map:
    description: The name of the mapping; letters and digits.
    type: str
    default: Images
  key:
    description: The name of the image in it; letters and digits.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Write the mapping for AWS::Include
  ansible.builtin.copy:
    content: >-
      {{ copied.copies | goldsmith.images.amis_by_region
         | goldsmith.images.cloudformation_ami_mapping(key='cloudBase') | to_nice_json }}
    dest: ./images.json
    mode: "0644"
"""

RETURN = r"""
_value:
  description: A mapping with the key C(Mappings).
  type: dict
  sample: {"Mappings": {"Images": {"eu-west-1": {"cloudBase": "ami-0123456789abcdef0"}}}}
"""

import re
import typing as t

from ansible.errors import AnsibleFilterError


def cloudformation_ami_mapping(amis: dict[str, str], key: str, map: str = "Images") -> dict[str, t.Any]:  # noqa: A002 - the option's name
    """Return the section of a template."""
    for name, value in (("map", map), ("key", key)):
        if not re.fullmatch(r"[A-Za-z0-9]+", str(value)):
            raise AnsibleFilterError(
                f"cloudformation_ami_mapping: {name} is {value!r}; CloudFormation takes letters and digits there"
            )
    return {"Mappings": {map: {region: {key: ami} for region, ami in amis.items()}}}


class FilterModule:
    """Offers the filter to Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters of this file."""
        return {"cloudformation_ami_mapping": cloudformation_ami_mapping}
