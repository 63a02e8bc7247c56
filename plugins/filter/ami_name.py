# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: ami_name
short_description: Make a text a name that an AMI may have
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - EC2 takes 3 to 128 letters, digits, spaces and C(()[]./-'@_).
  - Other characters become a dash, several of them in a row one dash. A text that is too long loses its end.
options:
  _input:
    description: Any text.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Name the image after its version
  ansible.builtin.debug:
    msg: "{{ 'cloud_base: 1.36+build.7' | goldsmith.images.ami_name }}"  # cloud_base- 1.36-build.7
"""

RETURN = r"""
_value:
  description: The name.
  type: str
  sample: cloud_base- 1.36-build.7
"""

import re
import typing as t

from ansible.errors import AnsibleFilterError

SHORTEST = 3
LONGEST = 128


def ami_name(text: str) -> str:
    """Return *text* as a legal name."""
    name = re.sub(r"[^A-Za-z0-9()\[\] ./'@_-]+", "-", str(text))[:LONGEST].strip()
    if len(name) < SHORTEST:
        raise AnsibleFilterError(f"ami_name: {text!r} makes a name of less than {SHORTEST} characters: {name!r}")
    return name


class FilterModule:
    """Offers the filter to Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters of this file."""
        return {"ami_name": ami_name}
