# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: launch_template_versions
short_description: Turn AMIs by region into new versions of a launch template
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - One item a region, with the arguments of EC2's CreateLaunchTemplateVersion, and those that
    M(amazon.aws.ec2_launch_template) takes.
options:
  _input:
    description: What P(goldsmith.images.amis_by_region#filter) returns.
    type: dict
    required: true
  template_name:
    description: The name of the launch template.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Let new instances use the image
  amazon.aws.ec2_launch_template:
    region: "{{ item.region }}"
    template_name: "{{ item.template_name }}"
    image_id: "{{ item.image_id }}"
    source_version: latest
    default_version: latest
  loop: "{{ copied.copies | goldsmith.images.amis_by_region | goldsmith.images.launch_template_versions('nodes') }}"
"""

RETURN = r"""
_value:
  description: One item a region.
  type: list
  elements: dict
  sample:
    - region: eu-west-1
      template_name: nodes
      image_id: ami-0123456789abcdef0
      request:
        LaunchTemplateName: nodes
        SourceVersion: $Latest
        LaunchTemplateData: {ImageId: ami-0123456789abcdef0}
"""

import typing as t


def launch_template_versions(amis: dict[str, str], template_name: str) -> list[dict[str, t.Any]]:
    """Return what makes a new version of the template in each region."""
    return [
        {
            "region": region,
            "template_name": template_name,
            "image_id": ami,
            "request": {
                "LaunchTemplateName": template_name,
                "SourceVersion": "$Latest",
                "LaunchTemplateData": {"ImageId": ami},
            },
        }
        for region, ami in amis.items()
    ]


class FilterModule:
    """Offers the filter to Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters of this file."""
        return {"launch_template_versions": launch_template_versions}
